"""What a model is asked: one dataclass for all questions, and items from a JSONL file."""

import dataclasses
import json
import pathlib

from jaxllm.errors import InputError

_FIELDS = {'id': (str, int), 'prompt': str, 'answer': (str, int), 'candidates': list, 'kind': str,
           'group_id': str, 'answerable': bool, 'tags': dict}
# Tags that results are sliced by, where the items of a suite differ in them.
SLICES = ('exposures', 'planned', 'attribute', 'group', 'style', 'wording', 'held_out', 'treated',
          'kind', 'split', 'domain', 'format', 'family')
# What a row of items.jsonl says of an item beside its tags.
_MEASURED = ('id', 'suite', 'kind', 'answer', 'answerable', 'given', 'correct', 'confidence')


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    id: unique in its suite.
    prompt: ends without a space; an answer follows behind one space.
    answer: the right answer; '' if there is none.
    candidates: the answers to choose from, the right one among them; () = free answers only.
    group_id: wordings of the same question share it.
    tags: {name: value} to slice results by: exposures, group, attribute, wording ...
    """
    id: str
    prompt: str
    answer: str
    candidates: tuple = ()
    kind: str = ''
    group_id: str = ''
    answerable: bool = True
    tags: dict = dataclasses.field(default_factory=dict)

    @property
    def gold(self):
        """Index of the right answer among the candidates; -1 if it is not there."""
        return self.candidates.index(self.answer) if self.answer in self.candidates else -1

    @property
    def subject(self):
        """Whom or what the item is about; itself, if it does not say."""
        return self.tags.get('subject') or self.group_id or self.id


def check_ids(items, where):
    """Raises InputError if two items have the same id."""
    seen = set()
    for item in items:
        if item.id in seen:
            raise InputError(f'{where}: two items have the id {item.id!r}; give each its own')
        seen.add(item.id)


def read_items(path):
    """Items of a JSONL file, one object per line: {"prompt", "candidates", "answer", ...}.

    `answer` is one of the candidates, or the index of one; `id` may be missing (the file's name and
    the line number are taken). Other keys than an Item's become tags.

    Raises:
      InputError: no such file, nothing in it, or a bad line (with its number).
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f'config.items_file={str(path)!r} is no file; expected a JSONL file of '
                         'items such as {"prompt": "2 + 2 =", "candidates": ["3", "4"], '
                         '"answer": "4"}')
    items = []
    with open(path, encoding='utf-8', errors='replace') as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                items.append(_item(line, f'{path}:{number}', f'{path.name}:{number}'))
    if not items:
        raise InputError(f'{path} holds no items; expected one JSON object per line')
    check_ids(items, path)
    return items


def _item(line, where, default_id):
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f'{where}: not JSON ({error}); write one object per line') from error
    if not isinstance(record, dict) or not {'prompt', 'candidates', 'answer'} <= record.keys():
        got = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise InputError(f'{where}: got {got}, expected an object with prompt, candidates and '
                         'answer')
    for key, kinds in _FIELDS.items():
        if key in record and (not isinstance(record[key], kinds) or
                              (isinstance(record[key], bool) and kinds is not bool)):
            raise InputError(f'{where}: {key}={record[key]!r} has the wrong type')
    prompt, candidates = record['prompt'], record['candidates']
    if len(candidates) < 2 or not all(isinstance(x, str) and x.strip() for x in candidates):
        raise InputError(f'{where}: candidates={candidates!r}; expected at least two texts')
    if len(set(candidates)) < len(candidates):
        raise InputError(f'{where}: candidates={candidates!r} has one of them twice')
    if prompt != prompt.rstrip():
        raise InputError(f'{where}: the prompt ends in white space; leave it out, since one space '
                         'is put before each candidate')
    answer = record['answer']
    if isinstance(answer, int):
        if not 0 <= answer < len(candidates):
            raise InputError(f'{where}: answer={answer} is no index of {len(candidates)} '
                             'candidates; count from 0')
        answer = candidates[answer]
    if answer not in candidates:
        raise InputError(f'{where}: the answer {answer!r} is not among the candidates')
    tags = {key: value for key, value in record.items() if key not in _FIELDS}
    tags |= record.get('tags', {})
    _check_tags(tags, where)
    return Item(id=str(record.get('id', default_id)), prompt=prompt, answer=answer,
                candidates=tuple(candidates), kind=record.get('kind', ''),
                group_id=record.get('group_id', ''), answerable=record.get('answerable', True),
                tags=tags)


def _check_tags(tags, where):
    for name, value in tags.items():
        if name in _MEASURED or name.startswith('correct_'):
            raise InputError(f'{where}: the tag {name!r} is the name of a result; give it '
                             'another one')
        if name in (*SLICES, 'subject') and isinstance(value, (list, dict)):
            raise InputError(f'{where}: {name}={value!r} is a {type(value).__name__}, and results '
                             'are told apart by it; use a text or a number')


def spread(items, most):
    """At most `most` of a list, evenly spread over it; 0 = all."""
    if not most or len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
