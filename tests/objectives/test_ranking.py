"""Losses of orders against numbers worked out by hand, and what must hold of them."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.objectives import ranking
from jaxllm.objectives.reward import RewardConfig, margin_of

R3 = np.array([[0.5, -1.0, 2.0]], np.float32)


PLACKETT_LUCE = jax.jit(ranking.plackett_luce)


def pl(rewards, ranks):
    return float(PLACKETT_LUCE(jnp.asarray([rewards], jnp.float32),
                               jnp.asarray([ranks], jnp.int32))[0])


def test_plackett_luce_by_hand():
    """Order 2, 0.5, -1: the best among three, then among two."""
    want = (math.log(math.exp(2) + math.exp(0.5) + math.exp(-1)) - 2
            + math.log(math.exp(0.5) + math.exp(-1)) - 0.5)
    np.testing.assert_allclose(pl(R3[0], [2, 3, 1]), want, rtol=1e-6)


def test_ties_do_not_compete_with_each_other():
    """0.5 and 2 tie before -1: each against -1 alone."""
    want = math.log1p(math.exp(-1 - 0.5)) + math.log1p(math.exp(-1 - 2))
    np.testing.assert_allclose(pl(R3[0], [1, 2, 1]), want, rtol=1e-6)
    # 2 before a tie of two, which has nothing below it.
    want = math.log(math.exp(2) + math.exp(0.5) + math.exp(-1)) - 2
    np.testing.assert_allclose(pl(R3[0], [2, 2, 1]), want, rtol=1e-6)
    assert pl(R3[0], [1, 1, 1]) == 0


def test_two_are_bradley_terry():
    rewards = jnp.asarray([[0.3, -0.4], [1.5, 2.5], [7.0, 7.0]])
    ranks = jnp.asarray([[1, 2], [1, 2], [2, 1]])
    both = ranking.plackett_luce(rewards, ranks), ranking.bradley_terry(rewards, ranks,
                                                                        jnp.zeros(3))
    np.testing.assert_allclose(*both, rtol=1e-6)
    np.testing.assert_allclose(both[0], [math.log1p(math.exp(-0.7)), math.log1p(math.e),
                                         math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(ranking.all_pairs(rewards, ranks), both[0], rtol=1e-6)


@pytest.mark.parametrize('num', [3, 4])
def test_probabilities_of_all_orders_sum_to_one(num):
    rewards = np.random.default_rng(0).normal(size=num) * 2
    total = sum(math.exp(-pl(rewards, ranks)) for ranks in itertools.permutations(
        range(1, num + 1)))
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_a_constant_changes_nothing_and_absent_ones_do_not_matter():
    rng = np.random.default_rng(1)
    rewards = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    ranks = jnp.asarray([[1, 2, 3, 4], [2, 1, 1, 3], [1, 2, 0, 0], [0, 3, 1, 2], [0, 0, 0, 0]])
    for loss in (ranking.plackett_luce, ranking.all_pairs):
        base = loss(rewards, ranks)
        np.testing.assert_allclose(loss(rewards + 3.0, ranks), base, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(loss(jnp.where(ranks > 0, rewards, 1e4), ranks), base, rtol=1e-6)
        np.testing.assert_allclose(loss(rewards[:, ::-1], ranks[:, ::-1]), base, rtol=1e-5)
        assert base[4] == 0
        np.testing.assert_allclose(base[2], ranking.bradley_terry(
            rewards[2:3, :2], ranks[2:3, :2], jnp.zeros(1))[0], rtol=1e-6)


def test_all_pairs_by_hand():
    """The mean over three pairs, of one prompt."""
    want = np.mean([np.logaddexp(0, -1.5), np.logaddexp(0, -3.0), np.logaddexp(0, -1.5)])
    got = ranking.all_pairs(R3, jnp.asarray([[2, 3, 1]]))
    np.testing.assert_allclose(got, [want], rtol=1e-6)
    # With a tie there are two pairs.
    want = np.mean([np.logaddexp(0, -1.5), np.logaddexp(0, -3.0)])
    np.testing.assert_allclose(ranking.all_pairs(R3, jnp.asarray([[1, 2, 1]])), [want], rtol=1e-6)


def test_centering_is_of_sums_of_two():
    ranks = jnp.asarray([[1, 2, 0], [3, 2, 1]])
    rewards = jnp.asarray([[1.0, 2.0, 50.0], [1.0, 2.0, 3.0]])
    np.testing.assert_allclose(ranking.centering(rewards, ranks), [9.0, 16.0])


def test_margins():
    grades = jnp.asarray([0.0, 1.0, 2.0, 3.0])
    np.testing.assert_allclose(margin_of('small', grades), [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(margin_of('large', grades), [0, 1, 2, 3])
    np.testing.assert_allclose(margin_of('none', grades), np.zeros(4))
    loss = ranking.bradley_terry(jnp.asarray([[2.0, 0.5], [2.0, 0.5]]), jnp.asarray([[1, 2]] * 2),
                                 jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(loss, [math.log1p(math.exp(-1.5)), math.log1p(math.exp(-0.5))],
                               rtol=1e-6)


@pytest.mark.parametrize('loss', [
    ranking.plackett_luce, ranking.all_pairs,
    lambda r, k: ranking.bradley_terry(r, k, jnp.full(r.shape[0], 2.0))])
@pytest.mark.parametrize('size', [1e4, -1e4])
def test_finite_for_any_reward(loss, size):
    """-log sigmoid(-1e4) is 1e4 and no infinity, and so is its gradient."""
    rewards, ranks = jnp.asarray([[size, -size], [0.0, size]]), jnp.asarray([[1, 2], [2, 1]])
    value, grads = jax.value_and_grad(lambda r: loss(r, ranks).sum())(rewards)
    assert np.isfinite(value) and np.isfinite(grads).all()


def test_gradients_are_finite_with_absent_responses():
    ranks = jnp.asarray([[0, 1, 2, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    for loss in (ranking.plackett_luce, ranking.all_pairs):
        grads = jax.grad(lambda r, loss=loss: loss(r, ranks).sum())(jnp.ones((3, 4)))
        assert np.isfinite(grads).all()
        np.testing.assert_allclose(grads[1:], 0)
        np.testing.assert_allclose(grads[0], [0, -0.5, 0.5, 0])


def test_accuracy_and_decisions():
    ranks = jnp.asarray([[1, 2, 2], [2, 1, 0], [1, 1, 1]])
    rewards = jnp.asarray([[1.0, 0.0, 1.0], [5.0, 2.0, 9.0], [0.0, 1.0, 2.0]])
    right, total = ranking.correct_pairs(rewards, ranks)
    assert (float(right), float(total)) == (1.5, 3.0)
    np.testing.assert_allclose(ranking.decisions(ranks), [1, 1, 0])
    np.testing.assert_allclose(ranking.decisions(jnp.asarray([[3, 1, 2, 4]])), [3])


def test_bad_settings():
    with pytest.raises(InputError, match='plackett_luce or all_pairs'):
        ranking.bradley_terry(jnp.zeros((2, 3)), jnp.ones((2, 3), jnp.int32), jnp.zeros(2))
    for values, words in ((dict(kind='elo'), 'unknown'), (dict(margin='huge'), 'unknown'),
                          (dict(margin='small'), 'belong to pairs'),
                          (dict(centering=-1.0), 'negative')):
        with pytest.raises(InputError, match=words):
            RewardConfig(**dict(kind='plackett_luce', margin='none', centering=0.0) | values)
