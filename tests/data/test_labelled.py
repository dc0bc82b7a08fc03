"""Answers that are good or bad by themselves: reading, and the pairs made of them."""

import json

import pytest

from jaxllm.data import chat, labelled, tokenizer
from jaxllm.data.dialogues import DialogueSpec
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError

TOKENS = tokenizer.byte_tokenizer()
TEMPLATE = chat.load_template('chatml_bos')


def spec_of(path, *records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return DialogueSpec('mine', str(path))


def test_labels_in_many_spellings(tmp_path):
    labels = (True, 1, 'true', '1', False, 0, -1, 'False', 'maybe', None, 0.5)
    records = [dict(prompt=f'q{i}', completion='a', label=label) for i, label in enumerate(labels)]
    rejects = Rejects()
    spec = spec_of(tmp_path / 'x.jsonl', *records, dict(prompt='q', completion='a'))
    found = list(labelled.read_labelled(spec, rejects))
    assert [one.good for one in found] == [True] * 4 + [False] * 4
    assert found[0].prompt == ({'role': 'user', 'content': 'q0'},) and found[0].response == 'a'
    assert rejects.summary()['mine']['reasons'] == {'label': 3, 'no label': 1}


def encoded(tmp_path, *goods, seq_len=64, rejects=None):
    records = [dict(prompt=f'q{i}', completion=f'{"good" if good else "bad"} {i}', label=good)
               for i, good in enumerate(goods)]
    rejects = rejects or Rejects()
    found = labelled.read_labelled(spec_of(tmp_path / 'x.jsonl', *records), rejects)
    return labelled.encode_labelled(found, 'mine', TEMPLATE, TOKENS, seq_len, rejects)


def answers(pairs, side):
    rows = zip(pairs.tokens[:, side], pairs.starts[:, side], pairs.lengths[:, side], strict=True)
    return [TOKENS.decode(tokens[start + 1:end - 1].tolist()) for tokens, start, end in rows]


def test_good_ones_beside_bad_ones(tmp_path):
    """Each of the more frequent kind once; the others again."""
    pairs, counts = labelled.side_by_side(encoded(tmp_path, 1, 0, 1, 1, 0), TOKENS.pad_id)
    assert answers(pairs, 0) == ['good 0', 'good 2', 'good 3']
    assert answers(pairs, 1) == ['bad 1', 'bad 4', 'bad 1']
    assert counts == {'good': 3, 'bad': 2}
    prompt = pairs.tokens[1, 1, :pairs.starts[1, 1] + 1].tolist()
    assert prompt == chat.render(TEMPLATE, [{'role': 'user', 'content': 'q4'}], TOKENS,
                                 add_generation_prompt=True).ids


def test_all_good_is_refused(tmp_path):
    with pytest.raises(InputError, match='2 good and 0 bad'):
        labelled.side_by_side(encoded(tmp_path, 1, 1), TOKENS.pad_id)


def test_too_long_is_rejected(tmp_path):
    rejects = Rejects()
    assert encoded(tmp_path, 1, 0, seq_len=10, rejects=rejects) == []
    assert rejects.summary()['mine']['reasons'] == {'too long': 2}
