"""How a token is chosen: truncation, penalty, log-probs, frequencies, settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxllm import decode
from jaxllm.decode import sampling
from jaxllm.errors import InputError


def reference_keep(logits_V, top_k, top_p, min_p):
    """Ids that sampling may choose, by sorting."""
    order = np.argsort(-logits_V, kind='stable')
    order = order[:top_k or len(order)]
    p = np.exp(log_softmax(logits_V[order].astype(np.float64)))
    order = order[:1 + int((np.cumsum(p) < top_p).sum())]
    p = np.exp(log_softmax(logits_V[order].astype(np.float64)))
    return set(order[p >= min_p * p.max()].tolist())


@pytest.mark.parametrize('top_k, top_p, min_p', [
    (1, 1.0, 0.0), (7, 1.0, 0.0), (400, 1.0, 0.0), (0, 0.6, 0.0), (0, 1e-6, 0.0), (0, 1.0, 0.07),
    (0, 1.0, 1.0), (20, 0.8, 0.1)])
def test_truncation_against_sorting(top_k, top_p, min_p):
    logits_BV = np.random.default_rng(4).normal(0, 2, (13, 333)).astype(np.float32)
    config = decode.SamplingConfig(top_k=top_k, top_p=top_p, min_p=min_p)
    kept_BV = np.asarray(sampling.truncate(jnp.asarray(logits_BV), config.numbers, config.switches))
    for logits_V, kept_V in zip(logits_BV, kept_BV, strict=True):
        ids = reference_keep(logits_V, top_k, top_p, min_p)
        assert set(np.flatnonzero(kept_V > -np.inf).tolist()) == ids
        assert (kept_V[list(ids)] == logits_V[list(ids)]).all()


def test_penalty_and_both_logprobs():
    logits_BV = np.random.default_rng(0).normal(-5, 3, (11, 29)).astype(np.float32)
    seen_BV = np.random.default_rng(1).random((11, 29)) < 0.4
    config = decode.SamplingConfig(temperature=0.7, top_k=6, repetition_penalty=1.3)
    keys_B = jax.random.split(jax.random.key(2), 11)
    choice = sampling.choose(logits_BV, keys_B, seen_BV, config.numbers, config.switches)
    for b, token in enumerate(choice.tokens_B.tolist()):
        weaker_V = [x if not s else x / 1.3 if x > 0 else x * 1.3
                    for x, s in zip(logits_BV[b], seen_BV[b], strict=True)]
        scaled_V = np.array(weaker_V) / 0.7
        ids = sorted(reference_keep(scaled_V, 6, 1.0, 0.0))
        sampled = log_softmax(scaled_V[ids])[ids.index(token)]
        assert float(choice.sample_logprobs_B[b]) == pytest.approx(sampled, abs=1e-5)
        whole = log_softmax(logits_BV[b] / 0.7)[token]
        assert float(choice.logprobs_B[b]) == pytest.approx(whole, abs=1e-5)


def test_frequencies_follow_the_distribution():
    p_V = np.array([0.4, 0.05, 0.3, 0.2, 0.05])
    B = 20_000
    logits_BV = jnp.tile(jnp.log(jnp.asarray(p_V, jnp.float32))[None] / 2, (B, 1))
    keys_B = jax.random.split(jax.random.key(0), B)
    for config, expected_V in [
            (decode.SamplingConfig(temperature=0.5), p_V),
            (decode.SamplingConfig(temperature=0.5, top_k=3), p_V * [1, 0, 1, 1, 0] / 0.9),
            (decode.SamplingConfig(temperature=0.5, top_p=0.5), p_V * [1, 0, 1, 0, 0] / 0.7)]:
        choice = sampling.choose(logits_BV, keys_B, None, config.numbers, config.switches)
        share_V = np.bincount(choice.tokens_B, minlength=5) / B
        error_V = np.sqrt(expected_V * (1 - expected_V) / B)
        assert (np.abs(share_V - expected_V) <= 4 * error_V).all()


@pytest.mark.parametrize('size', [1, 2, 7, 64, 333, 49152])
def test_a_token_is_drawn_by_its_probability_and_never_without_one(size):
    """The running sums of blocks against numpy's in float64, for random numbers of all sizes."""
    rng = np.random.default_rng(size)
    probs_V = np.where(rng.random(size) < 0.3, 0, rng.exponential(size=size) ** 3)
    probs_V[rng.integers(size)] = 1.0
    probs_V = (probs_V / probs_V.sum()).astype(np.float32)
    B = 300
    keys_B = jax.random.split(jax.random.key(1), B)
    tokens_B = np.asarray(jax.jit(sampling.draw)(jnp.tile(probs_V[None], (B, 1)), keys_B))
    uniform_B = np.asarray(jax.vmap(jax.random.uniform)(keys_B), np.float64)
    running_V = np.cumsum(probs_V.astype(np.float64)) / probs_V.astype(np.float64).sum()
    below_B = np.where(tokens_B > 0, running_V[tokens_B - 1], 0)
    assert (probs_V[tokens_B] > 0).all()
    # Rounding may move a draw to the neighbour of the right token, and no further.
    assert (below_B <= uniform_B + 1e-5).all() and (uniform_B <= running_V[tokens_B] + 1e-5).all()


def test_where_rounding_leaves_no_token_the_last_one_with_a_weight_is_meant():
    index_B, rest_B1 = sampling._first_beyond(jnp.array([[0.25, 0.5, 0.0], [0.0, 0.5, 0.5]]),
                                              jnp.array([[0.75], [0.0]]))
    assert index_B.tolist() == [1, 1] and rest_B1[:, 0].tolist() == [0.5, 0.0]


@pytest.mark.parametrize('field, value', [
    ('max_new_tokens', 0), ('temperature', -0.1), ('temperature', float('nan')), ('top_k', -1),
    ('top_p', 0.0), ('top_p', 1.1), ('min_p', -0.1), ('repetition_penalty', 0.0)])
def test_bad_settings(field, value):
    with pytest.raises(InputError, match=f'sampling.{field}='):
        decode.SamplingConfig(**{field: value})
