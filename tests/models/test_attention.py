"""Every implementation of attention against the plain one, and the plain one against a loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.models import attention_blocks
from jaxllm.models.attention import attention
from jaxllm.sharding import ShardingConfig, batch_shardings, make_mesh

B, L, K, G, C = 2, 70, 3, 2, 8
H = K * G
SCALE = 0.4
# Such a collective moves nothing. XLA writes it as a list, or as the mesh axes, here of size 1.
GROUPS_OF_ONE = r"replica_groups=(\{\{0\},\{1\},|mesh\[[^]]*\] \{'sequence','expert'\})"
MASKS = {'causal': (0, 0.0), 'window': (9, 0.0), 'softcap': (0, 1.5), 'both': (37, 1.5)}


def make_inputs(b, l, h, k, c, seed=0):
    """q, k, v and a cotangent of the output."""
    keys = jax.random.split(jax.random.key(seed), 4)
    return tuple(np.asarray(jax.random.normal(key, (b, l, n, c)))
                 for key, n in zip(keys, (h, k, k, h), strict=True))


@pytest.fixture(scope='module')
def inputs():
    return make_inputs(B, L, H, K, C)


@pytest.fixture(scope='module')
def segments():
    """Ragged documents with padding in front, between and behind; the first comes back at 50."""
    first = np.repeat([1, 2, 0, 1, 3, 0], [21, 10, 19, 3, 12, 5])
    second = np.repeat([0, 7, 8], [4, 40, 26])
    return np.stack([first, second]).astype(np.int32)


def output_and_gradients(inputs, seg, **options):
    *qkv, dout = inputs

    def run(qkv, dout, seg):
        out, vjp = jax.vjp(lambda q, k, v: attention(q, k, v, seg, seg, **options), *qkv)
        return out, vjp(dout)
    return jax.jit(run)(qkv, dout, seg)


def assert_close(got, expected, tolerance=1e-5):
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.shape == e.shape and g.dtype == e.dtype
        np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('mask', MASKS)
def test_plain_by_hand(inputs, segments, mask):
    q, k, v, _ = inputs
    window, softcap = MASKS[mask]
    got = attention(q, k, v, segments, segments, window=window, softcap=softcap, scale=SCALE,
                    impl='xla')
    for b, l, h in ((0, 0, 0), (0, 20, 5), (0, 40, 1), (0, 52, 2), (1, 2, 3), (1, 43, 4)):
        seen = [m for m in range(l + 1)
                if segments[b, m] == segments[b, l] != 0 and (not window or l - m < window)]
        scores = np.array([SCALE * np.dot(q[b, l, h], k[b, m, h // G]) for m in seen])
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        probs = np.exp(scores) / np.sum(np.exp(scores))
        expected = sum((p * v[b, m, h // G] for p, m in zip(probs, seen, strict=True)), np.zeros(C))
        np.testing.assert_allclose(got[b, l, h], expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope='module', params=MASKS)
def oracle(request, inputs, segments):
    window, softcap = MASKS[request.param]
    options = dict(window=window, softcap=softcap, scale=SCALE)
    return options, output_and_gradients(inputs, segments, impl='xla', **options)


@pytest.mark.parametrize('impl, chunk_size', [('chunked', 16), ('chunked', 0), ('splash', 0)])
def test_implementations_agree(inputs, segments, oracle, impl, chunk_size):
    options, expected = oracle
    got = output_and_gradients(inputs, segments, impl=impl, chunk_size=chunk_size, **options)
    assert_close(got, expected)


@pytest.mark.parametrize('window', [0, 130])
def test_unequal_blocks(window, monkeypatch):
    """Key blocks longer than query blocks, as chosen for long sequences."""
    monkeypatch.setattr(attention_blocks, '_BLOCKS', ((32, 64),))
    inputs = make_inputs(1, 300, 2, 1, 4)
    seg = np.repeat([[1, 2, 0]], [150, 130, 20], axis=1)
    options = dict(window=window, softcap=0.0, scale=SCALE)
    assert_close(output_and_gradients(inputs, seg, impl='chunked', **options),
                 output_and_gradients(inputs, seg, impl='xla', **options))


@pytest.mark.parametrize('impl', ['xla', 'chunked', 'splash'])
def test_padding_gives_zeros_and_no_gradient(inputs, segments, impl):
    out, (dq, dk, dv) = output_and_gradients(inputs, segments, impl=impl, scale=SCALE)
    for x in (out, dq, dk, dv):
        assert np.all(np.isfinite(x))
        assert not np.any(np.asarray(x)[segments == 0])
        assert np.any(np.asarray(x)[segments != 0])


@pytest.mark.parametrize('impl', ['xla', 'chunked', 'splash'])
def test_all_padding(inputs, segments, impl):
    out, grads = output_and_gradients(inputs, 0 * segments, impl=impl, scale=SCALE)
    assert not any(np.any(x) for x in (out, *grads))


@pytest.mark.parametrize('impl', ['xla', 'chunked', 'splash'])
def test_no_gradient_between_segments(inputs, segments, impl):
    """The cotangent is that of segment 1; the rest of the batch gets exactly 0."""
    q, k, v, dout = inputs
    dout = dout * (segments == 1)[:, :, None, None]
    _, grads = output_and_gradients((q, k, v, dout), segments, impl=impl, scale=SCALE)
    for grad in grads:
        assert np.any(np.asarray(grad)[segments == 1])
        assert not np.any(np.asarray(grad)[segments != 1])


@pytest.mark.parametrize('impl', ['chunked', 'splash'])
def test_large_scores(inputs, segments, impl):
    """Scores of +-1e4 overflow exp() unless the maximum is taken out."""
    options = dict(scale=2e3)
    got = output_and_gradients(inputs, segments, impl=impl, chunk_size=16, **options)[0]
    assert_close(got, output_and_gradients(inputs, segments, impl='xla', **options)[0], 1e-3)
    assert np.all(np.isfinite(got))


@pytest.mark.parametrize('impl', ['xla', 'chunked', 'splash'])
def test_bfloat16(inputs, segments, impl):
    expected = output_and_gradients(inputs, segments, impl='xla', scale=SCALE)
    low = tuple(x.astype(jnp.bfloat16) for x in inputs)
    got = output_and_gradients(low, segments, impl=impl, scale=SCALE, chunk_size=16)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(got))
    got = jax.tree.map(lambda x: x.astype(jnp.float32), got)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(g - e)) < 0.02 * np.max(np.abs(e))


@pytest.mark.parametrize('impl', ['auto', 'xla', 'chunked'])
@pytest.mark.parametrize('window', [0, 9])
def test_decoding_with_a_cache(inputs, segments, impl, window):
    """Two queries per row, at rows' own places in the cache == these rows of self-attention."""
    q, k, v, _ = inputs
    index = np.array([[20, 52], [43, 44]])
    full = attention(q, k, v, segments, segments, window=window, scale=SCALE, impl='xla')
    rows = np.arange(B)[:, None]
    got = attention(q[rows, index], k, v, segments[rows, index], segments, q_index_BL=index,
                    window=window, scale=SCALE, impl=impl)
    assert_close(got, full[rows, index])


