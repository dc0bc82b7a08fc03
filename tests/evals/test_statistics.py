"""Intervals: against formulas, at the edges, over clusters, pairs and seeds."""

import json
import math

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import statistics


def limits(interval):
    return interval.low, interval.high


def test_wilson_against_hand_computed_limits():
    z2 = 1.959964 ** 2
    assert limits(statistics.proportion(0, 10)) == pytest.approx((0, z2 / (10 + z2)), rel=1e-5)
    assert limits(statistics.proportion(10, 10)) == pytest.approx((10 / (10 + z2), 1), rel=1e-5)
    assert limits(statistics.proportion(5, 10)) == pytest.approx((.2366, .7634), abs=1e-4)
    with pytest.raises(InputError, match='11 successes of 10'):
        statistics.proportion(11, 10)


def test_bootstrap_of_a_mean_agrees_with_its_standard_error():
    values = np.random.default_rng(3).exponential(size=2000)
    result = statistics.bootstrap(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(2000)
    assert result.value == pytest.approx(values.mean())
    assert limits(result) == pytest.approx((values.mean() - half, values.mean() + half),
                                           abs=.08 * half)
    assert result.n == 2000 and '2000 items' in result.method
    assert statistics.bootstrap(values) == result
    assert statistics.bootstrap(values, seed=1) != result


def test_counts_draw_as_many_as_there_are_and_evenly():
    chunks = list(statistics.counts(300_000, 5, 0))
    assert len(chunks) > 1 and sum(len(chunk) for chunk in chunks) == 5
    drawn = np.concatenate(list(statistics.counts(7, 20_000, 0)))
    np.testing.assert_array_equal(drawn.sum(axis=1), 7)
    np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=.03)
    np.testing.assert_allclose(drawn.var(axis=0), 6 / 7, atol=.04)


def test_clusters_are_drawn_whole():
    few = np.random.default_rng(1).normal(size=50)
    rows, names = np.repeat(few, 4), np.repeat([f'p{i}' for i in range(50)], 4)
    mixed = np.random.default_rng(2).permutation(200)
    whole = statistics.bootstrap(rows[mixed], clusters=names[mixed])
    assert limits(whole) == pytest.approx(limits(statistics.bootstrap(few)), abs=.02)
    alone = statistics.bootstrap(rows)
    assert (whole.high - whole.low) / (alone.high - alone.low) == pytest.approx(2, abs=.15)
    with pytest.raises(InputError, match='3 clusters for 200 values'):
        statistics.bootstrap(rows, clusters=names[:3])


