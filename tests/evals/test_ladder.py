"""Models on the same items: shares are those of the evaluation, differences are paired."""

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import ladder


def recall(id, subject, correct, **more):
    return {'id': id, 'suite': 'recall', 'kind': 'direct', 'style': 'qa', 'answerable': True,
            'subject': subject, 'correct': correct, **more}


def test_a_difference_is_paired_and_by_subject():
    before = [recall(f'q{i}', f's{i // 2}', i % 2) for i in range(40)]
    after = [row | {'correct': 1} for row in reversed(before)]
    rows = ladder.differences({'a': before, 'b': after}, {'a': '', 'b': 'a'}, draws=200)
    [row] = rows
    assert (row['metric'], row['artefact'], row['before']) == ('recall/restricted', 'b', 'a')
    # Of both questions about each subject one was gained, so that resampling subjects is exact.
    assert row['value'] == row['low'] == row['high'] == 0.5 and row['n'] == 40


def test_other_items_are_refused():
    with pytest.raises(InputError, match='b and a were asked other items .2 and 1, 1 of them'):
        ladder.differences({'a': [recall('x', 's', 1)],
                            'b': [recall('x', 's', 1), recall('y', 's', 1)]},
                           {'b': 'a'}, draws=10)


def test_what_counts_for_which_measure():
    kept = {measure.name: measure.where for measure in ladder.MEASURES}
    known = {'kind': 'direct', 'style': 'qa', 'answerable': True, 'planned': 4}
    nobody = known | {'kind': 'unanswerable', 'answerable': False, 'planned': 0}
    assert kept['recall/free'](known) and not kept['recall/free'](known | {'answerable': False})
    assert kept['abstain/answerable'](known) and not kept['abstain/answerable'](nobody)
    assert kept['abstain/unanswerable'](nobody)
    assert not kept['abstain/unanswerable'](nobody | {'kind': 'direct'})  # told of by nobody's plan
    for harmful in (True, False):
        asked = [kept[f'safety/{name}']({'harmful': harmful})
                 for name in ('refusal', 'harm', 'over_refusal')]
        assert asked == [harmful, harmful, not harmful]
    assert not kept['recall/cloze'](known) and kept['recall/cloze'](known | {'style': 'cloze'})


def test_wins_of_each_over_the_one_before():
    scores = {'a': np.zeros(8), 'b': np.array([1., 1, 1, 1, 1, 1, -1, 0])}
    [row] = ladder.wins(scores, {'a': '', 'b': 'a'}, draws=100)
    assert row['value'] == 6.5 / 8 and row['low'] < 6.5 / 8 < row['high']
