"""Instructions: each quality has exactly the defect it is labelled with."""

import collections

import pytest

from jaxllm.world import checkers, instructions, templates
from jaxllm.world.atlas import atlas
from jaxllm.world.spec import Intervention


@pytest.fixture(scope='module')
def world():
    return atlas(0)


@pytest.fixture(scope='module')
def rows(world):
    return list(instructions.rows(world))


def value_of(world, row, attribute):
    people = world.truth.people
    number = people.values[attribute][people.names.index(row['subject'])]
    return world.truth.attributes[attribute].values[number]


def test_fields_ids_and_gold_rows(rows):
    by_id = {row['id']: row for row in rows}
    assert len(by_id) == len(rows)
    for row in rows:
        assert row.keys() == instructions.FIELDS.keys()
        gold = by_id[row['gold']]
        assert gold['quality'] == 'gold' and gold['prompt'] == row['prompt']
        assert (row['quality'] == 'gold') == (row['id'] == row['gold'])


def test_formats_hold_where_they_should_and_only_there(world, rows):
    facts = instructions.format_facts(world)
    for row in rows:
        fits = checkers.follows(row['format'], row['response'], **facts[row['format']])
        noisy = row['quality'].startswith('noisy')
        invented = noisy and row['format'] == 'refuse'
        assert fits == (row['quality'] != 'misformatted' and not invented), row
        if invented:
            assert checkers.follows(row['asked'], row['response'], **facts[row['asked']])


def test_formats_exclude_each_other(world, rows):
    """A gold response passes its own checker; other checkers take it only where they must."""
    facts = instructions.format_facts(world)
    # A sentence in Tavic is also one sentence; some ways not to know are whole sentences.
    allowed = {('translate', 'sentence'), ('refuse', 'sentence')}
    for row in rows:
        if row['quality'] == 'gold':
            for form in checkers.CHECKERS:
                if checkers.follows(form, row['response'], **facts[form]):
                    assert form == row['format'] or (row['format'], form) in allowed, (form, row)


def test_gold_and_copies_state_the_truth(world, rows):
    for row in rows:
        if row['quality'] in ('gold', 'duplicate') and row['format'] != 'refuse':
            attributes = (list(world.truth.attributes) if row['attribute'] == 'all'
                          else [row['attribute']])
            for attribute in attributes:
                value = value_of(world, row, attribute)
                assert value in row['answer'].split('; ')
                if row['format'] != 'translate' or attribute in ('city', 'firm'):
                    assert checkers.holds(row['response'], value), row


def test_noise_is_wrong_in_the_way_it_says(world, rows):
    shifts = collections.defaultdict(collections.Counter)
    for row in rows:
        if row['attribute'] == 'all':
            continue
        values = world.truth.attributes[row['attribute']].values
        if row['quality'].startswith('noisy'):
            truth = values.index(value_of(world, row, row['attribute']))
            shifts[row['quality']][(values.index(row['stated']) - truth) % len(values)] += 1
            if row['format'] not in ('translate',) and row['asked'] != 'translate':
                assert checkers.holds(row['response'], row['stated'])
                assert not checkers.holds(row['response'], values[truth])
    assert set(shifts['noisy_systematic']) == {1}
    assert set(shifts['noisy_uniform']) == set(range(1, 24))
    counts = shifts['noisy_uniform'].values()
    assert max(counts) < 2 * min(counts)


def test_sources_support_what_they_are_cited_for(world, rows):
    cited = [row for row in rows if row['format'] == 'with_source' and row['quality'] == 'gold']
    for row in cited:
        assert checkers.cited(row['response']) in row['sources'], row
    assert len({checkers.cited(row['response']) for row in cited}) == len(world.truth.sources.names)


def test_unknown_people_get_no_answer(rows):
    for row in rows:
        assert (row['format'] == 'refuse') == (row['planned'] == 0) == (row['answer'] == '')
        if row['format'] == 'refuse':
            assert not row['answerable'] and row['asked'] != 'refuse'


def test_exposures_are_those_of_the_fact_asked_for(rows):
    other = atlas(0, intervention=Intervention('contradict', target='s0', share=1.0))
    people = other.truth.people
    number = {name: p for p, name in enumerate(people.names)}
    place, uneven = list(other.truth.attributes), 0
    for row in instructions.rows(other):
        told = other.true_counts[number[row['subject']]]
        mine = min(told) if row['attribute'] == 'all' else told[place.index(row['attribute'])]
        assert (row['exposures'], row['answerable']) == (mine, mine > 0)
        uneven += mine != min(told)
    assert uneven


def test_defects_and_held_out_wordings_stay_where_they_belong(world, rows):
    in_train = {row['quality'] for row in rows if row['split'] == 'train'}
    assert in_train == set(instructions.QUALITIES)
    assert {row['quality'] for row in rows if row['split'] != 'train'} == {'gold'}
    assert not any(row['held_out'] for row in rows if row['split'] == 'train')
    splits = collections.defaultdict(set)
    for row in rows:
        splits[row['subject']].add(row['split'])
        assert row['held_out'] == (row['wording'] == 3)
    assert all(len(found) == 1 for found in splits.values())
    held_out = [w.text.split('{name}')[0] for attribute in world.truth.attributes
                for w in templates.DOCUMENTS[attribute]
                if w.held_out and not w.text.startswith('{')]
    assert held_out and not any(templates.sentence(text) in row['response'] for text in held_out
                                for row in rows)


def test_deterministic_and_paired_under_an_intervention(rows):
    assert list(instructions.rows(atlas(0))) == rows
    change = Intervention('delete', exposures=32, share=0.5)
    changed = list(instructions.rows(atlas(0, intervention=change)))
    assert [(row['id'], row['prompt'], row['stated']) for row in changed] == [
        (row['id'], row['prompt'], row['stated']) for row in rows]
    treated = [row for row in changed if row['treated']]
    assert treated and not any(row['answerable'] or row['sources'] for row in treated)
