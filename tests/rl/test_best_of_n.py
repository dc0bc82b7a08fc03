"""Best-of-n: hand-computed numbers, and the estimator against all subsets."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.errors import InputError
from jaxllm.rl import best_of_n


def test_pick_and_distinct():
    assert best_of_n.pick([[1, 3, 2], [5, 5, 4], [0, -1, 0]]).tolist() == [1, 0, 0]
    kept, dropped = best_of_n.distinct([['a', 'a'], ['a', 'b'], [(1,), (1,)], ['', ' ']])
    assert (kept, dropped) == ([1, 3], 2)


def test_the_bound_of_the_kl():
    np.testing.assert_allclose(best_of_n.kl_bound([1, 2, 16]),
                               [0, math.log(2) - 0.5, math.log(16) - 15 / 16])
    with pytest.raises(InputError, match='n >= 1'):
        best_of_n.kl_bound(0)


def test_the_bound_is_one():
    """KL of the best of n of a distribution with few outcomes, exactly: never above the bound."""
    p = np.array([0.5, 0.3, 0.15, 0.05])    # by rising reward
    for n in (1, 2, 4, 32):
        cumulative = np.cumsum(p)
        q = cumulative ** n - (cumulative - p) ** n
        kl = float(np.sum(q * np.log(q / p)))
        assert kl <= best_of_n.kl_bound(n) + 1e-12
        assert n == 1 or kl < best_of_n.kl_bound(n)


def test_expected_gold_by_hand():
    proxy, gold = [[3.0, 1.0, 2.0]], [[0.0, 6.0, 3.0]]
    # n=1: mean 3. n=2: subsets {3,1} -> 0, {3,2} -> 0, {1,2} -> 3: mean 1. n=3: 0.
    np.testing.assert_allclose(best_of_n.expected_gold(proxy, gold), [3, 1, 0], atol=1e-12)
    np.testing.assert_allclose(best_of_n.expected_gold(proxy), [2, 8 / 3, 3])
    # Equal proxies are picked with equal chances: the best two share 4 and 8.
    np.testing.assert_allclose(best_of_n.expected_gold([[1, 2, 2]], [[0, 4, 8]]),
                               [4, (6 + 6 + 6) / 3, 6])


def test_one_of_one_is_plain_sampling():
    """Invariant 37."""
    rng = np.random.default_rng(1)
    proxy, gold = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    np.testing.assert_allclose(best_of_n.expected_gold(proxy, gold)[0], gold.mean())
    assert best_of_n.pick(proxy[:, :1]).tolist() == [0] * 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=6))
def test_it_is_the_mean_over_all_subsets(rows):
    proxy, gold = (np.array(column, float) for column in zip(*rows, strict=True))
    got = best_of_n.expected_gold(proxy[None], gold[None])
    for n in range(1, len(rows) + 1):
        means = []
        for subset in itertools.combinations(range(len(rows)), n):
            best = max(proxy[i] for i in subset)
            means.append(np.mean([gold[i] for i in subset if proxy[i] == best]))
        # Ties within a subset: only some of the equal ones are in it, which evens out.
        np.testing.assert_allclose(got[n - 1], np.mean(means), atol=1e-9)


def test_large_samples_do_not_overflow():
    proxy = np.arange(2000.0)[None]
    got = best_of_n.expected_gold(proxy)
    # E max of n of {0..S-1} without replacement = n (S + 1) / (n + 1) - 1.
    n = np.arange(1, 2001)
    np.testing.assert_allclose(got, n * 2001 / (n + 1) - 1, rtol=1e-6)


@pytest.mark.parametrize('scores', [[1.0], [[1.0, math.nan]], [[]], [[[1.0]]]])
def test_bad_scores_are_refused(scores):
    for call in (best_of_n.pick, best_of_n.expected_gold):
        with pytest.raises(InputError, match='expected finite numbers'):
            call(scores)
    with pytest.raises(InputError, match='the same responses'):
        best_of_n.expected_gold([[1.0, 2.0]], [[1.0]])
