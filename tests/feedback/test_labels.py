"""Items, answers, what is refused, and win counts."""

import json

import pytest
from label_dirs import labelled, make, rate

from jaxllm.data.dialogues import DialogueSpec
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.feedback import items
from jaxllm.feedback.labels import Labels, rater_name
from jaxllm.feedback.votes import Votes, votes


def test_ranks_are_stored_in_the_order_of_the_responses(tmp_path):
    labels = Labels(make(tmp_path))
    shown = labels.shown('Ann', 'item0')
    assert labels.rate(key='k', rater='Ann', item='item0', criterion='helpful', ranks=[3, 1, 3])
    answer, = labels.answers()
    assert answer.shown == shown and [answer.ranks[i] for i in shown] == [2, 1, 2]
    line = json.loads((tmp_path / 'answers.jsonl').read_text())
    assert line['ranks'] == list(answer.ranks) and line['rater'] == 'Ann' and line['time']


def test_the_order_on_screen_depends_on_rater_and_item_alone(tmp_path):
    labels = Labels(make(tmp_path, sizes=(4, 4, 4, 4, 4, 4)))
    orders = {(rater, item): labels.shown(rater, item)
              for rater in ('Ann', 'Bob', 'Cem') for item in labels.items}
    assert len(set(orders.values())) > 6
    again = Labels(tmp_path)
    assert all(again.shown(*at) == order for at, order in orders.items())


def test_the_last_word_counts_and_a_key_counts_once(tmp_path):
    labels = Labels(make(tmp_path))
    say = lambda key, ranks: labels.rate(key=key, rater='A', item='item1', criterion='safe',
                                         ranks=ranks)
    assert say('k1', [1, 2]) and not say('k1', [1, 2]) and say('k2', [2, 1])
    other = Labels(tmp_path)   # another process on the same directory
    assert [a.ranks[a.shown[0]] for a in other.answers()] == [2]
    assert other.withdraw(key='k3', rater='A', item='item1', criterion='safe')
    assert labels.answers() == [] and labels.of_rater('A') == {}
    assert len((tmp_path / 'answers.jsonl').read_text().splitlines()) == 3


def test_all_bad_without_a_ranking_is_a_tie(tmp_path):
    labels = Labels(make(tmp_path))
    labels.rate(key='k', rater='A', item='item0', criterion='safe', ranks=[], all_bad=True,
                comment='no')
    answer, = labels.answers()
    assert (answer.ranks, answer.all_bad, answer.comment) == ((1, 1, 1), True, 'no')


@pytest.mark.parametrize('change, message', [
    ({'ranks': [1]}, 'expected 2 numbers from 1'), ({'ranks': [0, 1]}, 'expected 2 numbers'),
    ({'ranks': [1, 3]}, 'to 2'), ({'ranks': [1, True]}, 'expected 2'), ({'ranks': []}, 'expected'),
    ({'ranks': [1.0, 2]}, 'expected 2'), ({'ranks': None}, 'expected 2'),
    ({'item': 'other'}, "item 'other' is unknown"), ({'criterion': 'x'}, 'one of helpful, safe'),
    ({'rater': ''}, 'expected a name'), ({'rater': 'a\x00'}, 'expected a name'),
    ({'rater': ' Ann'}, 'spaces'), ({'rater': 7}, 'expected a name'), ({'key': ''}, 'key='),
    ({'comment': 'x' * 10_001}, 'comment of 10001'), ({'comment': None}, 'comment=None'),
    ({'all_bad': 1}, 'boolean'), ({'seconds': float('nan')}, 'seconds'),
    ({'seconds': '1'}, 'seconds')], ids=str)
def test_what_is_no_answer(tmp_path, change, message):
    labels = Labels(make(tmp_path))
    good = dict(key='k', rater='Ann', item='item1', criterion='safe', ranks=[1, 2])
    with pytest.raises(InputError, match=message):
        labels.rate(**good | change)
    assert labels.answers() == []


def test_names():
    assert rater_name('  Ann  Lee ') == 'Ann Lee'
    with pytest.raises(InputError, match='1 to 60'):
        rater_name('x' * 61)


