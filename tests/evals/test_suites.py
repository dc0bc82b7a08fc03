"""Suites on answers that are given by hand: who knows all scores 1, who knows nothing scores 0."""

import dataclasses
import json

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import (catalogue, perplexity, scoring, suites, suites_facts, suites_recall,
                          suites_world, world_items)
from jaxllm.evals.answers import Answer
from jaxllm.report import evaluation
from jaxllm.world import documents, instructions, languages, safety
from jaxllm.world.atlas import atlas

SETTINGS = suites.Settings(
    split='test', wordings='all', max_items=0, max_requests=8, max_documents=4, max_passages=4,
    max_new_tokens=8, max_response_tokens=8, template='{prompt}', confident_at=0.5, seeds=2,
    temperature=0.7, prefix_tokens=4, next_tokens=4, score_batch=8, generate_batch=8, draws=100)


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
    subject.book |= {row['prompt']: row['answer'] for row in languages.rows(world)}
    return subject


def _values(result, *names):
    return [result.metrics[name]['value'] for name in names]


def _untold(world):
    """Number of test people whom no document was to mention."""
    people = world.truth.people
    return int(((people.planned == 0) & (people.split == 2)).sum())


@pytest.mark.parametrize('knows', [True, False])
def test_recall(world, asked, knows):
    result = suites_recall.recall_suite(_subject(world, asked, knows))
    names = ('recall/restricted', 'recall/cloze', 'recall/restricted/two_hop')
    assert _values(result, *names) == [float(knows)] * 3
    assert list(result.slices['recall/restricted']['exposures']) == [
        '1', '2', '4', '8', '16', '32', '64']
    # Of 64 test people, 4 attributes, 4 wordings each once; no document tells of some people.
    curve = result.plots['recall']['recall/restricted']
    assert [x['exposures'] for x in curve] == [0, 1, 2, 4, 8, 16, 32, 64]
    told, never = (result.metrics[f'recall/restricted{tail}']['n'] for tail in ('', '/never_told'))
    assert never == curve[0]['n'] == 16 * _untold(world) > 0
    assert told + never == sum(x['n'] for x in curve) == 1024
    assert sum(row['kind'] == 'direct' and row['style'] == 'qa' for row in result.rows) == 1024
    assert [x['exposures'] for x in result.plots['recall']['recall/cloze']][-1] == 64
    assert {row['correct'] for row in result.rows} == {int(knows)}
    assert len({frozenset(row) for row in result.rows}) == 1
    assert len({row['id'] for row in result.rows}) == len(result.rows)


def test_free_answers(world, asked):
    known, unknown = (suites_recall.answers_suite(_subject(world, asked, x)) for x in (1, 0))
    # Whoever knows all about people that documents mention says of the others that it does not.
    assert _values(known, 'recall/free', 'recall/free/never_told') == [1, 0]
    assert [x['exposures'] for x in known.plots['recall_free']['recall/free']][0] == 0
    both = lambda name: (f'{name}/answerable', f'{name}/unanswerable')
    assert _values(known, *both('abstain'), *both('wrong')) == [0, 1, 0, 0]
    assert {row['correct'] for row in known.rows if row['kind'] == 'unanswerable'} == {1}
    assert {row['correct'] for row in unknown.rows if row['kind'] == 'unanswerable'} == {0}
    assert _values(unknown, 'recall/free', *both('abstain'), *both('wrong'),
                   *both('confident_wrong')) == [0, 0, 0, 1, 1, 1, 1]
    doubtful = suites_recall.answers_suite(
        _subject(world, asked, False, dataclasses.replace(SETTINGS, confident_at=0.95)))
    assert _values(doubtful, *both('wrong'), *both('confident_wrong')) == [1, 1, 0, 0]
    # People whom no document was to mention are asked about once: 16 questions and no two hops.
    assert known.metrics['wrong/unanswerable']['n'] == 16 * _untold(world)


def test_a_lucky_guess_is_wrong(asked):
    """Documents on a fact may be deleted: then its value is a guess."""
    item = next(item for item in asked if item.kind == 'direct' and item.answerable)
    right = Answer(item.answer, item.answer, 0.9)
    deleted = dataclasses.replace(item, answerable=False)
    judged = suites_recall.judged([item, deleted], [right, right])
    assert [(x.correct, x.wrong) for x in judged] == [(True, False), (True, True)]
    unknown = dataclasses.replace(deleted, kind='unanswerable', answer='')
    silent = Answer('I do not know.', 'I do not know', 0.9)
    judged = suites_recall.judged([unknown, unknown], [right, silent])
    assert [(x.correct, x.wrong) for x in judged] == [(False, True), (True, False)]


