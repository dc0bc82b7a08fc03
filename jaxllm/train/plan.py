"""What a train step costs on machines that need not be here: memory per chip and FLOPs per step.

The step is compiled ahead of time for a topology such as 'v5e:4x4' (extra `tpu`); no array exists
and no accelerator is needed. The numbers are the compiler's own.
"""

import dataclasses
import time

import jax

from jaxllm.errors import InputError
from jaxllm.sharding import batch_shardings, make_mesh, replicated
from jaxllm.train.flops import train_flops_per_token
from jaxllm.train.state import state_shardings

# High-bandwidth memory of a chip [bytes], by the name that JAX gives it; from Google's data sheets.
HBM_BYTES = {'TPU v4': 32 * 2**30, 'TPU v5 lite': 16 * 2**30, 'TPU v5': 95 * 2**30,
             'TPU v6 lite': 32 * 2**30}


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Bytes per chip while one program runs, and how long it took to compile."""
    num_chips: int
    arguments: int     # train state, constants and batch
    outputs: int
    aliased: int       # outputs that take the place of donated arguments
    temporaries: int   # activations, gradients, gathered parameters
    code: int
    compile_s: float

    @property
    def total(self):
        """The most that is needed at once."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

    def __str__(self):
        mib = lambda x: f'{x / 2**20:,.0f} MiB'
        return (f'{mib(self.total)} on each of {self.num_chips} chips: state and batch '
                f'{mib(self.arguments)}, temporaries {mib(self.temporaries)}, new outputs '
                f'{mib(self.outputs - self.aliased)}, code {mib(self.code)} (compiled in '
                f'{self.compile_s:.0f} s)')


def topology_mesh(topology, sharding, platform='tpu'):
    """The mesh of a ShardingConfig over the chips of `topology`, e.g. 'v5e:4x4'.

    Raises:
      InputError: unknown topology, or no compiler for the platform is installed.
    """
    from jax.experimental import topologies
    try:
        description = topologies.get_topology_desc(platform=platform, topology_name=topology)
    except Exception as error:  # each platform's plugin has its own
        raise InputError(
            f'topology {topology!r}: {error}. Expected e.g. v5e:4x4 or v4:2x2x1, and the '
            "platform's compiler: pip install jaxllm[tpu]") from error
    return make_mesh(sharding, description.devices)


def compile_step(step, state, param_shardings, frozen, frozen_shardings, batch, mesh):
    """Compiles step(state, frozen, batch) as the trainer runs it, from shapes alone.

    Args:
      step: see `step.make_train_step`.
      state: TrainState of shapes, e.g. from `jax.eval_shape(state.create, ...)`.
      param_shardings: NamedShardings of `state.trainable`.
      frozen, frozen_shardings: constants; {} and {} for none.
      batch: {array name: shape of the global batch}.

    Returns:
      (jax.stages.Compiled, MemoryReport).
    """
    places = state_shardings(state, param_shardings, mesh)
    jitted = jax.jit(step, in_shardings=(places, frozen_shardings, batch_shardings(batch, mesh)),
                     out_shardings=(places, replicated(mesh)), donate_argnums=0)
    start = time.monotonic()
    with jax.set_mesh(mesh):
        compiled = jitted.lower(state, frozen, batch).compile()
    return compiled, memory_report(compiled, mesh, time.monotonic() - start)


def compile_for_topology(build, topology, sharding, platform='tpu'):
    """`compile_step` for the chips of `topology`.

    Args:
      build: build(mesh) -> (step, state, param_shardings, frozen, frozen_shardings, batch), the
        arguments of `compile_step`; called with the mesh set. Shapes only: there is no device to
        compute on, so a key, say, has to be made inside `jax.eval_shape`.
      topology, sharding, platform: see `topology_mesh`.

    Returns:
      (jax.stages.Compiled, MemoryReport).
    """
    mesh = topology_mesh(topology, sharding, platform)
    with jax.set_mesh(mesh):
        return compile_step(*build(mesh), mesh)


def memory_report(compiled, mesh, compile_s=0.0):
    """MemoryReport of a compiled program."""
    stats = compiled.memory_analysis()
    return MemoryReport(mesh.size, stats.argument_size_in_bytes, stats.output_size_in_bytes,
                        stats.alias_size_in_bytes, stats.temp_size_in_bytes,
                        stats.generated_code_size_in_bytes, compile_s)


def step_flops(model, batch_size, seq_len):
    """Model FLOPs of one update over all chips (`flops.train_flops_per_token`)."""
    return batch_size * seq_len * train_flops_per_token(model, seq_len)
