"""Readings: the answer is in the text, the name nowhere else in the world."""

import collections

import pytest

from jaxllm.world import readings, templates
from jaxllm.world.atlas import atlas
from jaxllm.world.documents import rows as documents


@pytest.fixture(scope='module')
def world():
    return atlas(0)


@pytest.fixture(scope='module')
def rows(world):
    return list(readings.rows(world))


def test_shape(world, rows):
    assert len(rows) == len({row['id'] for row in rows}) == 36 * len(world.truth.people.names)
    styles = collections.Counter(row['style'] for row in rows)
    assert styles.keys() == set(readings.STYLES) and min(styles.values()) > 1000
    splits = collections.Counter(row['split'] for row in rows)
    assert 0.88 < splits['train'] / len(rows) < 0.92 and min(splits.values()) > 300
    for row in rows:
        assert row.keys() == readings.FIELDS.keys()
        assert row['text'].startswith(row['context'])
        assert row['text'].endswith(row['response'])
        assert [message['role'] for message in row['messages']] == ['user', 'assistant']


def test_the_text_has_the_answer_and_a_chat_repeats_the_sentence(rows):
    for row in rows:
        asked, reply = (message['content'] for message in row['messages'])
        assert row['subject'] in reply and row['answer'] in reply
        assert reply in row['context'] and asked == f'{row["context"]} {row["question"]}'
        assert row['response'] in ({'sentence': reply, 'value': row['answer']}.get(row['style'])
                                   or row['response'],)
        if row['style'] == 'retold':
            assert row['response'].count(row['subject']) == row['context'].count(row['subject'])


def test_strangers_are_nobody_in_the_world(world, rows):
    known = {word for name in world.truth.people.names for word in name.split()}
    assert not known & {word for row in rows for word in row['subject'].split()}
    text = ' '.join(row['text'] for row in documents(world))
    seen = sum(row['subject'] in text for row in rows)
    assert seen == 0
    # Names hardly ever come again, so that they cannot be learned by heart.
    assert len({row['subject'] for row in rows}) > 0.98 * len(rows)


def test_values_say_nothing_about_names_and_wordings_of_training_stay_there(world, rows):
    for attribute, table in world.truth.attributes.items():
        found = collections.Counter(row['answer'] for row in rows if row['attribute'] == attribute)
        assert found.keys() == set(table.values)
        assert max(found.values()) < 2 * min(found.values())
    for row in rows:
        wording = templates.QUESTIONS[row['attribute']][row['wording']]
        assert wording.held_out == row['held_out']
        assert not (row['held_out'] and row['split'] == 'train')


def test_the_same_again(world, rows):
    assert list(readings.rows(world))[:50] == rows[:50]