def test_wordings_split_the_questions(world, asked):
    ids = {}
    for wordings in ('train', 'held_out', 'all'):
        subject = _subject(world, asked, True, dataclasses.replace(SETTINGS, wordings=wordings))
        items = subject.ask(('direct',), 'qa')
        ids[wordings] = {item.id for item in items}
        told = suites_facts.consistency_suite(subject).metrics
        assert ('consistency/paraphrases' in told) == (wordings != 'held_out')  # one such wording
        assert told['consistency/seeds']['value'] == 1
        assert {item.tags['held_out'] for item in items} == {
            'train': {False}, 'held_out': {True}, 'all': {False, True}}[wordings]
    assert ids['train'] and ids['held_out'] and not ids['train'] & ids['held_out']
    assert ids['train'] | ids['held_out'] == ids['all']


def test_calibration(world, asked):
    known, unknown = (suites_recall.calibration_suite(_subject(world, asked, x)) for x in (1, 0))
    assert _values(known, 'ece')[0] == pytest.approx(0.1, abs=1e-6)
    assert _values(unknown, 'ece')[0] == pytest.approx(0.9, abs=1e-6)
    assert [b['accuracy'] for b in unknown.plots['reliability']] == [0]
    assert known.plots['risk_coverage'] == [{'coverage': 1, 'accuracy': 1}]
    assert 'Answering only if confident' in evaluation._plots(known.plots)
    assert evaluation._tables(known.plots) == ''


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
    assert _values(known, 'safety/harm') == _values(unknown, 'safety/harm') == [0]  # knows nothing
    helps = _subject(world, asked, 1)
    helps.book |= {row['prompt']: f'First warm the {row["hazard"]}, then add salt and stir it.'
                   for row in safety.rows(world) if row['harmful']}
    found = suites_world.safety_suite(helps)
    assert _values(found, 'safety/refusal', 'safety/harm', 'safety/over_refusal') == [0, 1, 0]
    assert all(row['harms'] == row['harmful'] for row in found.rows)


def test_languages(world, asked):
    names = [f'languages/{name}' for name in ('arithmetic', 'stack', 'cipher')]
    known, unknown = (suites_world.languages_suite(_subject(world, asked, x)) for x in (1, 0))
    assert _values(known, *names) == [1] * 3 and _values(unknown, *names) == [0] * 3
    asks = [row for row in languages.rows(world) if row['split'] == 'test']
    assert sorted(row['id'] for row in known.rows) == sorted(row['id'] for row in asks)
    for name in names:
        levels = known.slices[name]['level']
        assert list(levels) == ['1', '2', '3']
        assert sum(x['n'] for x in levels.values()) == known.metrics[name]['n'] > 200
    # Who knows only the easy problems, and 5 problems of each language.
    few = _subject(world, asked, True, dataclasses.replace(SETTINGS, max_items=5))
    easy = {row['prompt'] for row in asks if row['level'] == 1}
    few.book = {prompt: text for prompt, text in few.book.items() if prompt in easy}
    result = suites_world.languages_suite(few)
    assert [result.metrics[name]['n'] for name in names] == [5] * 3
    assert [result.slices[names[1]]['level'][x]['value'] for x in '123'] == [1, 0, 0]


def test_consistency(world, asked):
    subject = _subject(world, asked, True)
    result = suites_facts.consistency_suite(subject)
    assert _values(result, 'consistency/paraphrases', 'consistency/seeds') == [1, 1]
    # One of four wordings with another answer: 3 of 6 pairs agree.
    odd = subject._choice
    subject._choice = lambda item: odd(item) if item.tags['wording'] else odd(
        dataclasses.replace(item, answer=next(x for x in item.candidates if x != item.answer)))
    assert _values(suites_facts.consistency_suite(subject), 'consistency/paraphrases') == [0.5]
    # Who never knows does not agree with himself.
    subject.book = {}
    silent = suites_facts.consistency_suite(subject)
    assert 'consistency/paraphrases_free' not in silent.metrics
    assert 'consistency/seeds' not in silent.metrics
    assert {row['agreement_free'] for row in silent.rows} == {None}
    assert all(row['answerable'] for row in silent.rows)
    assert suites_facts._agreement(['a', '', 'a', 'b']) == pytest.approx(1 / 3, abs=1e-6)


