"""Models side by side: methods at equal KL, refusals, judges."""

import math

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import comparison


def _row(method, name, kl=None, bound=None):
    return {'method': method, 'artefact': name, 'kl_bound': bound,
            'kl': None if kl is None else {'value': kl}}


ROWS = [_row('ppo', 'ppo_1', 1.0), _row('ppo', 'ppo_2', 4.0), _row('ppo', 'ppo_3', 9.0),
        _row('dpo', 'dpo_1', 2.5), _row('dpo', 'dpo_2', 6.0),
        _row('best_of_n', 'best_of_4', bound=0.636), _row('other', 'other')]


@pytest.mark.parametrize('target, expected', [
    (3.9, ['ppo_1', 'dpo_1', 'best_of_4']), (4.0, ['ppo_2', 'dpo_1', 'best_of_4']),
    (1.5, ['ppo_1', 'dpo_1', 'best_of_4']), (0.0, ['ppo_1', 'dpo_1', 'best_of_4']),
    (100.0, ['ppo_3', 'dpo_2', 'best_of_4'])])
def test_each_method_at_the_nearest_kl_that_is_not_over(target, expected):
    found = comparison.at_equal_kl(ROWS, target)
    assert [row['artefact'] for row in found] == expected
    kls = {row['artefact']: value for row in ROWS
           if (value := comparison.kl_of(row)[0]) is not None}
    assert [row['at_kl'] for row in found] == [kls[name] for name in expected]
    assert [row['is_bound'] for row in found] == [False, False, True]
    assert [row['is_over'] for row in found] == [kls[name] > target for name in expected]
    # Whatever the order in which the checkpoints of a run are given.
    back = comparison.at_equal_kl(ROWS[::-1], target)
    assert sorted(row['artefact'] for row in back) == sorted(expected)


def test_the_kl_that_all_methods_reach():
    assert comparison.shared_kl(ROWS[:5]) == 6.0  # ppo reaches 9, dpo 6
    assert comparison.shared_kl(ROWS) == 0.636
    assert comparison.shared_kl(ROWS[-1:]) is None
    with pytest.raises(InputError, match='equal KL at nan'):
        comparison.at_equal_kl(ROWS, math.nan)


def test_refusals_and_abstentions_by_hand():
    about = lambda kind, answerable=True: {'kind': kind, 'answerable': answerable}
    cases = [('I am sorry, but I cannot help with that.', about('unsafe')),
             ('First you take a rope.', about('unsafe')),
             ('I am sorry, but I cannot help with that.', about('benign')),
             ('Gladly: heat the iron.', about('benign')),
             ('Gladly: hit it.', about('benign')),
             ('I do not know that.', about('fact', False)),
             ('A baker.', about('recommend', False)),
             ('I do not know that.', about('fact')), ('A smith.', about('fact')),
             ('A potter.', about('fact')), ('A smith.', {})]
    found = comparison.safety(*zip(*cases, strict=True))
    shares = {name: (cell['value'], cell['n']) for name, cell in found.items()}
    assert shares == {'refuses_unsafe': (0.5, 2), 'refuses_benign': (pytest.approx(1 / 3), 3),
                      'abstains_unanswerable': (0.5, 2),
                      'abstains_answerable': (pytest.approx(1 / 3), 3)}
    assert found['refuses_unsafe']['low'] == pytest.approx(0.0945, abs=1e-4)  # Wilson, 1 of 2
    assert comparison.safety(['A smith.'], [{}]) == {}
    assert comparison.safety(['A smith.'], [about('fact')])['refuses_unsafe'] is None


def test_judged_against_the_reference():
    n = 6
    answers = lambda texts, scores: comparison.Answers(
        texts, [[1, 2]] * n, np.ones(n), {'judge': np.array(scores, float)}, np.arange(n) * 0.5)
    ref = answers(['ab'] * n, [0, 0, 0, 0, 0, 0])
    other = answers(['abc'] * 3 + ['a'] * 3, [1, 1, 0, 0, 1, -1])
    ids = [f'p{i}' for i in range(n)]
    found = comparison.judged(other, ref, ids, draws=100, seed=0)['judge']
    assert found['mean']['value'] == pytest.approx(2 / 6)
    assert found['win_rate']['value'] == pytest.approx((3 + 0.5 * 2) / 6)
    assert found['win_rate']['low'] < 4 / 6 < found['win_rate']['high']
    assert 'win_rate' not in comparison.judged(ref, ref, ids, draws=100, seed=0)['judge']
    about = comparison.measured(other, ids, lambda tokens: 0.25, draws=100, seed=0)
    assert about['kl']['value'] == pytest.approx(1.25) and about['length'] == 2
    assert about['repetition'] == 0.25 and about['characters'] == 2
    # KL of zeros is known without doubt: it is no share of successes.
    none = comparison.measured(
        comparison.Answers(['a'] * n, [[1]] * n, np.ones(n), {}, np.zeros(n)), ids,
        lambda tokens: 0.0, draws=100, seed=0)
    assert (none['kl']['low'], none['kl']['high']) == (0, 0)
