"""Flags of XLA with which tiny programs compile fast: that is most of the time that tests take.

A training step of two layers compiles in 6.2 s of one core without the second flag, and in 1.6 s
with it. The loops that it leaves out are fused by a compiler of their own, for speed at run time.
"""

import importlib.metadata

# jaxlib 0.10 knows the flag, and XLA ends the process that asks for one it does not know.
_EMITTERS = importlib.metadata.version('jaxlib').startswith('0.10.')
FLAGS = '--xla_backend_optimization_level=0' + _EMITTERS * ' --xla_cpu_use_fusion_emitters=false'
