"""Every format that people have conversations in, and what cannot be read."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from jaxllm.data import dialogues
from jaxllm.data.conversations import Unreadable, normalise
from jaxllm.data.dialogues import DialogueSpec, read_conversations
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.world.spec import Intervention, WorldSpec

U, A, S = 'user', 'assistant', 'system'


def turns(*pairs):
    return tuple({'role': role, 'content': text} for role, text in pairs)


@pytest.mark.parametrize('fields, want, rejected', [
    ({'messages': [{'role': U, 'content': 'q'}, {'role': A, 'content': 'a'}]},
     turns((U, 'q'), (A, 'a')), ()),
    ({'messages': {'role': [U, A], 'content': ['q', 'a']}}, turns((U, 'q'), (A, 'a')), ()),
    ({'conversations': [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]},
     turns((U, 'q'), (A, 'a')), ()),
    ({'conversations': [{'from': 'system', 'value': 's'}, {'from': 'human', 'value': 'q'},
                        {'from': 'gpt', 'value': 'a'}]}, turns((S, 's'), (U, 'q'), (A, 'a')), ()),
    ({'instruction': 'add', 'input': '1 2', 'output': '3'}, turns((U, 'add\n\n1 2'), (A, '3')), ()),
    ({'instruction': 'say', 'input': '', 'output': 'x'}, turns((U, 'say'), (A, 'x')), ()),
    ({'prompt': 'q', 'response': 'a'}, turns((U, 'q'), (A, 'a')), ()),
    ({'prompt': 'q', 'completion': 'a', 'system': 's'}, turns((S, 's'), (U, 'q'), (A, 'a')), ()),
    ({'question': 'q', 'answer': 'a'}, turns((U, 'q'), (A, 'a')), ()),
    ({'prompt': [{'role': U, 'content': 'q'}, {'role': A, 'content': 'b'},
                 {'role': U, 'content': 'r'}], 'response': 'a'},
     turns((U, 'q'), (A, 'b'), (U, 'r'), (A, 'a')), ()),
    ({'prompt': 'q', 'chosen': 'good', 'rejected': 'bad'}, turns((U, 'q'), (A, 'good')), ('bad',)),
    ({'prompt': 'q', 'chosen': 'good', 'rejected': ['bad', 'worse']},
     turns((U, 'q'), (A, 'good')), ('bad', 'worse')),
    ({'chosen': [{'role': U, 'content': 'q'}, {'role': A, 'content': 'good'}],
      'rejected': [{'role': U, 'content': 'q'}, {'role': A, 'content': 'bad'}]},
     turns((U, 'q'), (A, 'good')), ('bad',)),
    ({'prompt': 'q', 'responses': ['c', 'a', 'b'], 'ranks': [2, 0, 1]},
     turns((U, 'q'), (A, 'a')), ('b', 'c')),
    ({'prompt': 'q', 'responses': ['c', 'a', 'b'], 'ranks': [1, 0, 0]},
     turns((U, 'q'), (A, 'a')), ('c',)),
], ids=str)
def test_formats(fields, want, rejected):
    assert normalise(fields) == (want, rejected)


def test_tool_messages_pass_through():
    call = [{'function': {'name': 'f', 'arguments': '{}'}}]
    messages, _ = normalise({'messages': [
        {'role': U, 'content': 'q'}, {'role': A, 'content': None, 'tool_calls': call},
        {'role': 'tool', 'content': '1', 'tool_call_id': 'x'},
        {'role': 'tool', 'content': '2', 'name': 'g'}, {'role': A, 'content': 'a'}]})
    assert messages[1] == {'role': A, 'content': '', 'tool_calls': call}
    assert messages[2]['tool_call_id'] == 'x' and messages[3]['name'] == 'g'


@pytest.mark.parametrize('fields, reason', [
    ({'text': 'x'}, 'unknown format: the fields are text'),
    ({'messages': []}, 'no messages'),
    ({'messages': [{'role': 'wizard', 'content': 'x'}]}, "unknown role: message 1 is by 'wizard'"),
    ({'messages': [{'content': 'x'}]}, "no role: message 1 has no field 'role'"),
    ({'messages': [{'role': U, 'content': 'x'}]}, 'no answer: the assistant says nothing'),
    ({'messages': list(turns((U, 'x'), (A, 'y'), (U, 'z')))}, 'the last message is by the user'),
    ({'messages': list(turns((A, 'y')))}, 'speaks before any user'),
    ({'messages': list(turns((U, 'x'), (U, 'z'), (A, 'y')))}, 'messages 1 and 2 are both by the'),
    ({'messages': list(turns((U, 'x'), (A, 'y'), (S, 'z'), (A, 'w')))}, 'system prompt in the'),
    ({'prompt': 'q', 'response': '  '}, 'empty text: the assistant says nothing'),
    ({'prompt': 'q', 'response': 7}, 'no text: what the assistant says is int'),
    ({'prompt': 'q', 'response': '\ud800'}, 'lone surrogate'),
    ({'chosen': 'a', 'rejected': 'b'}, 'no prompt'),
    ({'chosen': list(turns((U, 'q'), (A, 'a'))), 'rejected': list(turns((U, 'p'), (A, 'b')))},
     'two prompts'),
    ({'prompt': 'q', 'responses': ['a'], 'ranks': [0]}, 'ranking: 1 responses'),
], ids=str)
def test_what_is_no_conversation(fields, reason):
    with pytest.raises(Unreadable, match=reason):
        normalise(fields)


def read(path, **options):
    rejects = Rejects()
    return list(read_conversations(DialogueSpec('mine', str(path), **options), rejects)), rejects


def test_lines_of_json_with_places(tmp_path):
    path = tmp_path / 'd.jsonl'
    path.write_text('{"prompt": "q", "response": "a", "id": "first"}\n{"prompt": \n\n'
                    '{"prompt": "r", "response": "b"}\n{"prompt": "s"}\n')
    found, rejects = read(path)
    assert [(x.id, x.origin, x.request, x.answer) for x in found] == [
        ('first', f'{path}:1', 'q', 'a'), (':4', f'{path}:4', 'r', 'b')]
    assert f'{path}:2: bad JSON' in rejects.describe('mine')
    assert f'{path}:5: unknown format' in rejects.describe('mine')


def test_csv_with_cells_of_several_lines(tmp_path):
    path = tmp_path / 'd.csv'
    path.write_text('prompt,response\n"one\ntwo","a, b"\nq,r\nbroken\n"x","y"\n')
    found, rejects = read(path)
    assert [(x.origin, x.request, x.answer) for x in found] == [
        (f'{path}:2', 'one\ntwo', 'a, b'), (f'{path}:4', 'q', 'r'), (f'{path}:6', 'x', 'y')]
    assert f'{path}:5: bad row: 1 cells under 2 columns' in rejects.describe('mine')
    path.write_text('a,a\n1,2\n')
    with pytest.raises(InputError, match="bad header: the columns are"):
        read(path)


def test_other_files(tmp_path):
    rows = [{'prompt': f'q{i}', 'response': f'a{i}', 'extra': i} for i in range(3)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / 'd.parquet')
    with gzip.open(tmp_path / 'd.jsonl.gz', 'wt') as file:
        file.write(''.join(json.dumps(row) + '\n' for row in rows))
    for name in ('d.parquet', 'd.jsonl.gz'):
        assert [x.answer for x in read(tmp_path / name)[0]] == ['a0', 'a1', 'a2']
    assert [x.answer for x in read(tmp_path / 'd.parquet', where={'extra': 1})[0]] == ['a1']
    assert len(read(tmp_path / 'd.parquet', max_records=2)[0]) == 2


@pytest.mark.parametrize('name, text, parts', [
    ('none.jsonl', None, ['none.jsonl', 'is no file of conversations']),
    ('d.docx', 'x', ['.jsonl, .jsonl.gz, .csv, .parquet']),
    ('empty.jsonl', '', ['has no conversation', 'no record at all']),
    ('bad.jsonl', '{"a": 1}\n', ['bad.jsonl:1', 'unknown format']),
])
def test_files_that_cannot_be_read(name, text, parts, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize('name', ['instructions', 'conversations', 'safety', 'pairs', 'rankings'])
def test_a_world(name):
    world = WorldSpec(0, 'nano', Intervention('none', '', 0, 0.0, 1.0, ''))
    spec = DialogueSpec('w', f'world:{name}', world=world, max_records=30)
    found = list(read_conversations(spec, Rejects()))
    assert len(found) == 30 and all(x.messages[-1]['role'] == A for x in found)
    assert any(x.rejected for x in found) == (name in ('pairs', 'rankings'))
    if name == 'instructions':
        gold = list(read_conversations(
            DialogueSpec('w', 'world:instructions', world=world, where={'quality': 'gold'}),
            Rejects()))
        every = list(read_conversations(DialogueSpec('w', 'world:instructions', world=world),
                                        Rejects()))
        assert 0 < len(gold) < len(every)
    assert dialogues.BY_SUFFIX.keys() == {'.jsonl', '.jsonl.gz', '.csv', '.parquet'}


@pytest.mark.parametrize('fields, reason', [
    ({'messages': {'role': U, 'content': 'x'}}, 'no messages'),
    ({'messages': {'role': [U], 'content': ['a', 'b']}}, 'no messages'),
    ({'messages': {'role': 5, 'content': 5}}, 'no messages'),
    ({'prompt': 'a', 'chosen': 'b', 'rejected': None}, 'no rejected answer: rejected is None'),
    ({'prompt': 'a', 'chosen': 'b', 'rejected': []}, 'no rejected answer'),
    ({'prompt': 'a', 'responses': None, 'ranks': None}, 'ranking'),
    ({'prompt': 'a', 'responses': ['a', 'b'], 'ranks': ['x', 1]}, 'ranking'),
    ({'responses': ['a', 'b'], 'ranks': [1, 2]}, 'no prompt'),
], ids=str)
def test_fields_of_the_wrong_kind_are_a_reason_not_a_crash(fields, reason):
    with pytest.raises(Unreadable, match=reason):
        normalise(fields)


def test_a_text_in_parts_is_one_text():
    parts = [{'type': 'text', 'text': 'q'}, {'type': 'text', 'text': ' r'}]
    assert normalise({'messages': [{'role': U, 'content': parts}, {'role': A, 'content': 'a'}]}
                     )[0] == turns((U, 'q r'), (A, 'a'))


@pytest.mark.parametrize('row, reason', [
    (b'c,"d"x', 'bad CSV'), (b'c,\xff', 'invalid UTF-8'), (b'c,d,e', 'bad row'), (b'c', 'bad row')])
def test_csv_goes_on_behind_a_bad_row(row, reason, tmp_path):
    (tmp_path / 'x.csv').write_bytes(b'prompt,response\n"a\nb",b\n' + row + b'\ne,f\ng,h\n')
    rejects = Rejects()
    found = list(read_conversations(DialogueSpec('x', str(tmp_path / 'x.csv')), rejects))
    assert [c.origin.rpartition(':')[2] for c in found] == ['2', '5', '6']
    assert rejects.summary()['x'] == {'read': 4, 'rejected': 1, 'reasons': {reason: 1}}
    assert 'x.csv:4: ' in rejects.describe('x')


def test_csv_cells_may_be_long(tmp_path):
    (tmp_path / 'x.csv').write_text('prompt,response\na,' + 'z' * 200_000 + '\nc,d\n')
    found = list(read_conversations(DialogueSpec('x', str(tmp_path / 'x.csv')), Rejects()))
    assert [len(c.answer) for c in found] == [200_000, 1]


def test_records_without_an_id_of_their_own_have_different_ones(tmp_path):
    row = {'id': None, 'prompt': 'q', 'response': 'a'}
    (tmp_path / 'x.jsonl').write_text(f'{json.dumps(row)}\n{json.dumps(row | {"id": 0})}\n'
                                      f'{json.dumps(row)}\n')
    spec = DialogueSpec('x', str(tmp_path / 'x.jsonl'))
    assert [c.id for c in read_conversations(spec, Rejects())] == [':1', '0', ':3']


def test_a_file_has_no_split_to_validate_on():
    with pytest.raises(InputError, match="validation_split='test', but the file 'x.jsonl' has no"):
        DialogueSpec('x', 'x.jsonl', validation_split='test')


def test_nothing_that_fits_where_is_said(tmp_path):
    (tmp_path / 'x.jsonl').write_text('{"prompt": "q", "response": "a"}\n')
    spec = DialogueSpec('x', str(tmp_path / 'x.jsonl'), where={'quality': 'gold'})
    with pytest.raises(InputError, match="no record at all where {'quality': 'gold'}"):
        list(read_conversations(spec, Rejects()))