@pytest.mark.parametrize('impl', ['xla', 'chunked', 'splash'])
def test_queries_of_the_last_tokens_alone(inputs, segments, oracle, impl):
    """As all queries, of which the first are not asked for: rows that go on from a prefix."""
    q, k, v, dout = inputs
    options, (out, _), first = *oracle, 23

    def run(q, k, v):
        return attention(q, k, v, segments[:, first:], segments, impl=impl, **options)
    got, vjp = jax.vjp(jax.jit(run), q[:, first:], k, v)
    assert_close(got, out[:, first:])
    whole = lambda q, k, v: attention(q, k, v, segments, segments, impl='xla', **options)[:, first:]
    want = jax.vjp(whole, q, k, v)[1](dout[:, first:])
    assert_close(vjp(dout[:, first:]), (want[0][:, first:], *want[1:]))


def sharded(impl, h, k, l=32, c=16):
    """Output and gradients compiled for 8 devices, batch and heads split, and their arguments."""
    b, mesh = 4, make_mesh(ShardingConfig('dp_fsdp_tp'))
    *qkv, dout = make_inputs(b, l, h, k, c)
    seg = np.repeat(np.array([[1, 2, 0]]), [13, l - 16, 3], axis=1) * np.ones((b, 1), np.int32)

    def run(qkv, dout, seg):
        out, vjp = jax.vjp(lambda q, k, v: attention(q, k, v, seg, seg, scale=SCALE, impl=impl,
                                                     chunk_size=8), *qkv)
        return out, vjp(dout)

    def placed(x):
        batch = batch_shardings({'x': x}, mesh)['x'].spec
        heads = 'tensor' if x.ndim == 4 and x.shape[2] % 2 == 0 else None
        return jax.NamedSharding(mesh, jax.P(batch[0], None, heads, None) if x.ndim == 4 else batch)

    args = (qkv, dout, seg)
    shardings = jax.tree.map(placed, args)
    outs = (shardings[1], tuple(shardings[0]))
    with jax.set_mesh(mesh):
        step = jax.jit(run, in_shardings=shardings, out_shardings=outs).lower(*args).compile()
        return step, jax.device_put(args, shardings), args


