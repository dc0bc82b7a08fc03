"""Comparisons in every format, and what is none."""

import json
import math

import pytest

from jaxllm.data.conversations import Unreadable, normalise
from jaxllm.data.preferences import (
    Comparison, ComparisonSpec, normalise_comparison, read_comparisons)
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.world.spec import Intervention, WorldSpec

U, A, S = 'user', 'assistant', 'system'


def turns(*pairs):
    return tuple({'role': role, 'content': text} for role, text in pairs)


ASKED = turns((U, 'q'))
TALK = turns((U, 'q'), (A, 'b'), (U, 'r'))


@pytest.mark.parametrize('fields, want', [
    ({'prompt': 'q', 'chosen': 'g', 'rejected': 'b'}, Comparison(ASKED, ('g', 'b'), (1, 2))),
    ({'prompt': 'q', 'chosen': 'g', 'rejected': 'b', 'margin': 2, 'rater': 'Ann', 'id': 7,
      'criterion': 'safe', 'kind': 'fact', 'answer': 'g'},
     Comparison(ASKED, ('g', 'b'), (1, 2), 2.0, 'Ann', 'safe', '7',
                {'kind': 'fact', 'answer': 'g'})),
    ({'messages': list(TALK), 'chosen': 'g', 'rejected': 'b'},
     Comparison(TALK, ('g', 'b'), (1, 2))),
    ({'prompt': list(ASKED), 'chosen': list(turns((A, 'g'))), 'rejected': list(turns((A, 'b')))},
     Comparison(ASKED, ('g', 'b'), (1, 2))),
    ({'prompt': 'q', 'chosen': list(turns((U, 'q'), (A, 'g'))),
      'rejected': list(turns((U, 'q'), (A, 'b'))), 'system': 's'},
     Comparison(turns((S, 's'), (U, 'q')), ('g', 'b'), (1, 2))),
    ({'chosen': '\n\nHuman: q\n\nAssistant: b\n\nHuman: r\n\nAssistant: g: h',
      'rejected': '\n\nHuman: q\n\nAssistant: b\n\nHuman: r\n\nAssistant: no\nHuman: x'},
     Comparison(TALK, ('g: h', 'no\nHuman: x'), (1, 2))),
    ({'prompt': 'q', 'chosen': 'g', 'rejected': ['b', 'c']},
     Comparison(ASKED, ('g', 'b', 'c'), (1, 2, 2))),
    ({'prompt': 'q', 'responses': ['c', 'a', 'b', 'd'], 'ranks': [5, 0, 2, 2]},
     Comparison(ASKED, ('c', 'a', 'b', 'd'), (3, 1, 2, 2))),
    ({'prompt': 'q', 'responses': ['c', 'a'], 'ranks': [1, 1]},
     Comparison(ASKED, ('c', 'a'), (1, 1))),
    ({'prompt': 'q', 'responses': ['c', 'a', 'b'], 'scores': [0.5, 3.25, 0.5]},
     Comparison(ASKED, ('c', 'a', 'b'), (2, 1, 2), fields={'scores': [0.5, 3.25, 0.5]})),
    ({'instruction': 'q', 'responses': ['c', 'a'], 'ratings': [4, 5]},
     Comparison(ASKED, ('c', 'a'), (2, 1), fields={'instruction': 'q', 'ratings': [4, 5]})),
], ids=lambda value: ' '.join(value) if isinstance(value, dict) else '')
def test_formats(fields, want):
    assert normalise_comparison(fields) == want


