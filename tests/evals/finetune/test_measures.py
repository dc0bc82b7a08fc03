"""Measures of answers, fixed questions, comparisons and advice, against numbers by hand."""

import math

import numpy as np
import pytest

from jaxllm.evals.finetune import choose, compare, diagnosis, metrics, probes


@pytest.mark.parametrize('answers, want', [
    (['yes', 'no', 'Yes.', 'no'] * 5, 'label'),
    (['12', '7 apples', 'about 3.5', '1,000'] * 5, 'number'),
    (['{"a": 1}', '{"a": 2}'] * 5, 'json'),
    (['A whole sentence that says something.', 'Another one, longer than the first.'] * 5, 'text'),
    (['yes'] * 3 + ['no'], 'text'),  # too few of each to be labels
])
def test_the_measure_is_chosen_from_training_answers(answers, want):
    assert metrics.measure_for(answers) == want


@pytest.mark.parametrize('measure, answer, reference, want', [
    ('label', ' Yes! ', 'yes', 1.0), ('label', 'no', 'yes', 0.0),
    ('number', 'It is 1,200.', '1200', 1.0), ('number', 'none', '3', 0.0),
    ('number', '-2.5', '-2.5', 1.0),
    ('json', '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5), ('json', 'oh', '{"a": 1}', 0.0),
    ('json', '{"a": 1}', '{"a": 1, "b": 3}', 0.5), ('json', '[1]', '[1]', 1.0),
    ('text', 'the cat sat', 'the cat sat', 1.0),
    # Longest common subsequence of 'cat sat down' and 'cat down' is 2 words: 2 * 2 / (3 + 2).
    ('text', 'cat sat down', 'cat down', 0.8), ('text', '', 'x', 0.0),
    # Order matters: of 'b a' and 'a b' only one word is in order.
    ('text', 'bee ant', 'ant bee', 0.5),
])
def test_scores_by_hand(measure, answer, reference, want):
    assert metrics.score(measure, answer, reference) == pytest.approx(want)


def test_the_form_of_answers():
    shape = metrics.shape_of(['Dear rider, yes. Bye!'] * 9 + ['Well, no. Bye!'])
    assert (shape.starts_with, shape.ends_with, shape.lines) == ('Dear', '!', 'one')
    assert metrics.follows(shape, 'Dear all, perhaps!') and not metrics.follows(shape, 'Yes!')
    assert not metrics.follows(shape, 'Dear all,\nperhaps!') and not metrics.follows(shape, '')
    assert not metrics.follows(shape, 'Dear ' + 'x ' * 20 + '!')
    assert "begin with 'Dear'" in metrics.describe(shape)


@pytest.mark.parametrize('checker, argument, good, bad', [
    ('max_words', 2, 'two words', 'now three words'),
    ('one_of', ('yes', 'no'), 'Yes.', 'yes it is'),
    ('number', None, '8.', 'eight'), ('bullets', 2, '- a\n- b', '- a\n- b\n- c'),
    ('capitals', None, 'HELLO', 'Hello'), ('json', ('a',), '{"a": 1}', '{"b": 1}'),
    ('ends', '!', 'Oh!', 'Oh.'), ('ends', 'done', 'four. Done.', 'done it'),
    ('begins', 'Certainly', 'Certainly, so', 'So, certainly'),
    ('paragraphs', 2, 'a\n\nb', 'a\nb'), ('without', 'e', 'corn', 'pea'),
    ('holds', ('a b', 'c'), 'c and a b', 'a b'), ('exact', 'good day', 'Good day.', 'good days'),
    ('quoted', None, '"Rome"', 'Rome'), ('numbered', 2, '1. a\n2. b', '1. a\n3. b'),
])
def test_format_checkers(checker, argument, good, bad):
    assert probes.obeys(good, checker, argument) and not probes.obeys(bad, checker, argument)
    assert not probes.obeys('', checker, argument)


def test_every_probe_can_be_met():
    assert {x[1] for x in probes.FORMATS} <= probes.CHECKERS.keys()
    assert len(probes.FORMATS) == 30 and len(probes.FACTS) == 40 and len(probes.UNKNOWN) == 20
    assert all(probes.knows(f'It is {answers[0]}, I think.', answers)
               for _, answers in probes.FACTS)
    assert not probes.knows('Romeo', ('Rome',))


@pytest.mark.parametrize('text, want', [
    ("I don't know.", True), ('There is no such country.', True), ('Velmoria is a fictional land.',
                                                                   True),
    ('The capital is Velm.', False), ('No, it is Paris.', False)])
def test_abstention(text, want):
    assert probes.abstains(text) == want


def test_a_paired_ratio_by_hand():
    """Sums over items, then one division: (1 + 9) / (1 + 3) before, (1 + 3) / 4 after."""
    row = compare.paired([1, 9], [1, 3], [1, 3], [1, 3], higher=False, draws=500)
    assert (row['before'], row['after'], row['difference'], row['n']) == (2.5, 1.0, -1.5, 2)
    assert row['low'] < -1.5 < row['high'] or row['low'] <= -1.5


def test_verdicts():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60) + 3
    ones = np.ones(60)
    better = compare.paired(x, ones, x - 1 + 0.1 * rng.normal(size=60), ones, higher=False)
    worse = compare.paired(x, ones, x - 1 + 0.1 * rng.normal(size=60), ones, higher=True)
    none = compare.paired(x, ones, x + rng.normal(size=60) - 0.05, ones, higher=True)
    assert [row['verdict'] for row in (better, worse, none)] == [
        'better', 'worse', 'no difference shown']
    assert none['low'] < 0 < none['high']
    same = compare.paired(x, ones, x, ones, higher=True)
    assert same['difference'] == 0 and same['verdict'] == 'no difference shown'


