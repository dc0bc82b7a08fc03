"""Win rates: by hand, clustered, and of a judge that sees nothing but length."""

import math

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import win_rate


def test_outcomes_and_shared_ties():
    found = win_rate.outcomes([1.0, 2.0, 3.0, 0.5], [0.0, 2.0, 4.0, 0.5 + 1e-12])
    assert found.tolist() == [1, 0.5, 0, 0.5]
    rate = win_rate.win_rate(found, draws=200)
    assert rate.value == 0.5 and rate.n == 4  # (1 + .5 + 0 + .5) / 4
    assert rate.low < 0.5 < rate.high
    assert win_rate.win_rate([1, 1, 0.5, 0], draws=200).value == 0.625


def test_intervals_have_a_width_where_nothing_varies():
    sure = win_rate.win_rate([1] * 20)
    assert sure.value == 1 and 0.8 < sure.low < 0.9 and sure.high == 1  # Wilson: 0.839
    even = win_rate.win_rate([0.5] * 20)
    assert even.value == 0.5 and even.low < 0.47 and even.high > 0.53


def test_prompts_are_drawn_whole():
    results = np.repeat([1, 0] * 10, 5)
    alone = win_rate.win_rate(results, draws=1000)
    together = win_rate.win_rate(results, clusters=np.repeat(np.arange(20), 5), draws=1000)
    assert together.high - together.low > 1.8 * (alone.high - alone.low)  # sqrt(5) = 2.2


def test_regression_by_hand():
    # Two lengths of equal counts: each has its own win rate, 3/4 and 1/4, so a = 0 and the slope is
    # log 3 but for its prior: sum x (y - p) = b gives 0.25 * 800 * ... -> b just below log 3.
    x = np.repeat([1.0, -1.0], 400)
    results = np.concatenate([np.repeat([1, 0], [300, 100]), np.repeat([1, 0], [100, 300])])
    a, b = win_rate.fit(results, x, np.ones((1, 800)))[0]
    assert abs(a) < 1e-9
    # The stationary point of the slope: 800 (0.75 - sigmoid(b)) = b.
    assert abs(800 * (0.75 - 1 / (1 + math.exp(-b))) - b) < 1e-6
    assert 0 < math.log(3) - b < 0.02
    weights = np.stack([np.ones(800), np.where(results == 1, 2.0, 1.0)])
    both = win_rate.fit(results, x, weights)
    assert both[0] == pytest.approx([a, b])
    assert both[1][0] == pytest.approx(math.log(2), abs=0.02)  # odds doubled at either length


@pytest.mark.parametrize('slope', [2.0, math.inf])
def test_a_judge_that_likes_length_only(slope):
    rng = np.random.default_rng(3)
    differences = rng.normal(20, 25, size=400)  # the model writes more
    chance = 1 / (1 + np.exp(-np.clip(slope * differences / 25, -50, 50)))
    results = (rng.random(400) < chance).astype(float)
    plain = win_rate.win_rate(results, draws=300)
    found = win_rate.length_controlled(results, differences, draws=300)
    assert plain.low > 0.65
    assert abs(found.value - 0.5) < 0.1 and found.low < 0.5 < found.high


def test_a_judge_that_does_not_see_length():
    rng = np.random.default_rng(4)
    differences = rng.normal(20, 25, size=500)
    results = (rng.random(500) < 0.7).astype(float)
    found = win_rate.length_controlled(results, differences, draws=300)
    assert abs(found.value - 0.7) < 0.07 and found.low > 0.6
    # Another unit of length changes nothing, and the other side has the rest.
    same = win_rate.length_controlled(results, differences * 7, draws=300)
    assert same.value == pytest.approx(found.value) and same.low == pytest.approx(found.low)
    other = win_rate.length_controlled(1 - results, -differences, draws=300)
    assert other.value == pytest.approx(1 - found.value)


def test_lengths_without_spread():
    results = [1, 1, 0, 0.5]
    assert win_rate.length_controlled(results, [0] * 4, draws=100).value == 0.625
    assert math.isnan(win_rate.length_controlled(results, [3] * 4).value)
    always = win_rate.length_controlled([1] * 9, np.arange(9) - 4, draws=100)
    assert always.value > 0.99 and math.isnan(always.low)  # resampling gives no width


@pytest.mark.parametrize('results, differences, part', [
    ([], [], 'outcomes'), ([0.3], [1], '0.5'), ([1, 0], [1], 'difference'),
    ([1, 0], [1, math.nan], 'finite')])
def test_bad_input(results, differences, part):
    with pytest.raises(InputError, match=part):
        win_rate.length_controlled(results, differences)
    with pytest.raises(InputError, match='finite'):
        win_rate.outcomes([math.nan], [1.0])
