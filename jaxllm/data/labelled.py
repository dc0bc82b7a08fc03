"""Single answers that somebody called good or bad: what KTO learns from, without any comparison.

A record is a conversation in any of the formats of `conversations`, such as prompt and completion,
with a label: true or false, 1 or 0, 1 or -1.
"""

import collections
import dataclasses
import itertools

import numpy as np

from jaxllm.data import chat, comparisons
from jaxllm.data.conversations import Unreadable, check, normalise
from jaxllm.data.dialogues import read_source, record_id
from jaxllm.data.pairs import PairSet
from jaxllm.errors import InputError

_LABELS = {1: True, 0: False, -1: False,  # True is 1, False is 0
           'true': True, 'false': False, '1': True, '0': False, '-1': False}


@dataclasses.dataclass(frozen=True)
class Labelled:
    """prompt: dicts with role and content. response: the answer. good: what was said of it. fields:
    the record's."""
    prompt: tuple
    response: str
    good: bool
    id: str
    fields: dict


def read_labelled(spec, rejects):
    """Yields the Labelled of a DialogueSpec; what is none is counted and recorded in `rejects`.

    Raises:
        InputError: no such file or dataset, a file of another kind, or nothing in it.
    """
    def labelled(raw):
        if 'label' not in raw.fields:
            raise Unreadable('no label: expected a field label, true for a good answer and false '
                             'for a bad one')
        label = raw.fields['label']
        key = label.lower() if isinstance(label, str) else label
        if not isinstance(key, (str, bool, int)) or key not in _LABELS:
            raise Unreadable(f'label: {label!r:.40} is neither true nor false')
        messages, _ = normalise(raw.fields)
        check(messages)
        return Labelled(tuple(messages[:-1]), messages[-1]['content'], _LABELS[key],
                        record_id(raw), raw.fields)
    return read_source(spec, rejects, labelled, 'labelled answer')


def encode_labelled(found, name, template, tokenizer, seq_len, rejects):
    """[(Labelled, ids, index of the prompt's last token)], those of more than seq_len tokens
    rejected."""
    stops, kept = chat.stop_ids(template, tokenizer), []
    for one in found:
        try:
            prompt = chat.render(template, list(one.prompt), tokenizer,
                                 add_generation_prompt=True, train=False).ids
            ids = comparisons.answer_ids(
                template, [*one.prompt, {'role': 'assistant', 'content': one.response}], tokenizer,
                stops)
        except InputError as error:
            rejects.reject(name, one.id, f'not for this template: {error}')
            continue
        if len(ids) > seq_len:
            rejects.reject(name, one.id, f'too long: {len(ids)} tokens, seq_len={seq_len}')
        elif ids[:len(prompt)] != prompt:
            rejects.reject(name, one.id, 'not for this template: its prompt is not how the '
                                         'conversation with the answer begins')
        else:
            kept.append((one, ids, len(prompt) - 1))
    return kept


def side_by_side(encoded, pad_id):
    """(PairSet, {"good", "bad": how many}): beside each good answer any bad one to any prompt.

    For losses that look at each answer by itself. Of the kind of which there are fewer, answers
    come again, so that good and bad ones count alike however many there are of each.

    Raises:
        InputError: all are good, or all are bad.
    """
    sides = [[(ids, start) for one, ids, start in encoded if one.good is good]
             for good in (True, False)]
    counts = collections.Counter(good=len(sides[0]), bad=len(sides[1]))
    if not all(sides):
        raise InputError(f'{counts["good"]} good and {counts["bad"]} bad answers; expected some of '
                         'both, since what is learned is the difference')
    count = max(map(len, sides))
    columns = [list(itertools.islice(itertools.cycle(side), count)) for side in sides]
    L = max(len(ids) for column in columns for ids, _ in column)
    tokens = np.full((count, 2, L), pad_id, np.int32)
    lengths, starts = np.zeros((count, 2), np.int32), np.zeros((count, 2), np.int32)
    for side, column in enumerate(columns):
        for row, (ids, start) in enumerate(column):
            tokens[row, side, :len(ids)] = ids
            lengths[row, side], starts[row, side] = len(ids), start
    return PairSet(tokens, lengths, starts, pad_id), counts
