"""Conversations: who 'they' is, replies from the tables, splits."""

import collections
import re

import pytest

from jaxllm.world import checkers, conversations, instructions
from jaxllm.world.atlas import atlas
from jaxllm.world.spec import Intervention


@pytest.fixture(scope='module')
def world():
    return atlas(0)


@pytest.fixture(scope='module')
def rows(world):
    return list(conversations.rows(world))


def turns(row):
    messages = [m for m in row['messages'] if m['role'] != 'system']
    return list(zip(messages[::2], messages[1::2]))


def test_shape(rows):
    assert len({row['id'] for row in rows}) == len(rows)
    for row in rows:
        assert row.keys() == conversations.FIELDS.keys()
        roles = [message['role'] for message in row['messages']]
        assert roles[roles[0] == 'system':] == ['user', 'assistant'] * row['turns']
        assert 2 <= row['turns'] <= 4
        assert all(len(row[name]) == row['turns']
                   for name in ('subjects', 'attributes', 'answers', 'links'))
    links = collections.Counter(link for row in rows for link in row['links'])
    assert set(links) == {'open', 'pronoun', 'switch', 'back'} and min(links.values()) > 50
    assert 0.4 < sum(row['messages'][0]['role'] == 'system' for row in rows) / len(rows) < 0.6


def test_they_is_the_person_named_last(world, rows):
    """Read from the text alone: the last name in what the user has said so far."""
    name = re.compile('|'.join(map(re.escape, world.truth.people.names)))
    for row in rows:
        last, first = '', row['subjects'][0]
        for (user, _), subject, link in zip(turns(row), row['subjects'], row['links']):
            named = name.findall(user['content'])
            assert bool(named) == (link != 'pronoun')
            pronouns = re.search(r'\b(?:they|them|their)\b', user['content'])
            assert bool(pronouns) == (link in ('pronoun', 'back'))
            last = named[-1] if named else last
            assert last == subject
            assert link not in ('switch', 'back') or (subject == first) == (link == 'back')


def test_replies_are_the_tables_and_have_the_form(world, rows):
    people, found = world.truth.people, set()
    for row in rows:
        for (_, reply), subject, attribute, answer in zip(
                turns(row), row['subjects'], row['attributes'], row['answers']):
            person = people.names.index(subject)
            value = world.truth.attributes[attribute].values[people.values[attribute][person]]
            assert answer == (value if people.planned[person] else '')
            if answer:
                check = 'one_word' if row['form'] == 'value' else 'sentence'
                assert checkers.follows(check, reply['content'])
                assert checkers.holds(reply['content'], value)
            else:
                assert checkers.is_abstention(reply['content'])
            found.add((row['form'], bool(answer)))
        assert row['form'] == 'sentence' or row['messages'][0]['role'] == 'system'
        assert len(set(zip(row['subjects'], row['attributes']))) == row['turns']
    assert len(found) == 4


def test_people_and_wordings_stay_in_their_splits(world, rows):
    split = dict(zip(world.truth.people.names, world.truth.people.split.tolist()))
    for row in rows:
        assert {('train', 'validation', 'test')[split[name]] for name in row['subjects']} == {
            row['split']}
        assert not (row['held_out'] and row['split'] == 'train')
    assert {row['held_out'] for row in rows if row['split'] == 'test'} == {False, True}
    assert all(len(table) == 4 for table in (
        *conversations.SYSTEM.values(), *conversations.FOLLOW_UPS.values(), conversations.SWITCHES,
        conversations.BACK, *instructions.ASKS.values()))


def test_deterministic(rows):
    assert list(conversations.rows(atlas(0))) == rows


def test_treated_people_mark_their_conversations(rows):
    other = atlas(0, intervention=Intervention('delete', exposures=32, share=0.5))
    people = other.truth.people
    treated = {name for name, yes in zip(people.names, people.treated.tolist()) if yes}
    changed = list(conversations.rows(other))
    assert [row | {'treated': False} for row in changed] == rows     # replies stay as they were
    for row in changed:
        assert row['treated'] == bool(treated & set(row['subjects']))
    second = [row for row in changed if row['treated'] and row['subjects'][0] not in treated]
    assert second