@pytest.mark.parametrize('fields, reason', [
    ({'text': 'x'}, 'unknown format: the fields are text'),
    ({'prompt': 'q', 'responses': ['a'], 'ranks': [1]}, 'ranking: 1 responses and 1 ranks'),
    ({'prompt': 'q', 'responses': ['a', 'b'], 'ranks': [1, 2, 3]}, '2 responses and 3 ranks'),
    ({'prompt': 'q', 'responses': ['a', 'b', 'a '], 'ranks': [1, 2, 3]},
     'equal responses: 1 and 3 are the same text'),
    ({'prompt': 'q', 'chosen': 'a', 'rejected': 'a'}, 'equal responses'),
    ({'prompt': 'q', 'chosen': 'a', 'rejected': ['b', 'b']}, 'equal responses: 2 and 3'),
    ({'prompt': 'q', 'responses': ['a', 'b'], 'ratings': [1.0, math.nan]}, 'ranking: ratings'),
    ({'prompt': 'q', 'responses': ['a', 'b'], 'ranks': [1, math.inf]}, 'finite numbers'),
    ({'prompt': 'q', 'responses': ['a', 'b'], 'ranks': [True, False]}, 'ranking: expected a list'),
    ({'prompt': 'q', 'responses': ['a', 'b'], 'ranks': None}, 'ranking: expected a list'),
    ({'prompt': 'q', 'responses': ['a', ' '], 'ranks': [1, 2]}, 'empty text'),
    ({'responses': ['a', 'b'], 'ranks': [1, 2]}, 'no prompt'),
    ({'prompt': list(turns((U, 'q'), (A, 'a'))), 'responses': ['a', 'b'], 'ranks': [1, 2]},
     'two in a row'),
    ({'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'margin': math.nan}, 'margin: nan'),
    ({'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'margin': -1}, 'margin: -1'),
    ({'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'margin': 'much'}, "margin: 'much' is no num"),
    ({'chosen': 'a', 'rejected': 'b'}, 'no prompt'),
    ({'chosen': 'Human: q\n\nAssistant: a', 'rejected': 'Human: p\n\nAssistant: b'}, 'two prompts'),
    ({'chosen': 'Human: q\n\nAssistant: a', 'rejected': 'Human: q'}, 'two prompts'),
    ({'chosen': 'Human: q\n\nAssistant: a', 'rejected': None}, 'no prompt'),
    ({'prompt': [{'role': U, 'content': 'q'}, {'role': A, 'content': '', 'tool_calls': [{}]},
                 {'role': 'tool', 'content': '1'}], 'chosen': 'a', 'rejected': 'b'}, 'no request'),
], ids=str)
def test_what_is_no_comparison(fields, reason):
    with pytest.raises(Unreadable, match=reason):
        normalise_comparison(fields)


def test_bad_lines_are_counted_with_their_place(tmp_path):
    path = tmp_path / 'd.jsonl'
    lines = [{'prompt': 'q', 'chosen': 'a', 'rejected': 'b', 'id': 'first'},
             {'prompt': 'q', 'chosen': 'a', 'rejected': 'a'},
             {'prompt': 'q', 'responses': ['a', 'b'], 'scores': [1, math.nan]},
             {'prompt': 'q', 'responses': ['a', 'b'], 'scores': [1, 2]}]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines) + '{"torn')
    rejects = Rejects()
    found = list(read_comparisons(ComparisonSpec('mine', str(path)), rejects))
    assert [(c.id, c.ranks) for c in found] == [('first', (1, 2)), (':4', (2, 1))]
    assert rejects.summary()['mine'] == {'read': 5, 'rejected': 3, 'reasons': {
        'bad JSON': 1, 'equal responses': 1, 'ranking': 1}}
    for place in (f'{path}:2: equal', f'{path}:3: ranking', f'{path}:5: bad JSON'):
        assert place in rejects.describe('mine')
    path.write_text('{"prompt": "q", "response": "a"}\n')
    with pytest.raises(InputError, match="'mine' has no comparison: .*1 of 1 records rejected"):
        list(read_comparisons(ComparisonSpec('mine', str(path)), Rejects()))


def test_cells_of_csv(tmp_path):
    (tmp_path / 'd.csv').write_text('prompt,chosen,rejected,margin\nq,a,b,1.5\nr,c,d,\n')
    found = read_comparisons(ComparisonSpec('x', str(tmp_path / 'd.csv')), Rejects())
    assert [(c.request, c.margin) for c in found] == [('q', 1.5), ('r', 0.0)]


@pytest.mark.parametrize('name, size', [('pairs', 2), ('rankings', 4)])
def test_a_world(name, size):
    world = WorldSpec(0, 'nano', Intervention('none', '', 0, 0.0, 1.0, ''))
    spec = ComparisonSpec('w', f'world:{name}', split='test', world=world, max_records=40)
    rejects = Rejects()
    found = list(read_comparisons(spec, rejects))
    assert len(found) == 40 and not rejects.count('w')
    assert all(len(c.responses) == len(c.ranks) == size and min(c.ranks) == 1 for c in found)
    assert all(c.rater and c.criterion and c.fields['split'] == 'test' for c in found)
    assert any(c.margin for c in found) == (name == 'pairs')


def test_an_answer_to_imitate_is_the_best_one():
    fields = {'prompt': 'q', 'responses': ['c', 'a', 'b'], 'ratings': [0.5, 3, 3]}
    assert normalise(fields) == (turns((U, 'q'), (A, 'a')), ('c',))
