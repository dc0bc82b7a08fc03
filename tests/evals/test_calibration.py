"""Calibration against cases computed by hand, and its interval against its promise."""

import math

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import calibration

CONFIDENCE = np.array([.1, .3, .35, .6, .8, .9])
CORRECT = np.array([0, 1, 0, 1, 1, 0], dtype=bool)


def test_expected_calibration_error_by_hand():
    # Two halves of [0, 1]: (.75 - 1) / 3 * 3 / 6 and (2.3 - 2) / 3 * 3 / 6.
    assert calibration.ece(CONFIDENCE, CORRECT, bins=2, equal='width') == pytest.approx(
        abs(.75 - 1) / 6 + abs(2.3 - 2) / 6)
    # Three pairs: |.4 - 1|, |.95 - 1|, |1.7 - 1|.
    assert calibration.ece(CONFIDENCE, CORRECT, bins=3) == pytest.approx((.6 + .05 + .7) / 6)
    # In equal widths the three thirds hold 2, 2 and 2 as well, at 1/3 and 2/3: .1 .3 | .35 .6 | ...
    assert calibration.ece(CONFIDENCE, CORRECT, bins=3, equal='width') == pytest.approx(1.35 / 6)
    assert calibration.ece([1., 1., 0.], [1, 1, 0]) == 0
    assert calibration.ece([1., 1., 0.], [0, 0, 1]) == 1


def test_reliability_table_by_hand():
    table = calibration.reliability(CONFIDENCE, CORRECT, bins=4, equal='width')
    assert [(b.lower, b.upper, b.n) for b in table] == [
        (0., .25, 1), (.25, .5, 2), (.5, .75, 1), (.75, 1., 2)]
    assert [b.accuracy for b in table] == [0, .5, 1, .5]
    assert [b.confidence for b in table] == pytest.approx([.1, .325, .6, .85])
    assert all(b.low < b.high for b in table)
    sparse = calibration.reliability([.05, .95, .96], [0, 1, 1], bins=10, equal='width')
    assert [b.n for b in sparse] == [1, 2]


def test_equal_mass_keeps_ties_together():
    confidence, correct = np.array([.5] * 6 + [.9, .95, 1., 1.]), np.arange(10) % 2
    table = calibration.reliability(confidence, correct, bins=5)
    assert sum(b.n for b in table) == 10 and table[0].n == 6
    mixed = np.random.default_rng(0).permutation(10)
    assert calibration.ece(confidence, correct, bins=5) == pytest.approx(
        calibration.ece(confidence[mixed], correct[mixed], bins=5))
    spread = np.random.default_rng(0).random(100)
    assert [b.n for b in calibration.reliability(spread, spread > .5, bins=5)] == [20] * 5


def test_brier_and_auroc_by_hand():
    assert calibration.brier(CONFIDENCE, CORRECT) == pytest.approx(
        (.01 + .49 + .1225 + .16 + .04 + .81) / 6)
    # Right: .3 .6 .8; wrong: .1 .35 .9. Pairs where the right one is higher: 1 + 2 + 2 of 9.
    assert calibration.auroc(CONFIDENCE, CORRECT) == pytest.approx(5 / 9)
    assert calibration.auroc([.4, .4, .7], [1, 0, 0]) == .25
    assert math.isnan(calibration.auroc(CONFIDENCE, np.ones(6)))


def test_risk_coverage_by_hand():
    coverage, accuracy = calibration.risk_coverage(CONFIDENCE, CORRECT)
    assert coverage == pytest.approx(np.arange(1, 7) / 6)
    assert accuracy == pytest.approx([0, 1 / 2, 2 / 3, 2 / 4, 3 / 5, 3 / 6])
    coverage, accuracy = calibration.risk_coverage([.9, .5, .5, .5], [1, 1, 0, 1])
    assert (list(coverage), list(accuracy)) == ([.25, 1], [1, .75])


def sample(seed, over, n=200):
    generator = np.random.default_rng([3, seed])
    confidence = generator.uniform(.2, 1, n)
    return confidence, generator.random(n) < np.clip(confidence - over, 0, 1)


@pytest.mark.parametrize('over', [0, .2])
def test_interval_of_the_error_covers_what_it_promises(over):
    # Confidences above .2 that are .2 too high: the error is .2, in whatever bins.
    intervals = [calibration.ece_interval(*sample(seed, over), equal='width', draws=300)
                 for seed in range(100)]
    assert np.mean([i.low <= over <= i.high for i in intervals]) >= .9
    assert all(i.low <= i.value <= i.high for i in intervals)
    assert np.mean([i.high - i.low for i in intervals]) < .2


def test_interval_of_clusters_is_wider():
    confidence, correct = sample(0, .2)
    rows = np.repeat(np.arange(200), 3)
    once = calibration.ece_interval(confidence[rows], correct[rows])
    whole = calibration.ece_interval(confidence[rows], correct[rows], clusters=rows)
    assert once.value == whole.value == calibration.ece(confidence[rows], correct[rows])
    assert whole.high - whole.low > 1.3 * (once.high - once.low)


@pytest.mark.parametrize('confidence, correct, match', [
    ([.5, 1.2], [0, 1], 'from 0.5 to 1.2'), ([.5, .7], [0, 2], 'right'),
    ([.5], [0, 1], r'\(1,\) and answers \(2,\)'), ([], [], 'at least one')])
def test_refuses_what_is_no_confidence(confidence, correct, match):
    with pytest.raises(InputError, match=match):
        calibration.ece(confidence, correct)


def test_refuses_bins_that_cannot_be():
    with pytest.raises(InputError, match="equal='size'"):
        calibration.ece(CONFIDENCE, CORRECT, equal='size')
    with pytest.raises(InputError, match='bins=0'):
        calibration.ece(CONFIDENCE, CORRECT, bins=0)
