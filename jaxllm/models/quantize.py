"""Frozen weight matrices in few bits: bfloat16, int8 and 4-bit NormalFloat.

What is frozen needs no gradient and no optimiser, and may be stored as coarsely as the forward pass
bears. In place of a Linear layer's `kernel` stand one or two other leaves:

  float32    kernel
  bfloat16   kernel_bfloat16
  int8       kernel_int8 [*inputs, *features], kernel_scale [*features] float32:
             W = int8 * scale, scale = max |W| / 127 over the inputs of each output feature
  nf4        kernel_nf4 [..., inputs / 2, *features] uint8, kernel_absmax [..., blocks, *features]:
             W = code[nibble] * absmax, in blocks along the last input axis (Dettmers 2023, QLoRA,
             arXiv 2305.14314, 3; the absmax stay float32: there is no double quantisation)

All forms keep the kernel's axes in their order, so that they are sharded and scanned as it is.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import InputError
from jaxllm.models import low_rank

KINDS = ('float32', 'bfloat16', 'int8', 'nf4')
MATRICES = ('kernel', 'kernel_bfloat16', 'kernel_int8', 'kernel_nf4')  # in the order of KINDS
CONSTANTS = ('kernel_scale', 'kernel_absmax')
BLOCK = 64


def _code_book():
    """The 16 values of NormalFloat, [-1, 1]: quantiles of a normal distribution, zero among them.

    Half of the normal's mass is cut into 8 steps on the positive side and 7 on the negative one;
    the outermost quantile is the mean of those that 30 and 32 equal parts would have (QLoRA, 3,
    "4-bit NormalFloat Quantization", equation 4 and below).
    """
    quantile = statistics.NormalDist().inv_cdf
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    side = lambda steps: [quantile(outermost + (0.5 - outermost) * i / steps) for i in range(steps)]
    values = np.array([-x for x in side(7)] + [0.0] + side(8)[::-1])
    return (values / quantile(outermost)).astype(np.float32)


NF4 = _code_book()
_BOUNDS = (NF4[1:] + NF4[:-1]) / 2
# Both values of a byte: the first input is in its low half.
_PAIRS = np.stack([NF4[np.arange(256) % 16], NF4[np.arange(256) // 16]], axis=-1)


def stored(leaves):
    """The leaves of a Linear layer's parameters that hold its matrix, {name: array}."""
    return {name: leaves[name] for name in MATRICES + CONSTANTS if name in leaves}


def in_few_bits(params):
    """Whether any matrix in a tree of parameters is."""
    return any(path[-1].key in MATRICES[1:]
               for path, _ in jax.tree_util.tree_leaves_with_path(params))


def kernel_shape(leaves, inputs):
    """The shape of the matrix that `leaves` hold."""
    name, = (name for name in MATRICES if name in leaves)
    shape = list(leaves[name].shape)
    if name == 'kernel_nf4':
        shape[inputs[-1]] *= 2
    return tuple(shape)


def block_size(num_inputs):
    """Inputs per block of nf4: the largest even divisor of `num_inputs` up to BLOCK."""
    if num_inputs % 2:
        raise InputError(f'a kernel with {num_inputs} inputs cannot be stored as nf4, two weights '
                         "to a byte; use lora.base='int8'")
    return max(n for n in range(2, BLOCK + 1, 2) if num_inputs % n == 0)


@functools.partial(jax.jit, static_argnames=('inputs', 'kind'))
def quantise(kernel, inputs, kind):
    """The leaves of `kind` for a float32 kernel.

    Args:
      kernel: float32; a stack of kernels has its leading axis in front.
      inputs: indices of its input axes, ascending and adjacent.
      kind: one of KINDS.

    Returns:
      {leaf name: array}.
    """
    if kind == 'float32':
        return {'kernel': kernel}
    if kind == 'bfloat16':
        return {'kernel_bfloat16': jax.lax.bitcast_convert_type(kernel.astype(jnp.bfloat16),
                                                                jnp.uint16)}
    if kind == 'int8':
        scale = jnp.max(jnp.abs(kernel), axis=inputs, keepdims=True) / 127
        steps = jnp.round(kernel / jnp.where(scale > 0, scale, 1))
        return {'kernel_int8': steps.astype(jnp.int8), 'kernel_scale': jnp.squeeze(scale, inputs)}
    axis = inputs[-1]
    blocks = _split(kernel, axis, block_size(kernel.shape[axis]))
    absmax = jnp.max(jnp.abs(blocks), axis=axis + 1, keepdims=True)
    codes = jnp.searchsorted(_BOUNDS, blocks / jnp.where(absmax > 0, absmax, 1))
    codes = _split(codes.astype(jnp.uint8).reshape(kernel.shape), axis, 2)
    low, high = (jax.lax.index_in_dim(codes, i, axis + 1, keepdims=False) for i in (0, 1))
    return {'kernel_nf4': low | (high << 4), 'kernel_absmax': jnp.squeeze(absmax, axis + 1)}


def dequantise(leaves, inputs, dtype):
    """The matrix that `leaves` (those of `stored`) hold, in `dtype`; the inverse of `quantise`."""
    if 'kernel_int8' in leaves:
        scale = jnp.expand_dims(leaves['kernel_scale'], inputs)
        return (leaves['kernel_int8'].astype(jnp.float32) * scale).astype(dtype)
    if 'kernel_nf4' in leaves:
        packed, absmax, axis = leaves['kernel_nf4'], leaves['kernel_absmax'], inputs[-1]
        shape = kernel_shape(leaves, inputs)
        pairs = jnp.moveaxis(jnp.asarray(_PAIRS)[packed], -1, axis + 1)
        blocks = _split(pairs.reshape(shape), axis, shape[axis] // absmax.shape[axis])
        return (blocks * jnp.expand_dims(absmax, axis + 1)).reshape(shape).astype(dtype)
    if 'kernel_bfloat16' in leaves:
        return jax.lax.bitcast_convert_type(leaves['kernel_bfloat16'], jnp.bfloat16).astype(dtype)
    return leaves['kernel'].astype(dtype)


def _split(x, axis, size):
    """[..., I, ...] -> [..., I / size, size, ...]."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def frozen_dot(x, leaves, in_dims):
    """x W over the last `in_dims` axes of x, for a matrix that is stored in fewer bits.

    The dense matrix lives for the length of this product, in the compute dtype, and is made again
    in the backward pass: kept for it, the matrices of all layers would be in memory at once. There
    is no gradient by W.
    """
    return low_rank.dot(x, dequantise(leaves, tuple(range(in_dims)), x.dtype), in_dims)


def _frozen_dot_fwd(x, leaves, in_dims):
    return frozen_dot(x, leaves, in_dims), leaves


def _frozen_dot_bwd(in_dims, leaves, dy):
    kernel = dequantise(leaves, tuple(range(in_dims)), dy.dtype)
    features = kernel.ndim - in_dims
    contract = (tuple(range(dy.ndim - features, dy.ndim)), tuple(range(in_dims, kernel.ndim)))
    return jax.lax.dot_general(dy, kernel, (contract, ((), ()))), None


frozen_dot.defvjp(_frozen_dot_fwd, _frozen_dot_bwd)
