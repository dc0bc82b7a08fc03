"""Where every array lives: the mesh, the one table of logical axes, and constraints by name.

Parameters and activations name their axes ('batch', 'd_model', ...); `RULES` says over which
mesh axes each is split. There is one table for all presets: a preset is a mesh shape, and a mesh
axis of size 1 splits nothing, so the same program runs as data-parallel, FSDP, tensor-parallel or
a mixture.
"""

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxllm.errors import InputError

MESH_AXES = ('data', 'fsdp', 'tensor', 'sequence', 'expert')

# Read left to right over an array's axes: a mesh axis taken by an earlier array axis is not used
# again. So activations [batch, seq, d_model] are split over data and fsdp by batch and whole in
# d_model, while a weight [d_model, d_ff] is split over fsdp and tensor.
RULES = {
    'batch': ('data', 'fsdp'),
    'rows': ('data',),  # a batch while d_model is split over fsdp
    'seq': ('sequence',),
    'd_model': ('fsdp',),
    'd_ff': ('tensor',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'head_dim': (),
    'vocab': ('tensor',),
    'layers': (),
    'experts': ('expert',),
    'positions': (),
}

# -1 takes all devices that the other axes leave.
PRESETS = {
    'dp': {'data': -1},
    'fsdp': {'fsdp': -1},
    'tp': {'tensor': -1},
    'fsdp_tp': {'fsdp': -1, 'tensor': 2},
    'dp_fsdp': {'data': 2, 'fsdp': -1},
    'dp_fsdp_tp': {'data': 2, 'fsdp': -1, 'tensor': 2},
}

# Query heads are split over `tensor`; where there are fewer key-value heads than that, each device
# keeps them all (as in multi-query attention). Any other axis that does not divide is an error.
_MAY_REPLICATE = ('kv_heads',)


@dataclasses.dataclass(frozen=True)
class ShardingConfig:
    """`preset` names a mesh shape; a non-zero axis size overrides the preset's."""
    preset: str = 'fsdp'
    data: int = 0
    fsdp: int = 0
    tensor: int = 0


_DEFAULT = ShardingConfig()


def mesh_shape(config, num_devices):
    """Returns {mesh axis: size} whose product is `num_devices`, or raises InputError."""
    if config.preset not in PRESETS:
        raise InputError(f'sharding.preset={config.preset!r} is unknown; use one of '
                         f'{", ".join(PRESETS)}')
    sizes = {axis: 1 for axis in MESH_AXES} | PRESETS[config.preset]
    for axis in ('data', 'fsdp', 'tensor'):
        size = getattr(config, axis)
        if size < -1:
            raise InputError(f'sharding.{axis}={size} is no axis size; use -1 (the rest), '
                             '0 (as the preset says) or a positive number')
        if size:
            sizes[axis] = size
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise InputError(f'sharding: {" and ".join(free)} are both -1; give all but one a size, '
                         f'e.g. --config.sharding.{free[0]}=1')
    # On a machine with fewer devices than a preset's fixed axes want (a laptop), drop those axes to
    # what is there, unless the user asked for the size in so many words.
    for axis in ('tensor', 'data'):
        if num_devices % fixed and not getattr(config, axis) and sizes[axis] > 1:
            fixed //= sizes[axis]
            sizes[axis] = 1
    if num_devices % fixed or (not free and fixed != num_devices):
        shape = {axis: size for axis, size in sizes.items() if size != 1}
        raise InputError(f'mesh {shape} does not fit {num_devices} devices; use sizes whose '
                         'product is the number of devices, or -1 for one of them')
    if free:
        sizes[free[0]] = num_devices // fixed
    return sizes


def make_mesh(config=_DEFAULT, devices=None):
    """A mesh over `devices` (default: all) with axes MESH_AXES, in Auto mode."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_shape(config, len(devices))
    return jax.make_mesh(tuple(sizes[a] for a in MESH_AXES), MESH_AXES, devices=devices,
                         axis_types=(AxisType.Auto,) * len(MESH_AXES))


def platform():
    """'cpu', 'gpu' or 'tpu': of the mesh if one is set (compilation ahead of time), else ours."""
    device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
    return (device and device.platform) or jax.default_backend()


def spec(axes, shape, mesh):
    """PartitionSpec of an array with logical `axes` (a name or None each) and `shape` on `mesh`.

    Raises:
      ValueError: an axis name that RULES does not know, or another number of axes than dimensions.
      InputError: a dimension that does not divide over its mesh axes.
    """
    if len(axes) != len(shape):
        raise ValueError(f'{len(axes)} logical axes {axes} for an array of shape {tuple(shape)}')
    taken, entries = set(), []
    for axis, size in zip(axes, shape, strict=True):
        if axis is None:
            entries.append(None)
            continue
        if axis not in RULES:
            raise ValueError(f'unknown logical axis {axis!r}; known: {", ".join(RULES)}')
        mesh_axes = tuple(a for a in RULES[axis] if a not in taken and mesh.shape[a] > 1)
        ways = math.prod(mesh.shape[a] for a in mesh_axes)
        if size % ways:
            if axis not in _MAY_REPLICATE:
                raise InputError(
                    f'{axis}={size} does not divide over {ways} devices of mesh axes '
                    f'{mesh_axes} (mesh { {a: n for a, n in mesh.shape.items() if n > 1} }); use '
                    f'a multiple of {ways} or another --config.sharding.preset')
            mesh_axes = ()
        taken.update(mesh_axes)
        entries.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
    return PartitionSpec(*entries)


def constrain(x, *axes):
    """Pins the sharding of activation `x` by logical axis names; a no-op only in what it computes.

    Raises:
      ValueError: no mesh is set (use `jax.set_mesh`), or an unknown axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ValueError('constrain() needs a mesh: run under `with jax.set_mesh(make_mesh(...))`')
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))


def is_axes(x):
    """True for a tuple of logical axis names, the leaves of an axes tree."""
    return isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)


def shardings(axes_tree, shape_tree, mesh):
    """NamedShardings of a tree of shapes from the tree of their logical axes."""
    return jax.tree.map(lambda axes, x: NamedSharding(mesh, spec(axes, x.shape, mesh)),
                        axes_tree, shape_tree, is_leaf=is_axes)


def replicated(mesh: Mesh):
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh):
    """Over how many devices the batch axis is split."""
    return math.prod(mesh.shape[a] for a in RULES['batch'])


def batch_shardings(batch, mesh):
    """NamedShardings of a batch: every array is split along its first axis.

    Only the names and ranks of `batch` matter, so a process's part of it does as well as the whole.
    """
    rows = spec(('batch',), (batch_ways(mesh),), mesh)
    return jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec(*rows)), batch)
