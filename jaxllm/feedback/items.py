"""What is compared: prompts with several responses, written once: a restart shows the same."""

import collections
import dataclasses
import hashlib
import json

from jaxllm.config import write_atomic
from jaxllm.data.conversations import (
    PROMPTS, Unreadable, as_message, as_messages, as_preference, as_prompt, check)
from jaxllm.data.dialogues import DialogueSpec, read_source, record_id
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError

FILE = 'items.jsonl'


@dataclasses.dataclass(frozen=True)
class Item:
    """id: unique in its directory. prompt: dicts with role and content, the last one the user's.
    responses: S >= 2 different texts. sources: for each, the names of what wrote it."""
    id: str
    prompt: tuple
    responses: tuple
    sources: tuple


def make_item(name, prompt, texts):
    """An Item of [(source, text)] in a fixed order that says nothing of the sources, or None where
    fewer than two texts differ. Equal texts are shown once and count for all their sources."""
    found = {}
    for source, text in texts:
        found.setdefault(text.strip(), []).append(source)
    if len(found) < 2:
        return None
    order = sorted(found, key=lambda text: hashlib.sha256(f'{name}\n{text}'.encode()).digest())
    return Item(name, tuple(prompt), tuple(order),
                tuple(tuple(dict.fromkeys(found[text])) for text in order))


def write_items(workdir, items):
    """Writes items.jsonl, whole or not at all."""
    lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False) for item in items]
    write_atomic(workdir / FILE, '\n'.join(lines) + '\n')


def read_items(workdir):
    """The items of a label directory.

    Raises:
        InputError: there are none, or a line is damaged.
    """
    path, items = workdir / FILE, []
    if not path.exists():
        raise InputError(f'{workdir} holds nothing to label (no {FILE}); give --model=RUN with '
                         '--prompts=FILE.jsonl, or --responses=FILE.jsonl')
    for number, line in enumerate(path.read_text('utf-8').splitlines(), 1):
        try:
            fields = json.loads(line)
            items.append(Item(fields['id'], tuple(fields['prompt']), tuple(fields['responses']),
                              tuple(map(tuple, fields['sources']))))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}:{number} is damaged ({error!r}); bring the file back from a '
                             'copy, since answers refer to its items') from error
    return items


def read_prompts(spec: DialogueSpec, rejects: Rejects):
    """[(id, messages up to a request)] of a source; answers that stand there are left out."""
    found = read_source(spec, rejects, lambda raw: (record_id(raw), _prompt(raw.fields)), 'prompt')
    return _distinct(list(found), spec.path)


def read_ready(spec: DialogueSpec, rejects: Rejects):
    """(items, how many had fewer than two different responses) of records with responses.

    A record is {prompt, responses: [text, ...]}; where `sources` names as many, these are kept,
    otherwise the places in the list are the sources.
    """
    def ready(raw):
        return record_id(raw), _prompt(raw.fields), _responses(raw.fields)
    found = _distinct(list(read_source(spec, rejects, ready, 'prompt with responses')), spec.path)
    items = [make_item(*record) for record in found]
    good = [item for item in items if item is not None]
    return good, len(items) - len(good)


def _distinct(records, path):
    name, times = collections.Counter(record[0] for record in records).most_common(1)[0]
    if times > 1:
        raise InputError(f'{path} has {times} records with the id {name!r}; expected ids that are '
                         'unique, or none')
    return records


def _prompt(fields):
    if fields.keys() & set(PROMPTS):
        messages = as_prompt(fields)
    elif 'messages' in fields:
        messages = as_messages(fields['messages'])
    elif 'conversations' in fields:
        messages = as_messages(fields['conversations'], 'from', 'value')
    elif 'chosen' in fields and 'rejected' in fields:
        messages = as_preference(fields)[0]
    else:
        raise Unreadable(f'no prompt: the fields are {", ".join(sorted(fields)) or "none"}')
    while messages and messages[-1]['role'] != 'user':
        messages = messages[:-1]
    if not messages:
        raise Unreadable('no request: nobody asks anything')
    if 'system' in fields and fields['system'] and messages[0]['role'] != 'system':
        messages = [as_message('system', fields['system']), *messages]
    check([*messages, {'role': 'assistant', 'content': '...'}])
    return messages


def _responses(fields):
    texts = fields['responses'] if 'responses' in fields else None
    if not isinstance(texts, (list, tuple)) or len(texts) < 2:
        raise Unreadable('no responses: expected a list of at least two texts')
    sources = fields['sources'] if 'sources' in fields else list(range(1, len(texts) + 1))
    if not isinstance(sources, (list, tuple)) or len(sources) != len(texts):
        raise Unreadable(f'sources: expected {len(texts)} names, one for each response')
    return [(str(source), as_message('assistant', text)['content'])
            for source, text in zip(sources, texts, strict=True)]
