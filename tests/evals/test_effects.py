"""Effects against hand-computed numbers, and resampling by sums against resampling rows."""

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import effects, statistics


def table(**columns):
    return {name: np.array(values) for name, values in columns.items()}


SMALL = table(exposures=[0, 1, 2, 2, 8, 8], correct=[1, 0, 0, 1, 1, 1],
              treated=[False, False, True, False, True, False],
              cited=['daily', 'daily', 'post', 'post', 'herald', ''])


def test_means_by_hand():
    assert effects.mean()(SMALL).total == pytest.approx(4 / 6)
    assert effects.mean(exposures=(2, 8))(SMALL).total == .75
    assert effects.mean(exposures=2, treated=False)(SMALL).total == 1
    assert effects.mean(exposures=lambda f: f >= 1)(SMALL).total == pytest.approx(3 / 5)
    assert np.isnan(effects.mean(exposures=64)(SMALL).total)


def test_slope_per_doubling_by_hand():
    # x = 0 1 1 3 3, y = 0 0 1 1 1: n Sxy - Sx Sy = 5 * 7 - 8 * 3, n Sxx - Sx^2 = 5 * 20 - 64.
    assert effects.slope()(SMALL).total == pytest.approx(11 / 36)
    assert np.isnan(effects.slope(exposures=8)(SMALL).total)
    # One value of x that is no power of two: rounding must not make a slope out of it.
    same = table(exposures=[1000] * 301, correct=np.arange(301) % 2)
    assert np.isnan(effects.slope()(same).total)
    # Only the treated: (1, 0) and (3, 1).
    assert effects.slope(treated=True)(SMALL).total == pytest.approx(1 / 2)


def test_rank_correlation_of_bin_means_by_hand():
    # Means 1, 0, .5, 1 at 0, 1, 2, 8: ranks 3.5 1 2 3.5 against 1 2 3 4.
    expected = np.corrcoef([3.5, 1, 2, 3.5], [1, 2, 3, 4])[0, 1]
    assert effects.rank_correlation()(SMALL).total == pytest.approx(expected)
    assert effects.rank_correlation(exposures=(1, 2, 8))(SMALL).total == pytest.approx(1)
    assert np.isnan(effects.rank_correlation(exposures=(0, 8))(SMALL).total)
    # Only the untreated: 1 0 1 1 at 0 1 2 8.
    assert effects.rank_correlation(treated=False)(SMALL).total == pytest.approx(
        np.corrcoef([3, 1, 3, 3], [1, 2, 3, 4])[0, 1])
    moments = effects.rank_correlation()(SMALL)
    without_8 = moments.rows * np.array([1, 1, 1, 1, 0, 0])[:, None]
    assert np.isnan(moments.value(without_8.sum(axis=0)))


def test_arms_are_combined():
    other = {**SMALL, 'correct': np.array([0, 0, 0, 1, 0, 1])}
    arms = {'base': SMALL, 'deleted': other}
    assert effects.of('base', effects.mean())(arms) == pytest.approx(4 / 6)
    assert effects.difference('base', 'deleted', effects.mean())(arms) == pytest.approx(2 / 6)
    assert effects.difference('base', 'base', effects.mean(treated=True),
                              effects.mean(treated=False))(arms) == pytest.approx(.5 - .75)


@pytest.mark.parametrize('statistic', [
    effects.mean(exposures=(2, 8)), effects.slope(), effects.rank_correlation(treated=False)])
def test_weighted_sums_equal_repeated_rows(statistic):
    generator = np.random.default_rng(0)
    rows = {name: np.repeat(values, 30) for name, values in SMALL.items()}
    rows['correct'] = generator.random(180) < .6
    moments = statistic(rows)
    for chunk in statistics.counts(180, 4, 0):
        for value, times in zip(moments.value(chunk @ moments.rows), chunk.astype(int)):
            drawn = {name: np.repeat(values, times) for name, values in rows.items()}
            assert value == pytest.approx(statistic(drawn).total)


def test_names_what_is_missing():
    with pytest.raises(InputError, match="no column 'planned'; the items have cited, correct"):
        effects.mean(planned=3)(SMALL)
    with pytest.raises(InputError, match="no arm 'rlhf'; the arms are 'base'"):
        effects.of('rlhf', effects.mean())({'base': SMALL})


def test_the_treated_of_one_arm_are_looked_up_in_the_other():
    """a and b are treated: 3 of 4 right without the treatment, 1 of 4 with it; c does not count.

    The rows of `cut` stand in another order, and `treated` is a number there.
    """
    subject, ids = ['a', 'a', 'b', 'b', 'c'], [1, 2, 3, 4, 5]
    arms = {'plain': table(id=ids, subject=subject, correct=[1, 1, 1, 0, 0], treated=[False] * 5),
            'cut': table(id=ids[::-1], subject=subject[::-1], correct=[1, 0, 1, 0, 0],
                         treated=[0., 1., 1., 1., 1.])}
    assert effects.on_treated('plain', 'cut')(arms) == pytest.approx(0.75 - 0.25)
    assert effects.on_treated('plain', 'cut', subject='b')(arms) == pytest.approx(0.0)
    with pytest.raises(InputError, match="no arm 'other'"):
        effects.on_treated('plain', 'other')(arms)


def test_the_treated_are_asked_the_same_whatever_the_treatment_changed():
    """The second item of a has a copy, which the treatment deletes: it counts in neither arm. The
    first of b gets a copy by the treatment: it counts in both. c has no mark, and does not count.
    """
    treated = np.array([1., 1., 1., 1., np.nan])
    arms = {'plain': table(id=[1, 2, 3, 4, 5], subject=['a', 'a', 'b', 'b', 'c'],
                           correct=[1, 0, 1, 1, 1], copies=[0, 1, 0, 0, 0], treated=[False] * 5),
            'cut': table(id=[1, 2, 3, 4, 5], subject=['a', 'a', 'b', 'b', 'c'],
                         correct=[0, 1, 1, 0, 0], copies=[0, 0, 1, 0, 0], treated=treated)}
    effect = effects.on_treated('plain', 'cut', copies=0)
    assert effect(arms) == pytest.approx(3 / 3 - 1 / 3)
    arms['cut'] = {name: values[:3] for name, values in arms['cut'].items()}
    with pytest.raises(InputError, match="'cut' lacks 1 of the 3 items of 'plain' ..4"):
        effect(arms)
