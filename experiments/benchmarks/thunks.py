"""Where the time of an iteration of GRPO goes on CPU, by operation of the compiled programs.

    pip install -e '.[bench]' && python experiments/benchmarks/thunks.py

The iteration of rl_speed.py under JAX's profiler. Of each kind of operation (numbers behind its
name are left off) milliseconds per iteration and calls; operations that run at once both count, and
`while` contains what runs in it. `ynn_fusion` and `dot` are matrix products. The first line has the
seconds of rollout, scoring and update without the profiler, and the machine's best product.
"""

import argparse
import collections
import gzip
import json
import pathlib
import re
import statistics
import tempfile

import jax
import rl_speed

from jaxllm import huge_pages
from jaxllm.train import flops

ROUNDS = 3


def events(folder):
    """Complete events of a trace, without those of Python."""
    path = next(pathlib.Path(folder).rglob('*.trace.json.gz'))
    with gzip.open(path) as file:
        return [event for event in json.load(file)['traceEvents']
                if event.get('ph') == 'X' and not event['name'].startswith('$')]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=rl_speed.SIZES, default='tiny')
    parser.add_argument('--top', type=int, default=25, help='kinds that are shown')
    args = parser.parse_args()
    huge_pages.restart()
    iterate = rl_speed.jaxllm_grpo(args.size, 'grpo')
    for _ in range(rl_speed.WARM_UP):
        iterate()
    parts = [statistics.median(part) for part in zip(*(iterate() for _ in range(ROUNDS)),
                                                     strict=True)]
    peak = flops.machine_matmul_peak('float32') / 1e9
    print('  '.join(f'{name} {seconds:.3f} s' for name, seconds in zip(rl_speed.PARTS, parts,
                                                                       strict=True)),
          f' best product {peak:.0f} GFLOP/s')
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(ROUNDS):
                iterate()
        found = events(folder)
    total, calls = collections.Counter(), collections.Counter()
    for event in found:
        kind = re.sub(r'[.\d]+$', '', event['name'])
        total[kind] += event['dur'] / 1000 / ROUNDS
        calls[kind] += 1 / ROUNDS
    for kind, milliseconds in total.most_common(args.top):
        print(f'{milliseconds:>9.2f} ms {calls[kind]:>7.0f}  {kind[:80]}')


if __name__ == '__main__':
    main()