def facts(**changes):
    return diagnosis.Facts(**dict(
        losses=(2.0, 1.0), val=((0, 2.0), (10, 1.5), (20, 1.4), (30, 1.399)), gap=0.1, epochs=3.0,
        lr=1e-3, rank=16, num_train=400, findings={}) | changes)


def compared(**verdicts):
    base = {'nll': 'better', 'score': 'better', 'format': 'no difference shown'}
    return {name: {'verdict': verdict, 'after': 0.95} for name, verdict in
            {**base, **verdicts}.items()}


@pytest.mark.parametrize('changes, verdicts, kind, words', [
    ({}, {}, 'settings', 'nothing stands out'),
    (dict(skipped=3), {}, 'settings', 'unstable'),
    (dict(losses=(2.0, math.nan)), {}, 'settings', 'unstable'),
    (dict(val=((0, 2.0), (10, 2.4))), {}, 'settings', 'never fell below its start'),
    (dict(val=((0, 2.0), (10, 1.7), (20, 1.4))), {}, 'settings', 'still falling'),
    (dict(val=((0, 2.0), (10, 1.2), (20, 1.6))), {}, 'settings', 'over-fitting'),
    (dict(gap=1.0), {}, 'settings', 'learns by heart'),
    ({}, dict(format='worse'), 'settings', 'forgetting'),
    (dict(findings={'contradiction': 20}), {}, 'data', 'contradict each other'),
    (dict(num_train=40), dict(nll='no difference shown', score='no difference shown'), 'data',
     'are few'),
    ({}, {'unknown/made_up': 'worse'}, 'data', 'makes up more'),
    ({}, dict(nll='no difference shown'), 'retrain', 'compare other bases'),
    ({}, dict(score='worse'), 'retrain', 'side by side'),
])
def test_advice_for_planted_cases(changes, verdicts, kind, words):
    advice = diagnosis.diagnose(facts(**changes), compared(**verdicts))
    assert any(x.kind == kind and words in x.text for x in advice), advice
    order = [('settings', 'data', 'retrain').index(x.kind) for x in advice]
    assert order == sorted(order)


def test_answers_that_do_not_end():
    found = compared() | {'stopped': {'verdict': 'worse', 'after': 0.3}}
    assert any('30% of the answers end' in x.text for x in diagnosis.diagnose(facts(), found))


def test_the_smallest_of_those_that_overlap_is_recommended():
    row = lambda name, size, bits: {'model': name, 'parameters': size, 'bits_per_byte': bits,
                                    'low': bits - 0.1, 'high': bits + 0.1}
    rows = [row('big', 900, 1.0), row('small', 100, 1.15), row('tiny', 10, 1.4)]
    assert choose.recommended(rows) == 'small'
