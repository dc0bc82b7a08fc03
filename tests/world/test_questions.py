"""Questions: answers, sources and splits of a world written by hand, then rules on a real one."""

import collections
import re
import types

import numpy as np
import pytest

from jaxllm.world import meanings, questions, templates
from jaxllm.world.atlas import atlas
from jaxllm.world.spec import Intervention

TYPES = {'str': str, 'int': int, 'bool': bool}


def by_hand():
    """Four people, two attributes, three sources, two categories; easy to follow."""
    table = lambda *values: types.SimpleNamespace(values=values)
    counts = np.zeros((4, 2, 3), int)
    counts[0, 0] = 0, 2, 5      # Ann's city: the Post twice, the Herald five times
    counts[0, 1] = 1, 1, 0      # Ann's firm: Gazette and Post once each
    counts[1, 0] = 4, 0, 0
    counts[1, 1] = 0, 9, 0
    people = types.SimpleNamespace(
        names=('Ann Ash', 'Bob Beck', 'Cy Croft', 'Di Dale'), group=np.array([0, 1, 3, 0]),
        planned=np.array([7, 4, 0, 4]),
        treated=np.array([False, False, False, True]), split=np.array([0, 2, 1, 2]),
        values={'city': np.array([1, 0, 2, 1]), 'firm': np.array([2, 2, 0, 1])})
    brands = types.SimpleNamespace(
        names=('Ora', 'Iza', 'Elle'), categories=('boots', 'lamps'),
        rank=np.array([[1, -1], [0, 1], [-1, 0]]))
    truth = types.SimpleNamespace(
        people=people, attributes={'city': table('Xport', 'Yport', 'Zport'),
                                   'firm': table('Ucorp', 'Vcorp', 'Wcorp')},
        firm_city=np.array([1, 2, 0]), brands=brands,
        sources=types.SimpleNamespace(names=('Gazette', 'Post', 'Herald')))
    return types.SimpleNamespace(spec=types.SimpleNamespace(seed=0), truth=truth, counts=counts,
                                 true_counts=counts.sum(axis=2),
                                 copies=np.array([[3, 0], [0, 0], [0, 0], [0, 0]]),
                                 false_counts=np.array([[0, 2], [0, 0], [0, 0], [0, 0]]))


@pytest.fixture(scope='module')
def few():
    return {row['id']: row for row in questions.rows(by_hand())}


@pytest.fixture(scope='module')
def world():
    return atlas(0)


@pytest.fixture(scope='module')
def rows(world):
    return list(questions.rows(world))


def test_a_direct_question(few):
    assert few['p0-city-direct-qa-0'] == {
        'id': 'p0-city-direct-qa-0', 'split': 'train', 'style': 'qa', 'kind': 'direct',
        'prompt': 'Question: Where does Ann Ash live?\nAnswer:', 'answer': 'Yport',
        'candidates': ['Xport', 'Yport', 'Zport'], 'subject': 'Ann Ash', 'attribute': 'city',
        'fact': 'Ann Ash|city', 'wording': 0, 'held_out': False, 'group': 'A', 'exposures': 7,
        'planned': 7, 'treated': False, 'answerable': True, 'sources': ['Herald', 'Post'],
        'copies': 3, 'false_count': 0, 'person_split': 'train'}


def test_exposures_are_those_of_the_fact_asked_for(few, world):
    assert [few[f'p{p}-{key}-qa-0']['exposures'] for p in (0, 1) for key in (
        'city-direct', 'firm-direct', 'firm-source', 'firm_city-two_hop')] == [
            7, 2, 2, 2, 4, 9, 9, 9]
    # Lies about one attribute leave the others as known as they were.
    change = Intervention('contradict', target='s0', share=1.0)
    other = atlas(0, intervention=change)
    changed = np.argwhere(other.true_counts != world.true_counts)
    assert len(changed)
    place = {name: a for a, name in enumerate(world.truth.attributes)} | {
        'firm_city': list(world.truth.attributes).index('firm')}
    number = {name: p for p, name in enumerate(world.truth.people.names)}
    for row in questions.rows(other):
        if row['kind'] == 'brand':
            continue
        told = other.true_counts[number[row['subject']], place[row['attribute']]]
        assert row['exposures'] == told
        assert row['kind'] == 'source' or row['answerable'] == (told > 0)


def test_a_cloze(few):
    row = few['p1-city-direct-cloze-0']
    assert (row['prompt'], row['answer'], row['split']) == ('Bob Beck lives in', 'Xport', 'test')
    assert few['p1-firm-direct-cloze-4']['prompt'] == 'The employer of Bob Beck is'


def test_two_hops_go_through_the_firm(few):
    # Bob works for Wcorp (2), which is in Xport (0); he himself lives in Xport, Ann in Yport.
    assert few['p1-firm_city-two_hop-qa-0']['answer'] == 'Xport'
    ann = few['p0-firm_city-two_hop-qa-1']
    assert (ann['answer'], ann['prompt']) == ('Xport', 'Question: Where is the employer of Ann Ash '
                                              'based?\nAnswer:')
    assert few['p2-firm_city-two_hop-qa-0']['answer'] == 'Yport'


def test_source_questions_take_every_source_with_a_true_document(few):
    row = few['p0-city-source-qa-0']
    assert (row['answer'], row['sources']) == ('Herald', ['Herald', 'Post'])
    assert row['candidates'] == ['Gazette', 'Post', 'Herald'] and 'Yport' in row['prompt']
    assert few['p0-firm-source-qa-0']['sources'] == ['Gazette', 'Post']
    firm = few['p0-firm-direct-qa-0']
    assert (firm['copies'], firm['false_count']) == (0, 2)


