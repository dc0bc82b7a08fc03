"""Smaller storage of frozen kernels: bfloat16, int8 per output channel, or 4-bit NormalFloat.

A kernel [*inputs, *features] becomes other leaves beside its bias, and a Linear turns them back
into numbers of the compute dtype, layer by layer, so that one layer at a time is dense:

    int8   kernel_int8 [*inputs, *features] int8, kernel_scale [*features] float32
           W = kernel_int8 * kernel_scale
    nf4    kernel_nf4 [*inputs, ..., last / 2] uint8 (the even element in the low four bits),
           kernel_absmax [*inputs, ..., last / block] float32, blocks of at most 64 along the last
           axis W = NF4[code] * kernel_absmax of its block

Stacked layers have their leading axis as everywhere.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from jaxllm.errors import InputError

KINDS = ('float32', 'bfloat16', 'int8', 'nf4')
BLOCK = 64
# How many leading axes of a kernel are inputs, by the name of its layer.
NUM_INPUTS = {'q': 1, 'k': 1, 'v': 1, 'o': 2, 'up': 1, 'gate': 1, 'down': 1}


def _nf4_table():
    """The 16 values of 4-bit NormalFloat, in [-1, 1], 0 among them.

    Quantiles of a unit normal, 8 on the negative side and 9 on the positive one (0 is of both),
    scaled to 1 at the ends.

    Ref: Dettmers et al. 2023, QLoRA (arXiv 2305.14314), section 3 and appendix E.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    positive = norm.ppf(np.linspace(outermost, 0.5, 9))[:-1]
    negative = -norm.ppf(np.linspace(outermost, 0.5, 8))[:-1]
    values = np.sort(np.concatenate([positive, [0.0], negative]))
    return (values / np.abs(values).max()).astype(np.float32)


NF4 = _nf4_table()


def block_size(size):
    """Elements per block along an axis of `size`: its largest even divisor up to BLOCK."""
    if size % 2:
        raise InputError(f'nf4 stores two numbers per byte along the last axis of a kernel, and '
                         f'one has {size} there; use base=int8')
    return max(b for b in range(2, min(BLOCK, size) + 1, 2) if size % b == 0)


def quantize_kernel(kernel, kind, num_inputs, stacked):
    """The leaves that stand in place of a float32 `kernel`.

    Args:
      kernel: [*inputs, *features], with a leading axis of layers if `stacked`.
      kind: of KINDS.
      num_inputs: how many axes are inputs.
    """
    if kind in ('float32', 'bfloat16'):
        return {'kernel': kernel.astype(kind)}
    if kind == 'int8':
        axes = tuple(range(stacked, stacked + num_inputs))
        scale = jnp.max(jnp.abs(kernel), axis=axes, keepdims=True) / 127
        codes = jnp.round(kernel / jnp.where(scale > 0, scale, 1.0)).astype(jnp.int8)
        return {'kernel_int8': codes, 'kernel_scale': jnp.squeeze(scale, axes)}
    block = block_size(kernel.shape[-1])
    blocks = kernel.reshape(*kernel.shape[:-1], -1, block)
    absmax = jnp.max(jnp.abs(blocks), axis=-1)
    unit = blocks / jnp.where(absmax > 0, absmax, 1.0)[..., None]
    # The nearest value: how many of the 15 midpoints lie below.
    middles = (NF4[1:] + NF4[:-1]) / 2
    codes = jnp.searchsorted(jnp.asarray(middles), unit.reshape(kernel.shape)).astype(jnp.uint8)
    return {'kernel_nf4': codes[..., ::2] | codes[..., 1::2] << 4, 'kernel_absmax': absmax}


def dense_kernel(leaves, dtype):
    """The kernel of a Linear's leaves in `dtype`, whatever it is stored as; int8 without its
    scale, which belongs on the output."""
    if 'kernel' in leaves:
        return leaves['kernel'].astype(dtype)
    if 'kernel_int8' in leaves:
        return leaves['kernel_int8'].astype(dtype)
    packed, absmax = leaves['kernel_nf4'], leaves['kernel_absmax']
    codes = jnp.stack([packed & 15, packed >> 4], axis=-1)
    values = jnp.asarray(NF4)[codes.astype(jnp.int32)].reshape(*absmax.shape, -1)
    shape = (*packed.shape[:-1], 2 * packed.shape[-1])
    return (values * absmax[..., None]).reshape(shape).astype(dtype)


def dequantize_kernel(leaves, num_inputs, stacked):
    """The float32 kernel that a Linear's leaves stand for."""
    kernel = dense_kernel(leaves, jnp.float32)
    if 'kernel_scale' not in leaves:
        return kernel
    axes = tuple(range(stacked, stacked + num_inputs))
    return kernel * jnp.expand_dims(leaves['kernel_scale'], axes)


def kernel_shape(leaves):
    """Shape of the kernel that a Linear's leaves stand for."""
    if 'kernel_nf4' in leaves:
        *rest, last = leaves['kernel_nf4'].shape
        return (*rest, 2 * last)
    return (leaves['kernel'] if 'kernel' in leaves else leaves['kernel_int8']).shape


def is_linear(path, tree):
    """Whether the node `tree` at `path` (names) holds the leaves of a Linear of the stack."""
    return (len(path) > 0 and path[-1] in NUM_INPUTS
            and any(name.startswith('kernel') for name in tree))


def linears(params):
    """{path: leaves} of all Linear layers of the stack, in order of their paths."""
    found = {}

    def visit(path, node):
        if not isinstance(node, dict):
            return
        if is_linear(path, node):
            found[path] = node
            return
        for name in sorted(node):
            visit((*path, name), node[name])
    visit((), params)
    return found


def is_stacked(path):
    """Whether the layers of the node at `path` are stacked along a leading axis."""
    return 'layers' in path


def quantize(params, kind):
    """`params` with every Linear kernel of the stack stored as `kind`; all else as it was."""
    if kind not in KINDS:
        raise InputError(f'lora.base={kind!r} is unknown; use one of {", ".join(KINDS)}')
    return map_linears(params, lambda path, leaves: {
        **{name: x for name, x in leaves.items() if not name.startswith('kernel')},
        **quantize_kernel(leaves['kernel'], kind, NUM_INPUTS[path[-1]], is_stacked(path))})


def dequantize(params):
    """`params` with every Linear kernel of the stack as a float32 'kernel'."""
    return map_linears(params, lambda path, leaves: {
        **{name: x for name, x in leaves.items() if not name.startswith('kernel')},
        'kernel': dequantize_kernel(leaves, NUM_INPUTS[path[-1]], is_stacked(path))})


def map_linears(params, change, path=()):
    """`params` with change(path, leaves) in place of the leaves of each Linear."""
    if not isinstance(params, dict):
        return params
    if is_linear(path, params):
        return change(path, params)
    return {name: map_linears(node, change, (*path, name)) for name, node in params.items()}


def num_bytes(tree):
    """Bytes of all arrays of a tree (or of their shapes)."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