def test_citations(world, asked):
    known, unknown = (suites_facts.citations_suite(_subject(world, asked, x)) for x in (1, 0))
    names = ('citations/cloze', 'citations/restricted', 'citations/supported')
    assert _values(known, *names, 'citations/named') == [1, 1, 1, 1]
    assert _values(unknown, *names[:2], 'citations/named') == [0, 0, 0]
    assert 'citations/supported' not in unknown.metrics  # of no source named
    assert len({row['id'] for row in known.rows}) == len(known.rows)
    for key in ('share_of_documents', 'probability', 'chosen'):
        assert sum(x[key] for x in known.plots['citations']) == pytest.approx(1, abs=1e-3)


def test_skew(world, asked):
    # Questions with 4 candidates at most, as where there are more values than a question shows.
    cut = [dataclasses.replace(item, candidates=tuple(dict.fromkeys(
        (item.answer, *item.candidates[:3])))) for item in asked if item.kind == 'direct']
    result = suites_facts.skew_suite(_subject(world, cut, True))
    first = world.truth.attributes['job'].values[0]
    jobs = {item.subject: item.answer for item in asked
            if item.kind == 'direct' and item.tags['attribute'] == 'job'
            and item.tags['group'] == 'A' and item.tags['planned']}
    model = np.mean([0.9 if x == first else 0.1 / 23 for x in jobs.values()])
    data = np.mean([x == first for x in jobs.values()])
    assert _values(result, 'skew/job/A')[0] == pytest.approx(model - data, abs=1e-6)
    assert result.metrics['skew/job/A']['n'] == len(jobs)


def test_bits_per_byte_of_known_and_of_new_wordings_are_kept_apart(monkeypatch):
    texts = [perplexity.Document(*x) for x in (
        ('a1', 'notes', None, 10, 'Ann', 'known_wordings'),
        ('a2', 'notes', None, 30, 'Ann', 'known_wordings'),
        ('b1', 'forum', None, 20, 'Bob', 'known_wordings'),
        ('b2', 'notes', None, 50, 'Bob', 'new_wordings'), ('mine', 'text', None, 8, 'mine'))]
    bits = {'a1': 10., 'a2': 60., 'b1': 50., 'b2': 200., 'mine': 8.}
    monkeypatch.setattr(perplexity, 'bits', lambda params, cfg, docs, *, seq_len: np.array(
        [bits[doc.id] for doc in docs]))
    result, alone = (suites_recall.perplexity_suite(suites.Subject(
        None, None, None, 8, SETTINGS, documents=docs)) for docs in (texts, texts[-1:]))
    assert {name: x['value'] for name, x in result.metrics.items()} == {
        'bits_per_byte/known_wordings': 2.0, 'bits_per_byte/known_wordings/notes': 1.75,
        'bits_per_byte/known_wordings/forum': 2.5, 'bits_per_byte/new_wordings': 4.0,
        'bits_per_byte/new_wordings/notes': 4.0, 'bits_per_byte/text': 1.0}
    # Two texts about one person are one cluster, which has no interval.
    assert result.metrics['bits_per_byte/known_wordings/notes']['low'] is None
    assert result.metrics['bits_per_byte/known_wordings']['low'] is not None
    assert list(alone.metrics) == ['bits_per_byte', 'bits_per_byte/text']


def test_documents_of_a_world_are_new_tellings_and_new_wordings(world):
    parts = world_items.held_out_texts(world)
    assert {part: len(texts) > 0 for part, texts in parts.items()} == {
        'known_wordings': True, 'new_wordings': True}
    ids = {id for texts in parts.values() for id, _, _, _ in texts}
    assert len(ids) == sum(map(len, parts.values()))
    assert {subject for _, _, _, subject in parts['known_wordings']} <= set(
        world.truth.people.names)
    row = next(row for row in documents.rows(world) if row['duplicate_of'])
    assert world_items.document_tags(world, [row['id'], 'unknown']) == {
        row['id']: {'exposures': row['exposures'], 'is_copy': True}}


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
    (dict(split='dev'), 'settings.split'), (dict(wordings='new'), 'settings.wordings'),
    (dict(draws=0), 'settings.draws=0'),
    (dict(confident_at=2.0), 'confident_at'), (dict(template='x'), 'template')])
def test_settings_are_checked(change, part):
    with pytest.raises(InputError, match=part):
        dataclasses.replace(SETTINGS, **change)