@pytest.mark.parametrize('value', [0, 1])
def test_a_proportion_at_the_edge_has_a_width(value):
    result = statistics.bootstrap(np.full(40, value), clusters=np.arange(40) // 4)
    assert result.value == value and result.method == 'Wilson, 10 trials'
    # As if there were 10 trials: 4 questions on one person are not 4 times the evidence.
    assert limits(result) == pytest.approx(limits(statistics.proportion(10 * value, 10)))
    over = statistics.hierarchical(np.full(40, value), seeds=np.arange(40) % 4,
                                   clusters=np.arange(40) // 4)
    assert over.high - over.low > .05
    same = statistics.hierarchical(np.zeros(40), seeds=np.arange(40) % 4, signed=True)
    z2 = 1.959964 ** 2
    assert limits(same) == pytest.approx((-z2 / (40 + z2), z2 / (40 + z2)), rel=1e-4)


def test_any_statistic_of_weighted_rows():
    x, y = np.random.default_rng(0).random((2, 400))
    ratio = statistics.bootstrap(x, statistic=lambda weights: (weights @ x) / (weights @ y))
    assert ratio.value == pytest.approx(x.sum() / y.sum())
    # The delta method: residuals x - r y over the mean of y.
    half = 1.96 * (x - ratio.value * y).std() / math.sqrt(400) / y.mean()
    assert ratio.high - ratio.low == pytest.approx(2 * half, rel=.06)
    rows, names = np.repeat(np.arange(400), 3), np.repeat(np.arange(400), 3)
    whole = statistics.bootstrap(x[rows], clusters=names, draws=2000, statistic=lambda weights: (
        weights @ x[rows]) / (weights @ y[rows]))
    assert whole.high - whole.low == pytest.approx(2 * half, rel=.12)


def test_few_units_get_the_t_distribution():
    draws = np.random.default_rng(0).normal(size=400_000)
    # 2.776 = t(0.975, 4 degrees of freedom), sqrt(5 / 4) for the spread that resampling misses.
    assert statistics.limits(draws, 5)[1] == pytest.approx(2.776 * math.sqrt(5 / 4), abs=.08)
    assert statistics.limits(draws, 10_000)[1] == pytest.approx(1.96, abs=.02)
    one = statistics.bootstrap([2.5])
    assert one.value == 2.5 and math.isnan(one.low) and not one.excludes(0)
    assert json.loads(json.dumps(one.as_dict(), allow_nan=False))['low'] is None


def test_pairs_are_found_by_their_ids():
    ids = np.array([f'q{i}' for i in range(300)])
    mixed = np.random.default_rng(5).permutation(ids)
    assert (mixed[statistics.match(ids, mixed)] == ids).all()
    with pytest.raises(InputError, match=r"2 only in the second \('q298', 'q299'\)"):
        statistics.match(ids[:298], mixed)
    with pytest.raises(InputError, match="'q7' appears 2 times in the first"):
        statistics.match(np.where(ids == 'q8', 'q7', ids), mixed)


def test_rare_differences_against_a_search_of_the_likelihood():
    """Each limit is the delta whose score test, with its best nuisance parameter, is at 1.96."""
    n, wins, losses = 44, 5, 1
    differences = np.repeat([1, -1, 0], [wins, losses, n - wins - losses])
    result = statistics.hierarchical(differences, seeds=np.zeros(n), signed=True,
                                     resample_seeds=False)
    assert 'Tango' in result.method and result.low <= result.value == 4 / 44 <= result.high
    for delta in statistics._tango(wins, losses, n, 0.95):
        loss = np.linspace(1e-6, (1 - delta) / 2 - 1e-6, 400_001) + max(-delta, 0)
        with np.errstate(invalid='ignore'):
            likelihood = (wins * np.log(loss + delta) + losses * np.log(loss)
                          + (n - wins - losses) * np.log(1 - delta - 2 * loss))
        best = loss[np.nanargmax(likelihood)]
        score = (wins - losses - n * delta) / math.sqrt(n * (2 * best + delta - delta ** 2))
        assert abs(score) == pytest.approx(1.96, abs=.002)


def test_seeds_are_resampled_above_the_items():
    generator, seeds = np.random.default_rng(0), np.repeat(np.arange(10), 60)
    values = np.repeat(generator.normal(size=10), 60) + .2 * generator.normal(size=600)
    fixed = statistics.hierarchical(values, seeds=seeds, resample_seeds=False)
    drawn = statistics.hierarchical(values, seeds=seeds)
    assert fixed.value == drawn.value == pytest.approx(values.mean())
    assert fixed.high - fixed.low == pytest.approx(2 * 1.96 * .2 / math.sqrt(600), rel=.1)
    means = values.reshape(10, 60).mean(axis=1)
    over = statistics.across_seeds(means)
    assert drawn.high - drawn.low == pytest.approx(over.high - over.low, rel=.15)


def test_seeds_weigh_alike_whatever_their_number_of_items():
    values, seeds = [1., 1., 1., 1., 0., 0.], [0, 0, 0, 0, 1, 1]
    assert statistics.hierarchical(values, seeds=seeds).value == .5


def test_student_t_over_seeds():
    result = statistics.across_seeds([1., 2., 3.])
    assert result.value == 2 and result.n == 3 and "Student's t over 3 seeds" == result.method
    half = 4.302653 / math.sqrt(3)
    assert limits(result) == pytest.approx((2 - half, 2 + half), rel=1e-5)
    assert math.isnan(statistics.across_seeds([4.]).low)


def test_intervals_cover_what_they_promise():
    def covered(clusters):
        hits = 0
        for number in range(300):
            generator = np.random.default_rng([8, number])
            known = generator.beta(.5, .5, size=30)
            right = generator.random((30, 4)) < known[:, None]
            result = statistics.bootstrap(right.ravel(), clusters=clusters, draws=500)
            hits += result.low <= .5 <= result.high
        return hits / 300
    assert .93 <= covered(np.arange(120) // 4) <= .995
    assert covered(None) < .9


@pytest.mark.parametrize('values', [[], [1., math.nan], [[1., 2.]]])
def test_refuses_what_is_no_sample(values):
    with pytest.raises(InputError, match='at least one finite number'):
        statistics.bootstrap(values)
