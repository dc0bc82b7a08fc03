"""Matrices in few bits against values by hand, error bounds, and what they cost in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.models import lora, quantize, transformer

pytestmark = pytest.mark.usefixtures('mesh')

# The data type's 16 values as printed in the QLoRA paper (arXiv 2305.14314), appendix E.
PUBLISHED = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
             -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
             0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
             0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
# The places of inputs and features in a kernel: q, o, and stacks of them.
SHAPES = [((12, 3, 5), (0,)), ((4, 6, 7), (0, 1)), ((2, 10, 3, 5), (1,)), ((2, 3, 80, 5), (1, 2))]


def _kernel(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _round_trip(kernel, inputs, kind):
    leaves = quantize.quantise(kernel, inputs, kind)
    assert quantize.kernel_shape(leaves, inputs) == kernel.shape
    return leaves, np.asarray(quantize.dequantise(leaves, inputs, jnp.float32))


def test_the_code_book_is_the_published_one():
    np.testing.assert_allclose(quantize.NF4, PUBLISHED, atol=2e-6)
    assert quantize.NF4[0] == -1 and quantize.NF4[7] == 0 and quantize.NF4[15] == 1
    assert np.all(np.diff(quantize.NF4) > 0)


def test_int8_by_hand():
    """Two features: max 2.54 and 127 give steps of 0.02 and 1; 0.03 is a step and a half."""
    kernel = np.float32([[2.54, 127], [-1.0, -3.4], [0.029, 0.4]])
    leaves, back = _round_trip(kernel, (0,), 'int8')
    np.testing.assert_array_equal(leaves['kernel_int8'], [[127, 127], [-50, -3], [1, 0]])
    np.testing.assert_allclose(leaves['kernel_scale'], [0.02, 1], rtol=1e-6)
    np.testing.assert_allclose(back, [[2.54, 127], [-1, -3], [0.02, 0]], rtol=1e-6)


def test_nf4_by_hand():
    """One block of four inputs of one feature, absmax 2: codes 15, 7, 0 and 12; low half first."""
    kernel = np.float32([[2.0], [0.05], [-1.9], [0.9]])
    leaves, back = _round_trip(kernel, (0,), 'nf4')
    assert leaves['kernel_nf4'].dtype == jnp.uint8
    np.testing.assert_array_equal(leaves['kernel_nf4'], [[15 + 16 * 7], [0 + 16 * 12]])
    np.testing.assert_array_equal(leaves['kernel_absmax'], [[2]])
    np.testing.assert_allclose(back[:, 0], 2 * np.take(PUBLISHED, [15, 7, 0, 12]), atol=1e-5)


@pytest.mark.parametrize('shape,inputs', SHAPES)
def test_errors_are_at_most_half_a_step(shape, inputs):
    for seed in range(5):
        kernel = _kernel(shape, seed) * 10.0 ** seed
        _, back = _round_trip(kernel, inputs, 'int8')
        step = np.abs(kernel).max(inputs, keepdims=True) / 127
        assert np.all(np.abs(back - kernel) <= step / 2 * 1.001)

        _, back = _round_trip(kernel, inputs, 'nf4')
        error, axis = np.abs(back - kernel), inputs[-1]
        size = quantize.block_size(shape[axis])
        for first in range(0, shape[axis], size):
            block = functools.partial(np.take, indices=range(first, first + size), axis=axis)
            absmax = np.abs(block(kernel)).max(axis, keepdims=True)
            # The widest gap is that from -1 to its neighbour.
            assert np.all(block(error) <= absmax * (1 - 0.6961928) / 2 * 1.001)
            # The largest of a block is exact, and zero is a code.
            assert np.all(block(error).min(axis) == 0)

        _, back = _round_trip(kernel, inputs, 'bfloat16')
        np.testing.assert_array_equal(back, kernel.astype(jnp.bfloat16).astype(np.float32))
        leaves, back = _round_trip(kernel, inputs, 'float32')
        np.testing.assert_array_equal(back, kernel)


@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_a_matrix_of_zeros_stays_zero(kind):
    _, back = _round_trip(np.zeros((4, 3), np.float32), (0,), kind)
    np.testing.assert_array_equal(back, 0)


def test_an_outlier_spoils_its_own_block_alone():
    kernel = _kernel((192, 2))
    _, before = _round_trip(kernel, (0,), 'nf4')
    kernel[70, 1] = 1e4
    _, after = _round_trip(kernel, (0,), 'nf4')
    changed = np.argwhere(before != after)
    assert len(changed) > 30 and np.all((changed[:, 0] // 64 == 1) & (changed[:, 1] == 1))


def test_block_sizes():
    assert [quantize.block_size(n) for n in (576, 1536, 96, 80, 6, 2)] == [64, 64, 48, 40, 6, 2]
    with pytest.raises(InputError, match="15 inputs.*lora.base='int8'"):
        quantize.quantise(_kernel((15, 4)), (0,), 'nf4')


@pytest.mark.parametrize('kind', ['bfloat16', 'int8', 'nf4'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_frozen_product_and_its_gradient_are_those_of_the_dense_matrix(kind, dtype):
    """o's kernel: two input axes, one feature axis."""
    leaves, dense = _round_trip(_kernel((4, 6, 7)), (0, 1), kind)
    x = jnp.asarray(_kernel((2, 3, 4, 6), 1), dtype)
    dy = jnp.asarray(_kernel((2, 3, 7), 2), dtype)
    y, back = jax.vjp(lambda x: quantize.frozen_dot(x, leaves, 2), x)
    dx, = back(dy)
    dense, f64 = np.float64(dense), lambda x: np.asarray(x, np.float64)
    tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == jnp.float32 else dict(rtol=0.05, atol=0.1)
    np.testing.assert_allclose(f64(y), np.einsum('blhc,hcd->bld', f64(x), dense), **tolerance)
    np.testing.assert_allclose(f64(dx), np.einsum('bld,hcd->blhc', f64(dy), dense), **tolerance)
    assert y.dtype == dx.dtype == dtype


