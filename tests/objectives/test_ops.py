"""Cross-entropy and log-probabilities in chunks against their definitions."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.objectives.ops import cross_entropy, token_logprobs
from jaxllm.sharding import ShardingConfig, batch_shardings, make_mesh

B, L, D, V = 4, 11, 6, 20
CHUNK = 16  # 44 tokens: two whole chunks and one of 12


@pytest.fixture(params=[1, 8])
def mesh(request):
    """Sets a mesh of one device, or of two each for `data`, `fsdp` and `tensor`."""
    config = ShardingConfig('dp_fsdp_tp')
    with jax.set_mesh(make_mesh(config, jax.devices()[:request.param])):
        yield


@pytest.fixture(scope='module')
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, L, D))
    unembed = jax.random.normal(keys[1], (V, D))
    # Every third target is the most likely token.
    targets = jnp.where(jnp.arange(L)[None, :] % 3, jax.random.randint(keys[2], (B, L), 0, V),
                        jnp.argmax(jnp.einsum('BLD,VD->BLV', hidden, unembed), axis=-1))
    weights = jax.random.uniform(keys[3], (B, L)) * (jnp.arange(L)[None, :] != 3)
    return tuple(np.asarray(x) for x in (hidden, unembed, targets, weights))


def naive_log_softmax(hidden, unembed, softcap, temperature=1.0):
    logits = jnp.einsum('BLD,VD->BLV', hidden, unembed)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    return jax.nn.log_softmax(logits / temperature), jax.nn.logsumexp(logits, axis=-1)


def naive_loss(hidden, unembed, targets, weights, z_loss, softcap):
    logprobs, lse = naive_log_softmax(hidden, unembed, softcap)
    nll = -jnp.take_along_axis(logprobs, targets[:, :, None], axis=-1)[:, :, 0]
    return jnp.sum(weights * (nll + z_loss * lse ** 2))


def assert_close(got, expected, tolerance=1e-5):
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.shape == e.shape and g.dtype == e.dtype
        np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance * np.abs(e).max())


def test_cross_entropy_by_hand():
    # Logits are (0, log 3) and (log 3, 0): probabilities 1/4 and 3/4; lse = log 4 both times.
    hidden = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
    unembed = jnp.log(3.0) * jnp.eye(2)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        loss, stats = cross_entropy(hidden, unembed, jnp.array([[1, 1]]),
                                    jnp.array([[2.0, 5.0]]), z_loss=0.1)
    nll = 2 * np.log(4 / 3) + 5 * np.log(4)
    z = 7 * np.log(4) ** 2
    np.testing.assert_allclose([loss, *stats], [nll + 0.1 * z, nll, z, 2.0], rtol=1e-6)


@pytest.mark.parametrize('z_loss, softcap', [(0.0, 0.0), (0.1, 0.0), (0.1, 2.0)])
def test_cross_entropy_and_gradients(mesh, inputs, z_loss, softcap):
    hidden, unembed, targets, weights = inputs

    def loss(hidden, unembed):
        return 3.0 * cross_entropy(hidden, unembed, targets, weights, z_loss=z_loss,
                                   softcap=softcap, chunk_size=CHUNK)[0]

    def naive(hidden, unembed):
        return 3.0 * naive_loss(hidden, unembed, targets, weights, z_loss, softcap)

    expected = jax.value_and_grad(naive, (0, 1))(hidden, unembed)
    assert_close(jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, unembed), expected)
    assert_close(jax.jit(loss)(hidden, unembed), expected[0])  # evaluation goes another way


def test_statistics(mesh, inputs):
    hidden, unembed, targets, weights = inputs
    logprobs, lse = naive_log_softmax(hidden, unembed, 0.0)
    nll = -np.take_along_axis(logprobs, targets[:, :, None], axis=-1)[:, :, 0]
    expected = (np.sum(weights * nll), np.sum(weights * lse ** 2),
                np.sum(weights * (np.argmax(logprobs, axis=-1) == targets)))
    assert 0 < expected[2] < 0.9 * np.sum(weights)

    def both(hidden):
        return cross_entropy(hidden, unembed, targets, weights, z_loss=0.1, chunk_size=CHUNK)

    (_, stats), grads = jax.jit(jax.value_and_grad(both, has_aux=True))(hidden)
    np.testing.assert_allclose(stats, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(both)(hidden)[1], expected, rtol=1e-5)
    assert np.any(grads) and not np.any(grads[:, 3])  # weight 0 at position 3
    for name in stats._fields:
        stat_grad = jax.grad(lambda h, name=name: getattr(both(h)[1], name))(hidden)
        assert not np.any(stat_grad)


def test_a_head_of_zeros_is_never_right(inputs):
    hidden, unembed, _, weights = inputs
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        _, stats = cross_entropy(hidden, 0 * unembed, np.zeros((B, L), int), weights)
    assert stats.correct_sum == 0


def test_weights_have_no_gradient(inputs):
    hidden, unembed, targets, weights = inputs
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        grad = jax.grad(lambda w: cross_entropy(hidden, unembed, targets, w)[0])(weights)
    assert grad.shape == weights.shape and not np.any(grad)


def test_bfloat16_sums_in_float32():
    """Many tokens that each add the same to a row: a bfloat16 sum would stop growing at 256."""
    tokens = 1024
    hidden = np.ones((1, tokens, 1), jnp.bfloat16)
    unembed = np.zeros((2, 1), jnp.bfloat16)
    targets, weights = np.zeros((1, tokens), int), np.ones((1, tokens), np.float32)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        def ce(unembed):
            return cross_entropy(hidden, unembed, targets, weights, chunk_size=1)[0]

        def lp(unembed):
            return -jnp.sum(token_logprobs(hidden, unembed, targets, chunk_size=1))

        for loss in ce, lp:
            value, grad = jax.jit(jax.value_and_grad(loss))(unembed)
            np.testing.assert_allclose(value, tokens * np.log(2), rtol=1e-4)
            assert grad.dtype == jnp.bfloat16
            np.testing.assert_array_equal(grad.astype(jnp.float32), [[-tokens / 2], [tokens / 2]])


@pytest.mark.parametrize('temperature, softcap', [(1.0, 0.0), (0.7, 2.0)])
def test_token_logprobs(mesh, inputs, temperature, softcap):
    hidden, unembed, targets, weights = inputs

    def ours(hidden, unembed):
        logprobs, entropy = token_logprobs(hidden, unembed, targets, temperature=temperature,
                                           softcap=softcap, chunk_size=CHUNK, with_entropy=True)
        return jnp.sum(weights * (logprobs + 0.3 * entropy)), (logprobs, entropy)

    def naive(hidden, unembed):
        logp, _ = naive_log_softmax(hidden, unembed, softcap, temperature)
        logprobs = jnp.take_along_axis(logp, targets[:, :, None], axis=-1)[:, :, 0]
        entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
        return jnp.sum(weights * (logprobs + 0.3 * entropy)), (logprobs, entropy)

    grad = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    assert_close(jax.jit(grad(ours))(hidden, unembed), grad(naive)(hidden, unembed))
    alone = token_logprobs(hidden, unembed, targets, temperature=temperature, softcap=softcap)
    assert_close(alone, naive(hidden, unembed)[1][0])


def compiled_on(mesh, function, *shapes):
    """`function` and its gradient by (hidden, unembed), compiled for inputs placed on `mesh`."""
    b, l, d, v = shapes
    hidden = jax.ShapeDtypeStruct((b, l, d), jnp.float32)
    targets = jax.ShapeDtypeStruct((b, l), jnp.int32)
    unembed = jax.ShapeDtypeStruct((v, d), jnp.float32)
    weights = jax.ShapeDtypeStruct((b, l), jnp.float32)
    batch = batch_shardings((hidden, targets, weights), mesh)
    with jax.set_mesh(mesh):
        return jax.jit(jax.value_and_grad(function, argnums=(0, 1)),
                       in_shardings=(batch[0], None, batch[1], batch[2])).lower(
                           hidden, unembed, targets, weights).compile()


def ce_loss(hidden, unembed, targets, weights):
    return cross_entropy(hidden, unembed, targets, weights, chunk_size=32)[0]


def logprobs_loss(hidden, unembed, targets, weights):
    return jnp.sum(weights * token_logprobs(hidden, unembed, targets, chunk_size=32))


@pytest.mark.parametrize('function', [ce_loss, logprobs_loss])
def test_logits_never_exist_at_once(function):
    b, l, d, v = 2, 512, 8, 1000
    one = make_mesh(devices=jax.devices()[:1])
    temp = compiled_on(one, function, b, l, d, v).memory_analysis().temp_size_in_bytes
    assert temp < 0.2 * (b * l * v * 4)


@pytest.mark.parametrize('function', [ce_loss, logprobs_loss])
def test_devices_exchange_the_gradient_once(function):
    """The unembedding's gradient is reduced after the loop over chunks, and no logits are moved."""
    b, l, d, v = 8, 128, 12, 1000
    mesh = make_mesh(ShardingConfig('dp_fsdp_tp'))
    text = compiled_on(mesh, function, b, l, d, v).as_text()
    lines = [line for line in text.splitlines()
             if re.search(r' (all-reduce|all-gather|all-to-all|reduce-scatter)(-start)?\(', line)]
    big = [line for line in lines if re.search(rf'\[[\d,]*\b({v}|{v // 2})\b[\d,]*\]', line)]
    assert lines and big
    assert not [line for line in big if '/while/' in line], big
    assert not [line for line in lines if re.search(rf'\[\d+,\d+,({v}|{v // 2})\]', line)]
