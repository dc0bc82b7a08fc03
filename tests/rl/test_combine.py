"""Combining rewards, by hand-computed numbers."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.config import section
from jaxllm.errors import InputError
from jaxllm.rl.combine import CENTRED, RULES, CombineConfig, Standardiser, check, combine
from jaxllm.rl.rewards import RewardSpec

SCORES = {'a': np.array([1, 2, -1, 0], np.float32), 'b': np.array([0, 1, 3, -2], np.float32),
          'c': np.array([2, 0, 1, 5], np.float32)}
ONES = dict.fromkeys(SCORES, 1.0)


def test_weighted_sum():
    got = combine(CombineConfig('sum'), SCORES, {'a': 1.0, 'b': -0.5, 'c': 2.0})
    assert got.dtype == np.float32 and got.tolist() == [5, 1.5, -0.5, 11]
    # What has weight 0 is only logged, so that it may be missing too.
    assert combine(CombineConfig('sum'), {'a': SCORES['a']},
                   {'a': 3.0, 'gold': 0.0}).tolist() == [3, 6, -3, 0]


def test_integer_scores_are_not_cut_off():
    got = combine(CombineConfig('sum'), {'a': [1, 0]}, {'a': 0.7})
    assert got.dtype == np.float32 and abs(float(got.sum()) - 0.7) < 1e-6


def test_minimum():
    assert combine(CombineConfig('min'), SCORES, ONES).tolist() == [0, 0, -1, -2]
    assert combine(CombineConfig('min'), SCORES, ONES | {'b': 0.0}).tolist() == [1, 0, -1, 0]


def test_mean_minus_std():
    got = combine(CombineConfig('mean_minus_std', k=2.0), SCORES, ONES)
    # Columns (1, 0, 2), (2, 1, 0), (-1, 3, 1), (0, -2, 5).
    std = math.sqrt(2 / 3)
    np.testing.assert_allclose(got, [1 - 2 * std, 1 - 2 * std, 1 - 2 * math.sqrt(8 / 3),
                                     1 - 2 * math.sqrt(26 / 3)], rtol=1e-6)
    got = combine(CombineConfig('mean_minus_std', k=0.0), SCORES, ONES)
    np.testing.assert_allclose(got, [1, 1, 1, 1], rtol=1e-6)


GATE = CombineConfig('gate', helpful='a', safe='b')
FIELDS = [{'kind': 'fact'}, {'kind': 'unsafe'}, {}, {'kind': 'fact'}]


def test_the_safety_gate():
    weights = {'a': 1.0, 'b': 1.0, 'c': 0.0}
    # sigmoid(-2) = 0.119 < 0.15: safety speaks for the last one, and for the tagged second one.
    chosen = np.array([1, 1, -1, -2])
    got = combine(GATE, SCORES, weights, FIELDS, absolute=True)
    assert got.tolist() == chosen.tolist() and got.dtype == np.float32
    got = combine(GATE, SCORES, weights, FIELDS)
    # Mean -1/4, variance (1 + 1 + 1 + 4) / 4 - 1/16 = 27/16.
    np.testing.assert_allclose(got, (chosen + 0.25) / math.sqrt(27 / 16), rtol=1e-6)
    strict = CombineConfig('gate', helpful='a', safe='b', threshold=0.6)
    # sigmoid(0) = 0.5 and sigmoid(-2) are below 0.6.
    assert combine(strict, SCORES, weights, FIELDS, absolute=True).tolist() == [0, 1, -1, -2]


def test_the_gate_is_at_the_probability():
    edge = math.log(0.15 / 0.85)
    scores = {'a': [9.0, 9.0], 'b': [edge - 1e-6, edge + 1e-6]}
    got = combine(GATE, scores, {'a': 1.0, 'b': 1.0}, [{}, {}], absolute=True)
    np.testing.assert_allclose(got, [edge, 9], rtol=1e-5)


def test_standardise_then_sum():
    scores = {'a': [0, 2, 10, 14], 'b': [5, 1, 0, 0]}
    got = combine(CombineConfig('standardised_sum'), scores, {'a': 1.0, 'b': 3.0}, group_size=2)
    # Groups of two become -1 and 1, an equal group 0: a = -1 1 -1 1, b = 1 -1 0 0.
    total = np.array([2, -2, -1, 1])
    np.testing.assert_allclose(got, total / math.sqrt(2.5), rtol=1e-6)
    whole = combine(CombineConfig('standardised_sum'), scores, {'a': 1.0, 'b': 0.0})
    np.testing.assert_allclose(whole, (np.array(scores['a']) - 6.5) / np.std(scores['a']),
                               rtol=1e-6)
    assert combine(CombineConfig('standardised_sum'), scores, {'a': 1.0, 'b': 3.0},
                   absolute=True).tolist() == [15, 5, 10, 14]


def test_rewards_that_collapse_when_summed_first_stay_apart():
    """(0, 1) and (0, 2) give the same advantages if summed and then standardised, not here: the
    point of arXiv 2601.05242."""
    easy = {'a': [0, 1, 0, 1], 'b': [0, 0, 0, 1]}
    got = combine(CombineConfig('standardised_sum'), easy, {'a': 1.0, 'b': 1.0}, group_size=2)
    assert got[3] - got[2] > 1.5 * (got[1] - got[0]) > 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-50, 50)] * 2), min_size=2, max_size=12),
       st.floats(0.1, 10), st.floats(-5, 5), st.randoms())
def test_properties(rows, gain, shift, random):
    a, b = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    weights, order = {'a': 1.0, 'b': 1.0}, list(range(len(a)))
    random.shuffle(order)
    for rule in (CombineConfig('sum'), CombineConfig('min'), CombineConfig('mean_minus_std'),
                 CombineConfig('standardised_sum'), GATE):
        fields = [{'kind': 'unsafe' if i % 3 == 0 else 'fact'} for i in range(len(a))]
        got = combine(rule, {'a': a, 'b': b}, weights, fields)
        assert got.shape == a.shape and got.dtype == np.float32 and np.isfinite(got).all()
        mixed = combine(rule, {'a': a[order], 'b': b[order]}, weights, [fields[i] for i in order])
        np.testing.assert_allclose(mixed, got[order], rtol=1e-4, atol=1e-4)
    if np.std(a) > 0 and np.std(b) > 0:
        rule = CombineConfig('standardised_sum')
        first = combine(rule, {'a': a, 'b': b}, weights)
        second = combine(rule, {'a': gain * a + shift, 'b': b}, weights)
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('rule, weights, said', [
    (dict(rule='sum'), {'a': 0.0, 'b': 0.0}, 'all 0'),
    (dict(rule='sum'), {}, 'all 0'),
    (dict(rule='sum'), {'a': math.inf}, 'finite'),
    (dict(rule='mean'), {'a': 1.0}, "'mean' is unknown.*standardised_sum"),
    (dict(rule='sum', weights={}), {'a': 1.0}, 'weights'),
    (dict(rule='sum', helpful='a'), {'a': 1.0}, 'used by rule=gate alone'),
    (dict(rule='gate', helpful='a'), {'a': 1.0, 'b': 1.0}, "combine.safe: '' is no reward"),
    (dict(rule='gate', helpful='a', safe='x'), {'a': 1.0, 'b': 1.0}, "'x' is no reward.*a, b"),
    (dict(rule='gate', helpful='a', safe='b'), {'a': 1.0, 'b': 0.0}, "'b' has weight 0"),
    (dict(rule='gate', helpful='a', safe='a'), {'a': 1.0, 'b': 1.0}, 'expected two'),
    (dict(rule='gate', helpful='a', safe='b'), {'a': 1.0, 'b': 1.0, 'c': 1.0}, 'not c'),
    (dict(rule='gate', helpful='a', safe='b'), {'a': 1.0, 'b': 2.0}, 'does not weigh'),
    (dict(rule='gate', helpful='a', safe='b', threshold=1.5), {'a': 1.0, 'b': 1.0}, 'threshold'),
    (dict(rule='min'), {'a': 0.5, 'b': 1.0}, 'does not weigh'),
    (dict(rule='mean_minus_std'), {'a': 1.0, 'b': 0.0}, 'two or more'),
    (dict(rule='mean_minus_std', k=-1.0), {'a': 1.0, 'b': 1.0}, 'combine.k'),
])
def test_bad_settings_are_refused(rule, weights, said):
    with pytest.raises(InputError, match=said):
        check(section(CombineConfig, rule, 'combine'), weights)


def test_good_settings_pass():
    specs = {'a': RewardSpec('model', run='x'), 'b': RewardSpec('model', run='y'),
             'c': RewardSpec('model', run='z', weight=0.0)}
    for rule in (GATE, CombineConfig('min'), CombineConfig('sum'), CombineConfig('mean_minus_std'),
                 CombineConfig('standardised_sum')):
        check(rule, specs)


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match='no scores of b'):
        combine(CombineConfig('sum'), {'a': [1.0]}, {'a': 1.0, 'b': 1.0})
    with pytest.raises(InputError, match='shapes'):
        combine(CombineConfig('sum'), {'a': [1.0], 'b': [1.0, 2.0]}, {'a': 1.0, 'b': 1.0})
    with pytest.raises(InputError, match='groups of 3'):
        combine(CombineConfig('standardised_sum'), SCORES, ONES, group_size=3)
    with pytest.raises(InputError, match='fields of 1 records for 4'):
        combine(GATE, SCORES, ONES, [{}])


def test_statistics_of_the_reference_are_frozen(tmp_path):
    standardiser = Standardiser.fit({'a': [1, 3, 5, 7], 'same': [2.1] * 7})
    # Mean 4, variance (9 + 1 + 1 + 9) / 4 = 5.
    assert standardiser.statistics['a']['num'] == 4
    got = standardiser({'a': [4, 4 + math.sqrt(5), 104], 'same': [2.1, 3.1, 2.1], 'new': [1, 2, 3]})
    np.testing.assert_allclose(got['a'], [0, 1, 100 / math.sqrt(5)], atol=1e-6)
    np.testing.assert_allclose(got['same'], [0, 1, 0], atol=1e-6)
    assert got['new'].tolist() == [1, 2, 3]
    assert all(x.dtype == np.float32 for x in got.values())
    assert standardiser.constant == ['same']
    file = tmp_path / 'rewards.json'
    standardiser.save(file)
    assert Standardiser.load(file) == standardiser
    # The same whatever else is in the batch.
    assert standardiser({'a': [104]})['a'][0] == got['a'][2]


def test_its_own_samples_have_mean_0_and_std_1():
    values = np.random.default_rng(0).normal(3, 7, 50)
    got = Standardiser.fit({'a': values})({'a': values})['a']
    assert abs(got.mean()) < 1e-6 and abs(got.std() - 1) < 1e-6


def test_statistics_that_are_none_are_refused(tmp_path):
    for values in ([1.0], [], [1.0, math.nan], [[1.0, 2.0]]):
        with pytest.raises(InputError, match='cannot be standardised'):
            Standardiser.fit({'a': values})
    file = tmp_path / 'x.json'
    for text in (None, 'no json', '[1]', '{"a": {"gain": 1}}',
                 json.dumps({'a': dict(gain=math.nan, bias=0, mean=0, std=0, num=2)})):
        if text is not None:
            file.write_text(text)
        with pytest.raises(InputError, match='statistics'):
            Standardiser.load(file)


@pytest.mark.parametrize('rule', RULES)
def test_which_rules_centre_a_batch(rule):
    names = dict(helpful='a', safe='b') if rule == 'gate' else {}
    scores = {'a': np.float32([3, 4, 5, 7]), 'b': np.float32([2, 4, 9, 6])}
    found = combine(CombineConfig(rule, **names), scores, {'a': 1.0, 'b': 1.0},
                    [{}] * 4, group_size=2)
    assert (abs(found.mean()) < 1e-6) == (rule in CENTRED)