def _wide(dtype='float32'):
    """Kernels of 12 layers are most of the model: 12 x 983,040 weights."""
    return toy_models.config('llama', d_model=256, d_ff=1024, num_layers=12, dtype=dtype,
                             attention__num_heads=4, attention__head_dim=64)


@pytest.mark.parametrize('kind,bytes_per_weight', [
    ('float32', 4), ('bfloat16', 2), ('int8', 1 + 4 / 256), ('nf4', 0.5 + 4 / 64)])
def test_bytes_of_the_frozen_tree(kind, bytes_per_weight):
    shapes = toy_models.shapes(_wide())
    config = lora.LoraConfig(4, 8., ('*',), False, False, False, kind)
    base = jax.eval_shape(lambda p: lora.prepare_base(p, config), shapes)
    assert transformer.num_params(base) == transformer.num_params(shapes)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    kernels = 12 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 1024)
    # int8 has one scale per feature; o and down have more inputs for it, 256 is the least.
    want = size(shapes) - 4 * kernels + bytes_per_weight * kernels
    assert want * (0.98 if kind == 'int8' else 1) <= size(base) <= want


def test_one_layer_is_dense_at_a_time():
    """Gradients of an adapter: temporaries do not grow by the dense matrices of twelve layers
    (45 MiB), though without remat the forward pass could keep them for the backward one."""
    def temporaries(kind, dtype):
        cfg = _wide(dtype)
        config = lora.LoraConfig(4, 8., ('*',), False, False, False, kind)
        shapes = toy_models.shapes(cfg)
        base = jax.eval_shape(lambda p: lora.prepare_base(p, config), shapes)
        adapter = jax.eval_shape(lambda p: lora.init_adapter(jax.random.key(0), p, config), shapes)

        def loss(adapter, base):
            params = lora.combine(base, adapter, config)
            return jnp.sum(transformer.apply_hidden(params, cfg, jnp.zeros((1, 8), jnp.int32)))

        compiled = jax.jit(jax.grad(loss)).lower(adapter, base).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 2**20

    for kind, dtype in (('bfloat16', 'float32'), ('nf4', 'bfloat16')):
        assert temporaries(kind, dtype) < 14, (kind, dtype)
