"""Alpha and kappa against numbers by hand and from the literature."""

import math

import pytest

from jaxllm.feedback.agreement import cohen, krippendorff


def test_the_example_of_the_paper():
    """Krippendorff (2011), section D: 12 units by 4 observers, some missing; 0.743 and 0.815."""
    units = [[1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
             [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [5, 5, 5], [1, 1], [3]]
    assert krippendorff(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff(units, 'ordinal') == pytest.approx(0.815, abs=5e-4)


def test_alpha_by_hand():
    # o_11 = 2, o_12 = o_21 = 1, o_22 = 2; n_1 = n_2 = 3, n = 6: D_o = 2 / 6, D_e = 18 / 30.
    assert krippendorff([[1, 1], [1, 2], [2, 2], [7]]) == pytest.approx(1 - (2 / 6) / (18 / 30))
    # Ordinal, units 1-2 and 3-3: n_1 = n_2 = 1, n_3 = 2, n = 4. d2(1,2) = (2 - 1)^2 = 1,
    # d2(1,3) = (4 - 1.5)^2 = 6.25, d2(2,3) = (3 - 1.5)^2 = 2.25.
    # D_o = 2 * 1 / 4, D_e = 2 (1 + 2 * 6.25 + 2 * 2.25) / 12.
    assert krippendorff([[1, 2], [3, 3]], 'ordinal') == pytest.approx(1 - 0.5 / 3)
    assert krippendorff([['a', 'a'], ['b', 'b', 'b']]) == 1
    assert krippendorff([[1, 2], [2, 1]]) == pytest.approx(-0.5)


def test_kappa_by_hand():
    # Cohen's 2 x 2 example: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: (0.7 - 0.5) / 0.5.
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen(first, second) == pytest.approx(0.4)
    assert cohen([1, 2, 3], [1, 2, 3]) == 1
    assert cohen([1, 2], [2, 1]) == -1


@pytest.mark.parametrize('value', [
    krippendorff([]), krippendorff([[1], [2]]), krippendorff([[1, 1], [1, 1]]), cohen([], []),
    cohen([1, 1], [1, 1])])
def test_where_there_is_no_number(value):
    assert math.isnan(value)


def test_what_is_wrong():
    with pytest.raises(ValueError, match='2 values and 1'):
        cohen([1, 2], [1])
    with pytest.raises(ValueError, match="level='interval'"):
        krippendorff([[1, 2]], 'interval')