def test_stored_lines_that_fit_nothing_are_reported(tmp_path):
    labels = labelled(tmp_path, {('Ann', 'item1'): [1, 2]})
    good = json.loads((tmp_path / 'answers.jsonl').read_text())
    with open(tmp_path / 'answers.jsonl', 'a') as file:
        for change in ({'item': 'gone'}, {'ranks': [1]}, {'shown': [0, 0]}, {'rater': 5},
                       {'comment': 1, 'ranks': None}):
            file.write(json.dumps(good | change) + '\n')
    assert len(labels.answers()) == 1
    assert len(labels.store.problems) == 5 and ':2 was left out' in labels.store.problems[0]


def test_nothing_to_label(tmp_path):
    with pytest.raises(InputError, match='holds nothing to label'):
        Labels(tmp_path)
    (tmp_path / 'items.jsonl').write_text('{"id": 1}\n')
    with pytest.raises(InputError, match='items.jsonl:1 is damaged'):
        Labels(tmp_path)


def test_equal_texts_are_one_response_of_all_their_sources():
    item = items.make_item('x', ({'role': 'user', 'content': 'q'},),
                           [('a', 'yes'), ('b', 'no'), ('c', ' yes\n'), ('b', 'no')])
    assert dict(zip(item.responses, item.sources, strict=True)) == {
        'yes': ('a', 'c'), 'no': ('b',)}
    assert items.make_item('x', (), [('a', 'yes'), ('b', 'yes ')]) is None


def test_prompts_and_ready_responses(tmp_path):
    file = tmp_path / 'p.jsonl'
    turn = lambda role, text: {'role': role, 'content': text}
    rows = [{'prompt': 'q', 'id': 'first', 'system': 's'},
            {'messages': [turn('user', 'a'), turn('assistant', 'b'), turn('user', 'c'),
                          turn('assistant', 'd')]},
            {'text': 'x'}, {'messages': [turn('assistant', 'b')]}]
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    rejects = Rejects()
    found = items.read_prompts(DialogueSpec('p', str(file)), rejects)
    assert found == [('first', [turn('system', 's'), turn('user', 'q')]),
                     (':2', [turn('user', 'a'), turn('assistant', 'b'), turn('user', 'c')])]
    assert rejects.count('p') == 2
    rows = [{'prompt': 'q', 'responses': ['a', 'b'], 'sources': ['x', 'y']},
            {'prompt': 'q', 'responses': ['a']}, {'prompt': 'q', 'responses': ['a', 'a']},
            {'prompt': 'q', 'responses': ['a', 'b'], 'sources': ['x']}]
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    found, equal = items.read_ready(DialogueSpec('p', str(file)), rejects)
    assert [item.id for item in found] == [':1'] and equal == 1 and rejects.count('p') == 4
    file.write_text('{"prompt": "q", "id": 1}\n{"prompt": "r", "id": 1}\n')
    with pytest.raises(InputError, match="2 records with the id '1'"):
        items.read_prompts(DialogueSpec('p', str(file)), rejects)


def test_votes_by_hand(tmp_path):
    labels = labelled(tmp_path, {('Ann', 'item0'): [1, 2, 2], ('Bob', 'item0'): [2, 1, 3],
                                 ('Ann', 'item1'): [2, 1], ('Ann', 'item2'): [1, 1]})
    rate(labels, 'Ann', 'item2', [1, 2], criterion='safe')
    assert votes(labels, 'm0', 'm1', 'helpful') == [
        Votes('item0', 1, 0, 1), Votes('item1', 0, 0, 1), Votes('item2', 0, 1, 0)]
    assert votes(labels, 'm0', 'm1') == [
        Votes('item0', 1, 0, 1), Votes('item1', 0, 0, 1), Votes('item2', 1, 1, 0)]
    assert votes(labels, 'm2', 'm1') == [Votes('item0', 0, 1, 1)]
    assert votes(labels, 'm0', 'other') == []


def test_votes_of_several_samples_and_of_a_shared_text(tmp_path):
    tmp_path.joinpath('label.json').write_text('{"criteria": ["helpful"], "models": []}')
    items.write_items(tmp_path, [items.Item(
        'x', ({'role': 'user', 'content': 'q'},), ('r', 's', 't'), (('a',), ('a', 'b'), ('b',)))])
    labels = Labels(tmp_path)
    rate(labels, 'Ann', 'x', [1, 2, 3])
    # a: r, s; b: s, t. r beats s and t, s ties with itself and beats t.
    assert votes(labels, 'a', 'b') == [Votes('x', 3, 1, 0)]
