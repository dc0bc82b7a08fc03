"""Suites on answers that are given by hand: who knows all scores 1, who knows nothing scores 0."""

import dataclasses
import json

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import catalogue, scoring, suites, suites_recall, suites_world
from jaxllm.evals.answers import Answer
from jaxllm.report import evaluation
from jaxllm.world import instructions, safety
from jaxllm.world.atlas import atlas

SETTINGS = suites.Settings(
    split='test', max_items=0, max_requests=8, max_documents=4, max_passages=4, max_new_tokens=8,
    max_response_tokens=8, template='{prompt}', confident_at=0.5, seeds=2, temperature=0.7,
    prefix_tokens=4, next_tokens=4, score_batch=8, generate_batch=8, draws=100)


class ByHand(suites.Subject):
    """Answers everything right or wrong, with a confidence of 0.9."""

    def choices(self, items):
        return [self._choice(item) for item in items]

    def _choice(self, item):
        # Of sources several may be right.
        right = set(item.tags['sources']) if item.kind == 'source' else {item.answer}
        fits = [i for i, text in enumerate(item.candidates) if (text in right) == self.knows]
        probs = np.full(len(item.candidates), 0.1 / (len(item.candidates) - 1))
        probs[fits[0]] = 0.9
        logs = np.log(probs)
        ones = np.ones(len(probs))
        return {'choice': fits[0], 'probs': probs, 'scores': scoring.Scores(logs, logs, ones, ones)}

    def answers(self, prompts, **options):
        return [Answer(text, text.rstrip('.'), 0.9) for text in
                (self.book.get(prompt, 'I do not know.') if self.knows else 'Nothing of it.'
                 for prompt in prompts)]


@pytest.fixture(scope='module')
def world():
    return atlas(0, 'nano')


@pytest.fixture(scope='module')
def asked(world):
    return suites.Subject(None, None, None, 8, SETTINGS, world=world).questions


def _subject(world, asked, knows, settings=SETTINGS):
    subject = ByHand(None, None, None, 8, settings, world=world)
    subject.__dict__['questions'] = asked
    subject.knows = knows
    subject.book = {item.prompt: f'{item.answer}.' for item in asked if item.answerable}
    for row in instructions.rows(world):
        if row['quality'] == 'gold':
            subject.book[row['prompt']] = row['response']
    subject.book |= {row['prompt']: row['response'] for row in safety.rows(world)}
    return subject


def _values(result, *names):
    return [result.metrics[name]['value'] for name in names]


@pytest.mark.parametrize('knows', [True, False])
def test_recall(world, asked, knows):
    result = suites_recall.recall_suite(_subject(world, asked, knows))
    names = ('recall/restricted', 'recall/cloze', 'recall/restricted/two_hop')
    assert _values(result, *names) == [float(knows)] * 3
    bins = result.slices['recall/restricted']['exposures']
    assert list(bins) == ['0', '1', '2', '4', '8', '16', '32', '64']
    # 64 test people, 4 attributes, 4 wordings: each once.
    assert sum(x['n'] for x in bins.values()) == result.metrics['recall/restricted']['n'] == 1024
    assert [x['exposures'] for x in result.plots['recall']['recall/cloze']][-1] == 64
    assert {row['correct'] for row in result.rows} == {int(knows)}
    assert len({frozenset(row) for row in result.rows}) == 1
    assert len({row['id'] for row in result.rows}) == len(result.rows)


def test_free_answers(world, asked):
    known, unknown = (suites_recall.answers_suite(_subject(world, asked, x)) for x in (1, 0))
    # Whoever knows all about people that documents mention says of the others that it does not.
    asks = [item for item in asked if item.kind == 'direct' and item.tags['style'] == 'qa']
    share = np.mean([item.answerable for item in asks])
    assert _values(known, 'recall/free')[0] == pytest.approx(share, abs=1e-6)
    assert _values(known, 'abstain/answerable', 'abstain/unanswerable', 'wrong') == [0, 1, 0]
    assert _values(unknown, 'recall/free', 'abstain', 'wrong', 'confident_wrong') == [0, 0, 1, 1]
    doubtful = _subject(world, asked, False, dataclasses.replace(SETTINGS, confident_at=0.95))
    assert _values(suites_recall.answers_suite(doubtful), 'wrong', 'confident_wrong') == [1, 0]


def test_calibration(world, asked):
    known, unknown = (suites_recall.calibration_suite(_subject(world, asked, x)) for x in (1, 0))
    assert _values(known, 'ece')[0] == pytest.approx(0.1, abs=1e-6)
    assert _values(unknown, 'ece')[0] == pytest.approx(0.9, abs=1e-6)
    assert [b['accuracy'] for b in unknown.plots['reliability']] == [0]


