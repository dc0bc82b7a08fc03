"""Advantages against loops and hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.objectives import advantage

B, T = 3, 5
LENGTHS = np.array([5, 2, 1])
MASK = (np.arange(T)[None] < LENGTHS[:, None]).astype(np.float32)
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(B, T)).astype(np.float32) * MASK
VALUES = RNG.normal(size=(B, T)).astype(np.float32)


def slow_gae(rewards, values, length, gamma, lam):
    """O(T^2): A_t = sum_k (gamma lam)^k delta_{t+k}."""
    v = [*values[:length], 0.0]
    deltas = [rewards[t] + gamma * v[t + 1] - v[t] for t in range(length)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length))
            for t in range(length)]


@pytest.mark.parametrize(('gamma', 'lam'), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_equals_the_quadratic_sum(gamma, lam):
    advantages, returns = advantage.gae(REWARDS, VALUES, MASK, gamma=gamma, lam=lam)
    for row, length in enumerate(LENGTHS):
        want = slow_gae(REWARDS[row], VALUES[row], length, gamma, lam)
        np.testing.assert_allclose(advantages[row, :length], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(returns[row, :length], want + VALUES[row, :length], rtol=1e-5,
                                   atol=1e-6)
    assert not np.any(np.asarray(advantages)[MASK == 0])
    assert not np.any(np.asarray(returns)[MASK == 0])


def test_without_discount_an_advantage_is_what_comes_less_what_was_expected():
    advantages, _ = advantage.gae(REWARDS, VALUES, MASK, gamma=1.0, lam=1.0)
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            np.testing.assert_allclose(advantages[row, t],
                                       REWARDS[row, t:].sum() - VALUES[row, t], rtol=1e-4,
                                       atol=1e-6)


def test_returns_are_sums_of_what_is_to_come():
    found = advantage.returns(REWARDS, MASK)
    np.testing.assert_allclose(found[0], np.cumsum(REWARDS[0][::-1])[::-1], rtol=1e-5)


def test_the_score_stands_at_the_last_token_and_stays_a_float():
    scores = jnp.array([0.7, 1.0, -2.0])
    kl = jnp.full((B, T), 10.0)
    found = np.asarray(advantage.token_rewards(scores, kl, MASK, 0.1))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], [-1, -1, -1, -1, -0.3], rtol=1e-6)
    np.testing.assert_allclose(found[1], [-1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[2], [-3, 0, 0, 0, 0], rtol=1e-6)


def test_integer_scores_do_not_make_integer_rewards():
    found = advantage.token_rewards(jnp.array([1, 0, 2]), jnp.full((B, T), 0.25), MASK, 1.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.sum(axis=1), [1 - 1.25, -0.5, 2 - 0.25])


def test_a_score_of_seven_tenths_adds_up_to_it():
    found = advantage.token_rewards(jnp.full((B,), 0.7), jnp.zeros((B, T)), MASK, 0.05)
    np.testing.assert_allclose(found.sum(axis=1), 0.7, rtol=1e-6)


def test_whitening_counts_only_the_mask():
    x = np.where(MASK > 0, REWARDS, 1e6).astype(np.float32)
    found = np.asarray(advantage.whiten(x, MASK))
    inside = found[MASK > 0]
    np.testing.assert_allclose([inside.mean(), inside.std(ddof=1)], [0, 1], atol=1e-5)
    assert not np.any(found[MASK == 0])


def test_whitening_may_leave_the_mean():
    found = np.asarray(advantage.whiten(REWARDS + 3 * MASK, MASK, shift_mean=False))
    inside, before = found[MASK > 0], (REWARDS + 3 * MASK)[MASK > 0]
    np.testing.assert_allclose([inside.mean(), inside.std(ddof=1)], [before.mean(), 1], rtol=1e-4)


def test_whitening_of_a_single_entry_leaves_it():
    found = advantage.whiten(jnp.array([[3.0, 9.0]]), jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(found, [[3.0, 0.0]])


def test_whitening_is_that_of_the_global_batch_on_eight_devices():
    x = RNG.normal(size=(16, 7)).astype(np.float32) + np.arange(16)[:, None]
    x = x.astype(np.float32)
    mask = (RNG.random((16, 7)) < 0.6).astype(np.float32)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P('data'))
    split = jax.jit(advantage.whiten)(jax.device_put(x, rows), jax.device_put(mask, rows))
    np.testing.assert_allclose(split, advantage.whiten(x, mask), rtol=1e-4, atol=1e-5)


def test_groups_by_hand():
    rewards = jnp.array([1.0, 3.0, 5.0, 7.0, 2.0, 2.0])
    np.testing.assert_allclose(advantage.group_relative(rewards, 2, divide_by_std=False),
                               [-1, 1, -1, 1, 0, 0])
    np.testing.assert_allclose(advantage.group_relative(rewards, 2, divide_by_std=True),
                               [-1 / 1.0001, 1 / 1.0001, -1 / 1.0001, 1 / 1.0001, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(advantage.leave_one_out(rewards, 3),
                               [1 - 4, 3 - 3, 5 - 2, 7 - 2, 2 - 4.5, 2 - 4.5])
