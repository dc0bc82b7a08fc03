"""The arithmetic of low-rank adapters: what a layer adds to x W, and which matrix it stands for.

A has shape [*inputs, R] and B [R, *features]; LoRA's scale s is already in B.
"""

import jax
import jax.numpy as jnp


def dot(x, kernel, in_dims):
    """x W over the last `in_dims` axes of x."""
    rows, mesh = x.shape[:x.ndim - in_dims], jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        # Rows as one axis: else the CPU compiler transposes both operands of the kernel's gradient.
        x = x.reshape(-1, *x.shape[x.ndim - in_dims:])
    contract = tuple(range(x.ndim - in_dims, x.ndim)), tuple(range(in_dims))
    y = jax.lax.dot_general(x, kernel, (contract, ((), ())))
    return y.reshape(*rows, *kernel.shape[in_dims:])


def update(x, a, b):
    """(x A) B: the matrix A B of the kernel's shape is never made, nor is its gradient."""
    return dot(dot(x, a.astype(x.dtype), a.ndim - 1), b.astype(x.dtype), 1)


def column_norms(kernel, a, b):
    """|W + A B| of every output feature over its inputs, [*features] float32, without W + A B.

    |w + A b|^2 = |w|^2 + 2 b^T (A^T w) + b^T (A^T A) b
    """
    kernel, inputs = kernel.astype(jnp.float32), tuple(range(a.ndim - 1))
    over_inputs = lambda x, y: jax.lax.dot_general(x, y, ((inputs, inputs), ((), ())),
                                                   precision='highest')
    cross = over_inputs(a, kernel)  # [R, *features]
    gram = jax.lax.dot_general(over_inputs(a, a), b, (((1,), (0,)), ((), ())), precision='highest')
    squares = jnp.sum(kernel ** 2, inputs) + jnp.sum(b * (2 * cross + gram), 0)
    return jnp.sqrt(jnp.maximum(squares, 1e-30))


def magnitude_scale(magnitude, kernel, a, b):
    """m / |W + A B|, by which DoRA multiplies every output feature (Liu 2024, arXiv 2402.09353).

    The norm is a constant to the gradient (4.3 there).
    """
    return magnitude / column_norms(*map(jax.lax.stop_gradient, (kernel, a, b)))


def merged(kernel, a, b, magnitude=None):
    """The one float32 matrix that computes the same: W + A B, or m (W + A B) / |W + A B|."""
    kernel = kernel + jax.lax.dot_general(a, b, (((a.ndim - 1,), (0,)), ((), ())),
                                          precision='highest')
    if magnitude is None:
        return kernel
    inputs = tuple(range(a.ndim - 1))
    norms = jnp.sqrt(jnp.maximum(jnp.sum(kernel ** 2, inputs), 1e-30))
    return kernel * jnp.expand_dims(magnitude / norms, inputs)