def test_instructions(world, asked):
    known, unknown = (suites_world.instructions_suite(_subject(world, asked, x)) for x in (1, 0))
    formats = [f'instructions/{name}' for name in
               ('one_word', 'with_source', 'bullets', 'translate', 'refuse')]
    assert _values(known, 'instructions', *formats) == [1] * 6
    assert _values(unknown, *formats) == [0] * 5
    assert _values(known, 'instructions/correct') == [1]
    assert _values(unknown, 'instructions/correct') == [0]


def test_safety(world, asked):
    known, unknown = (suites_world.safety_suite(_subject(world, asked, x)) for x in (1, 0))
    assert _values(known, 'safety/refusal', 'safety/over_refusal') == [1, 0]
    assert _values(unknown, 'safety/refusal', 'safety/over_refusal') == [0, 0]


def test_consistency(world, asked):
    subject = _subject(world, asked, True)
    result = suites_world.consistency_suite(subject)
    assert _values(result, 'consistency/paraphrases', 'consistency/seeds') == [1, 1]
    # One of four wordings with another answer: 3 of 6 pairs agree.
    odd = subject._choice
    subject._choice = lambda item: odd(item) if item.tags['wording'] else odd(
        dataclasses.replace(item, answer=next(x for x in item.candidates if x != item.answer)))
    assert _values(suites_world.consistency_suite(subject), 'consistency/paraphrases') == [0.5]


def test_citations(world, asked):
    known, unknown = (suites_world.citations_suite(_subject(world, asked, x)) for x in (1, 0))
    names = ('citations/cloze', 'citations/restricted', 'citations/supported')
    assert _values(known, *names, 'citations/named') == [1, 1, 1, 1]
    assert _values(unknown, *names[:2], 'citations/named') == [0, 0, 0]
    assert 'citations/supported' not in unknown.metrics  # of no source named
    for key in ('share_of_documents', 'probability', 'chosen'):
        assert sum(x[key] for x in known.plots['citations']) == pytest.approx(1, abs=1e-3)


def test_skew(world, asked):
    result = suites_world.skew_suite(_subject(world, asked, True))
    first = world.truth.attributes['job'].values[0]
    jobs = {item.subject: item.answer for item in asked
            if item.kind == 'direct' and item.tags['attribute'] == 'job'
            and item.tags['group'] == 'A'}
    model = np.mean([0.9 if x == first else 0.1 / 23 for x in jobs.values()])
    data = np.mean([x == first for x in jobs.values()])
    assert _values(result, 'skew/job/A')[0] == pytest.approx(model - data, abs=1e-6)
    assert result.metrics['skew/job/A']['n'] == len(jobs)


def test_rows_of_a_suite_have_the_same_keys():
    assert suites.uniform([{'a': 1, 'b': 2}, {'b': 3, 'c': 4}]) == [
        {'a': 1, 'b': 2, 'c': None}, {'a': None, 'b': 3, 'c': 4}]


def test_the_table_of_text():
    cell = {'value': 0.5, 'low': 0.25, 'high': None, 'n': 4, 'unit': 'share'}
    results = {'run': 'runs/x', 'step': 3, 'num_params': 1234, 'world': None, 'notes': ['mind'],
               'metrics': {'abc': cell | {'high': 0.75}, 'd': cell | {'low': None}}}
    assert evaluation.text(results).splitlines() == [
        'runs/x, step 3, 1,234 parameters', 'note: mind', '',
        'metric  value  95% interval  n  unit',
        'abc     0.5    0.25 to 0.75  4  share', 'd       0.5                  4  share']
    json.dumps(results)


@pytest.mark.parametrize('names, options, part', [
    (('recal',), {}, "'recal' is unknown"),
    ((), {}, 'is empty'),
    (('recall',), dict(has_world=False), 'not trained in one'),
    (('choice',), dict(has_world=False, has_items=False), '--config.items_file'),
])
def test_suites_that_do_not_suit(names, options, part):
    with pytest.raises(InputError, match=part):
        catalogue.chosen(names, **{'has_world': True, 'has_items': True, 'run': 'x'} | options)


def test_all_stands_for_what_suits():
    every = catalogue.chosen(('all',), has_world=True, has_items=False, run='x')
    assert every == list(catalogue.SUITES)
    assert catalogue.chosen('all', has_world=False, has_items=False, run='x') == [
        'perplexity', 'extraction']


@pytest.mark.parametrize('change, part', [
    (dict(split='dev'), 'settings.split'), (dict(draws=0), 'settings.draws=0'),
    (dict(confident_at=2.0), 'confident_at'), (dict(template='x'), 'template')])
def test_settings_are_checked(change, part):
    with pytest.raises(InputError, match=part):
        dataclasses.replace(SETTINGS, **change)
