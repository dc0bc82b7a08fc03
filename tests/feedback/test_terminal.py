"""Labelling in a terminal."""

import pytest
from label_dirs import labelled, make

from jaxllm.errors import InputError
from jaxllm.feedback import items, terminal
from jaxllm.feedback.labels import Labels


@pytest.mark.parametrize('text, want', [
    ('b a c', ([2, 1, 3], False)), ('b=a c', ([1, 1, 2], False)), ('B', ([2, 1, 2], False)),
    ('2 1 3', ([2, 1, 3], False)), ('1 1 1', ([1, 1, 1], False)), ('bad', ([], True)),
    ('bad c b a', ([3, 2, 1], True)), ('c > a = b', ([2, 2, 1], False)),
    ('a, b, c', ([1, 2, 3], False))])
def test_what_is_typed(text, want):
    assert terminal.parse(text, 3) == want


@pytest.mark.parametrize('text', ['d', 'a a', '1 2', '0 1 2', '1 2 4', '= a', 'a =', 'a = = b',
                                  'good', 'a 1 2', '> '])
def test_what_means_nothing(text):
    with pytest.raises(InputError):
        terminal.parse(text, 3)


def talk(labels, *lines):
    """What is written to a rater who types these lines."""
    said, left = [], list(lines)

    def read(prompt):
        if not left:
            raise EOFError
        return left.pop(0)
    terminal.run(labels, 'Ann', 'helpful', read=read, write=said.append)
    assert not left
    return '\n'.join(said)


def test_a_session_and_another_one(tmp_path):
    labels = Labels(make(tmp_path))
    said = talk(labels, 'nonsense', '# the first is odd', 'b a c', 'skip', 'bad')
    assert "'nonsense': expected each of a b c" in said and '2 of 3 items are stored' in said
    first, last = labels.answers()
    assert [first.ranks[i] for i in first.shown] == [2, 1, 3]
    assert first.comment == 'the first is odd' and first.item == 'item0'
    assert last.item == 'item2' and last.all_bad and not last.comment
    said = talk(Labels(tmp_path), 'back', 'undo', 'help', '1 2 2', '2 1')
    assert 'You said: 2 1 3 (the first is odd)' in said and 'taken back' in said
    assert 'All items are done' in said
    assert [a.item for a in Labels(tmp_path).answers()] == ['item0', 'item1', 'item2']


def test_texts_cannot_steer_the_terminal(tmp_path):
    labels = labelled(tmp_path, {})
    items.write_items(tmp_path, [items.Item('x', ({'role': 'user', 'content': 'q\x1b[2J'},),
                                            ('a\rb', ''), (('m',), ('n',)))])
    said = talk(Labels(tmp_path))
    assert '\x1b' not in said and '\r' not in said and 'q\\x1b[2J' in said
    assert '(says nothing)' in said
    assert labels.answers() == []