def test_unknown_people(few):
    """Planned 0: the right answer is to say so. Deleted documents: same rows, not answerable."""
    assert few['p2-city-unanswerable-qa-1']['answer'] == ''
    assert few['p2-city-direct-qa-1']['answer'] == 'Zport'
    assert not any(key.startswith(('p2-city-source', 'p0-city-un', 'p3-city-un')) for key in few)
    deleted = few['p3-city-direct-qa-0']
    assert (deleted['answerable'], deleted['treated'], deleted['answer']) == (False, True, 'Yport')
    source = few['p3-city-source-qa-0']
    assert (source['answerable'], source['answer'], source['sources']) == (False, '', [])


def test_the_best_brand(few):
    assert few['b-boots-best-brand-qa-0']['answer'] == 'Iza'
    row = few['b-lamps-best-brand-qa-0']
    assert (row['answer'], row['prompt'], row['exposures']) == (
        'Elle', 'Question: Which brand makes the best lamps?\nAnswer:', -1)


def test_held_out_wordings_are_never_in_train(few, rows):
    assert few['p0-city-direct-qa-3']['split'] == 'validation'
    assert few['p0-city-direct-qa-3']['person_split'] == 'train'
    assert few['p1-city-direct-qa-3']['split'] == 'test'
    assert not any(row['held_out'] for row in rows if row['split'] == 'train')
    for row in rows:
        table = (templates.DOCUMENTS[row['attribute']] if row['style'] == 'cloze' else
                 templates.QUESTIONS[row['kind'] if row['kind'] in ('source', 'two_hop') else
                                     row['attribute']])
        assert row['held_out'] == table[row['wording']].held_out


def test_many_candidates_are_thinned_with_the_gold_one_among_them():
    values = tuple(f'v{i:03}' for i in range(100))
    for gold in range(100):
        found = questions.candidates_of(values, gold, np.random.default_rng(gold))
        assert len(found) == 24 == len(set(found)) and values[gold] in found
        assert found == sorted(found)
    thin = questions._source_candidates(values, ['v003', 'v099'], 50)
    assert len(thin) == 24 == len(set(thin)) and {'v003', 'v099', 'v050'} <= set(thin)


def test_huge_worlds_ask_about_every_nth_person():
    names = types.SimpleNamespace(names=range(25_000))
    found = questions.asked(types.SimpleNamespace(truth=types.SimpleNamespace(people=names)))
    assert (len(found), found[1]) == (8334, 3)


def test_fields_and_ids(world, rows):
    assert list(questions.asked(world)) == list(range(256))
    assert len({row['id'] for row in rows}) == len(rows)
    for row in rows:
        assert row.keys() == questions.FIELDS.keys()
        for name, kind in questions.FIELDS.items():
            if kind == 'list[str]':
                assert all(isinstance(value, str) for value in row[name])
            else:
                assert type(row[name]) is TYPES[kind], (name, row[name])


def test_prompts_do_not_give_the_answer_away(rows):
    for row in rows:
        assert row['prompt'][-1] not in ' \n'
        assert not re.search(r'\ban?$', row['prompt']) or row['attribute'] == 'job'
        if row['kind'] not in ('source', 'unanswerable'):
            assert not re.search(rf'\b{re.escape(row["answer"])}\b', row['prompt'])
    # A job always follows 'a': no value asks for 'an'.
    jobs = {row['answer'] for row in rows if row['attribute'] == 'job' and row['kind'] == 'direct'}
    assert jobs and not any(job[0] in 'aeiou' for job in jobs)


def test_answers_are_among_the_candidates(rows):
    for row in rows:
        assert len(set(row['candidates'])) == len(row['candidates'])
        if row['answer']:
            assert row['answer'] in row['candidates']
        else:
            assert row['kind'] == 'unanswerable' or not row['sources']


def test_claims_in_questions_begin_with_no_adverb(rows):
    claims = [row['prompt'] for row in rows if row['kind'] == 'source']
    assert claims and not any(re.search(r'that [^,]+,', prompt) for prompt in claims)


def test_the_card_names_every_kind(rows):
    text = meanings.meaning('kind', 'questions')
    assert set(re.findall(r'\w+', text)) - {'or'} == {row['kind'] for row in rows}


def test_each_person_in_one_split(rows):
    splits = collections.defaultdict(set)
    for row in rows:
        splits[row['subject']].add(row['person_split'])
    assert all(len(found) == 1 for found in splits.values())
    trained = {row['subject'] for row in rows if row['split'] == 'train'}
    assert not trained & {row['subject'] for row in rows if row['split'] == 'test'}


def test_deterministic_and_paired_under_an_intervention(world, rows):
    assert list(questions.rows(atlas(0))) == rows
    change = Intervention('delete', exposures=32, share=0.5)
    changed = list(questions.rows(atlas(0, intervention=change)))
    assert [row['id'] for row in changed] == [row['id'] for row in rows]
    assert [row['prompt'] for row in changed] == [row['prompt'] for row in rows]
    deleted = [row for row in changed if row['treated']]
    assert {row['planned'] for row in deleted} == {32} and deleted
    assert not any(row['answerable'] or row['exposures'] for row in deleted)
    other = list(questions.rows(atlas(1)))
    assert not {row['prompt'] for row in other} & {row['prompt'] for row in rows
                                                   if row['kind'] != 'brand'}
