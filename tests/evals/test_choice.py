"""Items of a file, and the normalisations of a choice."""

import json

import numpy as np
import pytest

from jaxllm.errors import InputError
from jaxllm.evals import choice, items, scoring


def _write(tmp_path, *records):
    path = tmp_path / 'items.jsonl'
    path.write_text('\n'.join(x if isinstance(x, str) else json.dumps(x) for x in records))
    return path


GOOD = {'id': 'a', 'prompt': '2 + 2 =', 'candidates': ['3', '4'], 'answer': '4', 'topic': 'sums'}


def test_items_of_a_file(tmp_path):
    path = _write(tmp_path, GOOD, '', GOOD | {'id': 'b', 'answer': 0},
                  {key: GOOD[key] for key in ('prompt', 'candidates', 'answer')})
    first, second, third = items.read_items(path)
    assert (first.id, first.answer, first.gold, first.tags) == ('a', '4', 1, {'topic': 'sums'})
    assert (second.answer, second.gold) == ('3', 0)
    assert third.id == third.subject == 'items.jsonl:4'  # its file and line


@pytest.mark.parametrize('bad, part', [
    ('{"prompt": ', 'not JSON'),
    ('[1]', 'list'),
    ({'prompt': 'x', 'answer': 'y'}, "['answer', 'prompt']"),
    (GOOD | {'prompt': 3}, 'prompt=3'),
    (GOOD | {'prompt': '2 + 2 = '}, 'white space'),
    (GOOD | {'candidates': ['4']}, 'at least two'),
    (GOOD | {'candidates': ['4', '4']}, 'twice'),
    (GOOD | {'candidates': ['4', ' ']}, 'at least two'),
    (GOOD | {'answer': '5'}, "'5' is not among"),
    (GOOD | {'answer': 2}, 'answer=2'),
    (GOOD | {'answer': True}, 'wrong type'),
    (GOOD | {'group': [1]}, 'group=[1] is a list'),
    (GOOD | {'tags': {'kind': 'x'}}, "the tag 'kind'"),
    (GOOD | {'confidence': 1}, "the tag 'confidence'"),
    (GOOD | {'correct_sum': 1}, "the tag 'correct_sum'"),
])
def test_a_bad_line_is_named(tmp_path, bad, part):
    path = _write(tmp_path, GOOD, bad)
    with pytest.raises(InputError) as error:
        items.read_items(path)
    assert f'{path}:2' in str(error.value) and part in str(error.value)


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(InputError, match='no file'):
        items.read_items(tmp_path / 'none')
    with pytest.raises(InputError, match='no items'):
        items.read_items(_write(tmp_path, ''))
    with pytest.raises(InputError, match="the id 'a'"):
        items.read_items(_write(tmp_path, GOOD, GOOD))


def test_items_are_spread_evenly():
    assert items.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert items.spread([1, 2], 0) == items.spread([1, 2], 5) == [1, 2]


def test_normalisations():
    scores = scoring.Scores(full_logprob=np.array([-9., -8., -10.]), num_tokens=np.array([1, 2, 4]),
                            continuation_logprob=np.array([-3., -2., -4.]),
                            num_chars=np.array([3, 1, 8]))
    values = choice.normalised(scores, unconditional=np.array([-1., -5., -2.]))
    assert values['sum'].tolist() == [-9, -8, -10]
    assert values['token'].tolist() == [-3, -1, -1]
    assert values['char'].tolist() == [-1, -2, -0.5]
    assert values['pmi'].tolist() == [-2, 3, -2]
    np.testing.assert_allclose(choice.probabilities(scores)[1], 1 / (1 + np.e ** -1 + np.e ** -2))
