"""What a run would be: the resolved config, its size, its memory, and where its arrays live."""

import math

import jax

from jaxllm.config import to_json
from jaxllm.train import flops
from jaxllm.train.plan import compile_step


def describe(config, trainer, batch, seq_len=0):
    """Text of `--dry_run`. The step is compiled for batches shaped like `batch`; nothing is
    allocated. `seq_len`: tokens per row; default: config.data.seq_len."""
    model, train = trainer.model, config.train
    seq_len = seq_len or config.data.seq_len
    tokens = train.batch_size * seq_len
    flops_per_step = flops.train_flops_per_token(model, seq_len) * tokens
    mesh = {axis: size for axis, size in trainer.mesh.shape.items() if size > 1} or 'one device'
    lines = [to_json(config),
             f'parameters        {trainer.num_params:,}',
             f'tokens per step   {tokens:,} ({train.batch_size} sequences of {seq_len})',
             f'tokens in all     {tokens * train.num_steps:,} in {train.num_steps:,} steps',
             f'FLOPs per step    {flops_per_step:.4g} ({flops_per_step * train.num_steps:.4g} in '
             'all)',
             f'mesh              {mesh} of {jax.device_count()} '
             f'{jax.devices()[0].platform} device(s)']
    for name, tree in (('parameters', trainer.state_shape.trainable),
                       ('optimizer state', trainer.state_shape.opt_state),
                       ('moving average', trainer.state_shape.ema)):
        lines.append(f'{name:<17} {_mib(tree):,.1f} MiB in all')
    lines.append(f'state per device  {_mib_per_device(trainer):,.1f} MiB, and '
                 f'{_mib_per_device(trainer, "trainable"):,.1f} MiB of gradients')
    if trainer.frozen:
        lines.insert(-1, f'{"frozen":<17} {_mib(trainer.frozen):,.1f} MiB in all')
    places = jax.tree.map(lambda x: x.sharding, trainer.frozen)
    _, memory = compile_step(trainer.step, trainer.state_shape, trainer.param_shardings,
                             trainer.frozen, places, batch, trainer.mesh)
    lines.append(f'one step needs    {memory}')
    lines += ['', 'parameter' + ' ' * 43 + 'shape' + ' ' * 19 + 'split over']
    places = jax.tree.leaves(trainer.param_shardings)
    for (path, x), place in zip(jax.tree_util.tree_leaves_with_path(trainer.state_shape.trainable),
                                places, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        split = ', '.join(str(axis) for axis in place.spec if axis) or 'nothing: whole everywhere'
        lines.append(f'{name:<51} {x.shape!s:<23} {split}')
    return '\n'.join(lines)


def _mib(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 2**20


def _mib_per_device(trainer, part=''):
    state = getattr(trainer.state_shape, part) if part else trainer.state_shape
    places = getattr(trainer.state_shardings, part) if part else trainer.state_shardings
    size = lambda x, place: x.dtype.itemsize * math.prod(place.shard_shape(x.shape))
    return sum(jax.tree.leaves(jax.tree.map(size, state, places))) / 2**20