@pytest.mark.parametrize('impl', ['xla', 'chunked', 'splash'])
@pytest.mark.parametrize('heads, kv_heads', [(4, 2), (6, 3)])
def test_eight_devices(impl, heads, kv_heads):
    """As on one device, and no array is moved between devices."""
    step, placed, (qkv, dout, seg) = sharded(impl, heads, kv_heads)
    expected = output_and_gradients((*qkv, dout), seg, impl='xla', scale=SCALE)
    got = step(*placed)
    assert_close(got, expected)
    assert 'tensor' in got[0].sharding.spec
    moves = [line for line in step.as_text().splitlines()
             if re.search(r' all-(gather|to-all|reduce)(-start)?\(| collective-permute', line)
             and not re.search(GROUPS_OF_ONE, line)]
    if kv_heads % 2:  # backward, the gradients of a key head's copies have to meet
        assert all('transpose(jvp' in line for line in moves), moves
    else:
        assert not moves, moves


def temp_bytes(impl, l, heads=2, c=16):
    x = jax.ShapeDtypeStruct((1, l, heads, c), jnp.float32)
    seg = jax.ShapeDtypeStruct((1, l), jnp.int32)

    def run(q, k, v, dout, seg):
        out, vjp = jax.vjp(lambda *qkv: attention(*qkv, seg, seg, scale=SCALE, impl=impl,
                                                  chunk_size=128), q, k, v)
        return vjp(dout)
    return jax.jit(run).lower(x, x, x, x, seg).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_length():
    l, heads = 2048, 2
    small, large = temp_bytes('chunked', l), temp_bytes('chunked', 4 * l)
    scores = heads * l * l * 4
    assert temp_bytes('xla', l) > scores
    assert small < 0.1 * scores
    assert large < 5 * small


def test_masked_blocks_are_skipped():
    """NaN keys and values in blocks that nobody may see do no harm, so nobody looked at them."""
    q, k, v, _ = make_inputs(1, 64, 2, 1, 4)
    ones = np.ones((1, 64), np.int32)
    hidden = np.zeros((1, 64, 1, 1), bool)
    hidden[:, 48:] = True  # beyond the diagonal for the first 48
    hidden[:, :16] = True  # before the window for those from 32
    k, v = (np.where(hidden, np.nan, x) for x in (k, v))
    out = attention(q, k, v, ones, ones, window=9, scale=SCALE, impl='chunked', chunk_size=16)
    assert np.all(np.isfinite(out[:, 32:48])) and np.all(np.isnan(out[:, 48:]))


def test_refusals(inputs, segments):
    q, k, v, _ = inputs

    def run(k=k, v=v, seg=segments, **options):
        return attention(q, k, v, segments, seg, scale=SCALE, **options)

    with pytest.raises(InputError, match="impl='flash' is unknown; use one of auto, xla, chunked"):
        run(impl='flash')
    with pytest.raises(InputError, match='num_heads=6 is not a multiple of num_kv_heads=4'):
        run(np.ones((B, L, 4, C)), np.ones((B, L, 4, C)))
    with pytest.raises(InputError, match='70 queries and 69 keys: .* needs q_index_BL'):
        run(k[:, 1:], v[:, 1:], segments[:, 1:])
    with pytest.raises(InputError, match=r"'cudnn' does not support softcap=2.0 .* impl='chunked'"):
        run(impl='cudnn', softcap=2.0)
    with pytest.raises(InputError, match="'cudnn' does not support dtype float32"):
        run(impl='cudnn')


def test_cudnn_needs_a_gpu(inputs, segments):
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs[:3])
    with pytest.raises(InputError, match="does not support the platform 'cpu'"):
        attention(q, k, v, segments, segments, scale=SCALE, impl='cudnn')
