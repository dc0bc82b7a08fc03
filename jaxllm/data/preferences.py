"""Comparisons of responses to one prompt, from the formats that people have preferences in.

    chosen      and rejected with a prompt (or messages): pairs; a margin is optional
    chosen      and rejected: whole lists of messages, or "Human: ... Assistant: ..." (HH-RLHF)
    responses   and ranks (1 = best, equal = tied) with a prompt: rankings
    responses   and scores or ratings (higher = better) with a prompt
"""

import dataclasses
import math
from collections.abc import Iterator

from jaxllm.data.conversations import (
    PROMPTS, SCORES, Unreadable, as_message, as_preference, as_ranking, check)
from jaxllm.data.dialogues import DialogueSpec, read_source, record_id
from jaxllm.data.rejects import Rejects

_USED = {*PROMPTS[:1], 'messages', 'system', 'chosen', 'rejected', 'responses', 'ranks', 'margin',
         'rater', 'criterion', 'id'}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several responses to one prompt and a person's (or a program's) order of them.

    prompt: dicts with role and content, the last one the user's.
    responses: S >= 2 different texts.
    ranks: S ints from 1, the best; equal ranks are ties; dense, as (1, 2, 2, 3).
    margin: how much better the best is than the next, in grades (0 to 3 in this project); of pairs.
    fields: the rest of the record.
    """
    prompt: tuple
    responses: tuple
    ranks: tuple
    margin: float = 0.0
    rater: str = ''
    criterion: str = ''
    id: str = ''
    fields: dict = dataclasses.field(default_factory=dict)

    @property
    def request(self):
        """What is answered, as text."""
        return self.prompt[-1]['content']


@dataclasses.dataclass(frozen=True)
class ComparisonSpec(DialogueSpec):
    """Where one set of comparisons is read; fields as of DialogueSpec, formats as above."""


def normalise_comparison(fields: dict) -> Comparison:
    """A record in any of the formats.

    Several rejected answers count as tied: the record does not say which is worse.

    Raises:
        Unreadable: what is wrong with it, in words.
    """
    names = fields.keys()
    if 'messages' in names and not names & set(PROMPTS):
        fields = fields | {'prompt': fields['messages']}
    if 'chosen' in names and 'rejected' in names:
        (*prompt, best), worse = as_preference(fields)
        responses = [best['content'], *worse]
        ranks = [1] + [2] * len(worse)
        margin = _margin(fields)
    elif 'responses' in names and names & {'ranks', *SCORES}:
        (prompt, responses, ranks), margin = as_ranking(fields), 0.0
    else:
        raise Unreadable(f'unknown format: the fields are {", ".join(sorted(names)) or "none"}; '
                         'expected a prompt with chosen and rejected, or with responses and ranks, '
                         'scores or ratings')
    if 'system' in names and fields['system'] and prompt[0]['role'] != 'system':
        prompt = [as_message('system', fields['system']), *prompt]
    _check(prompt, responses)
    text = lambda name: '' if name not in names or fields[name] is None else str(fields[name])
    return Comparison(tuple(prompt), tuple(responses), tuple(ranks), margin, text('rater'),
                      text('criterion'), text('id'),
                      {name: value for name, value in fields.items() if name not in _USED})


def read_comparisons(spec: DialogueSpec, rejects: Rejects) -> Iterator[Comparison]:
    """The comparisons of a source; what is none is counted and recorded in `rejects`.

    Raises:
        InputError: no such file or dataset, a file of another kind, or no comparison in it.
    """
    def comparison(raw):
        return dataclasses.replace(normalise_comparison(raw.fields), id=record_id(raw))
    return read_source(spec, rejects, comparison, 'comparison')


def _margin(fields):
    margin = fields['margin'] if 'margin' in fields else None
    if margin in (None, ''):
        return 0.0
    try:
        value = float(margin)   # CSV has it as text
    except (TypeError, ValueError) as error:
        raise Unreadable(f'margin: {margin!r:.40} is no number') from error
    if not (math.isfinite(value) and value >= 0) or isinstance(margin, bool):
        raise Unreadable(f'margin: {margin!r:.40}; expected a finite number of at least 0')
    return value


def _check(prompt, responses):
    """Raises Unreadable unless different responses answer a user."""
    check([*prompt, {'role': 'assistant', 'content': responses[0]}])
    if prompt[-1]['role'] != 'user':
        raise Unreadable(f'no request: the prompt ends with the {prompt[-1]["role"]}, expected the '
                         'user')
    seen = {}
    for number, text in enumerate(responses, 1):
        first = seen.setdefault(text.strip(), number)
        if first != number:
            raise Unreadable(f'equal responses: {first} and {number} are the same text, so that '
                             f'comparing them says nothing ({text!r:.40})')
