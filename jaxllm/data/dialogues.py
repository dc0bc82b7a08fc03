"""Sources of conversations: files, TFDS, a world; read, and rendered for a token store."""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator

from jaxllm.config import cache_dir
from jaxllm.data import chat, readers, records
from jaxllm.data.conversations import Conversation, Unreadable, normalise
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.world import publish
from jaxllm.world.spec import WorldSpec

BY_SUFFIX = {'.jsonl': readers.read_jsonl, '.jsonl.gz': readers.read_jsonl,
             '.csv': readers.read_csv, '.parquet': readers.read_parquet}


@dataclasses.dataclass(frozen=True)
class DialogueSpec:
    """Where one set of conversations is read; formats as in `conversations`.

    path: a file (.jsonl, .jsonl.gz, .csv, .parquet), 'tfds:NAME' or 'world:NAME'.
    split, validation_split: of TFDS and worlds; '' holds out a share of `split`.
    where: {field: value} that a record must have, as {'quality': 'gold'}; others are no part of it.
    max_records: read at most so many; 0 = all.
    """
    name: str
    path: str
    split: str = 'train'
    validation_split: str = ''
    where: dict = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    max_records: int = 0
    license: str = ''
    max_record_bytes: int = 10_000_000
    world: WorldSpec | None = None

    def __post_init__(self):
        if not self.path:
            raise InputError(f'source {self.name!r} has no path; expected a .jsonl, .csv or '
                             ".parquet file, 'tfds:NAME' or 'world:NAME'")
        if self.path.startswith('world:') != (self.world is not None):
            raise InputError(f'source {self.name!r} has path {self.path!r} and world {self.world}; '
                             "a path 'world:NAME' needs a world, and only that does")
        if self.validation_split and not self.path.startswith(('tfds:', 'world:')):
            raise InputError(
                f'source {self.name!r} has validation_split={self.validation_split!r}, but the '
                f'file {self.path!r} has no splits and would be validated on what it trains on; '
                "leave it '' to hold out a share")
        if not self.weight > 0:
            raise InputError(f'source {self.name!r} has weight {self.weight}, expected more than 0')

    @property
    def fingerprint(self) -> str:
        content = dataclasses.asdict(self)
        if self.world:
            content['world'] = self.world.fingerprint
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_conversations(spec: DialogueSpec, rejects: Rejects) -> Iterator[Conversation]:
    """The conversations of a source; what is none is counted and recorded in `rejects`.

    Raises:
        InputError: no such file or dataset, a file of another kind, or no conversation in it.
    """
    def conversation(raw):
        messages, rejected = normalise(raw.fields)
        return Conversation(record_id(raw), raw.origin, messages, rejected)
    return read_source(spec, rejects, conversation, 'conversation')


def read_source(spec, rejects, normal, what):
    """normal(raw) of each record of a source; what is Unreadable is counted and recorded.

    Args:
        what: names one in messages.

    Raises:
        InputError: as `read_conversations`.
    """
    found = itertools.islice(_read(spec, rejects, normal), spec.max_records or None)
    first = next(found, None)
    if first is None:
        raise InputError(f'source {spec.name!r} has no {what}: {spec.path!r} gave '
                         f'{rejects.describe(spec.name) or "no record at all"}'
                         f'{f" where {spec.where}" if spec.where else ""}; expected one record '
                         'per line')
    yield first
    yield from found


def record_id(raw):
    """Its own id, or else where it is."""
    own = raw.fields['id'] if 'id' in raw.fields else None
    return raw.place if own in (None, '') else str(own)


def _read(spec, rejects, normal):
    for raw in _open(spec):
        if any(name not in raw.fields or raw.fields[name] != value
               for name, value in spec.where.items()) and not raw.error:
            continue
        rejects.read(spec.name)
        try:
            if raw.error:
                raise Unreadable(raw.error)
            record = normal(raw)
        except Unreadable as error:
            rejects.reject(spec.name, raw.origin, str(error), raw.start)
            continue
        yield record


def _open(spec):
    if spec.world:
        name = spec.path.removeprefix('world:')
        publish.check_dataset(name, 'id')
        folder = publish.prepare(cache_dir(), spec.world, [name])
        builder = readers.open_tfds(str(publish.tfds_dir(folder, name)))
        return readers.read_tfds(builder, spec.split, '')
    if spec.path.startswith('tfds:'):
        return readers.read_tfds(readers.open_tfds(spec.path.removeprefix('tfds:')), spec.split, '')
    suffix = next((end for end in BY_SUFFIX if spec.path.endswith(end)), '')
    if not os.path.isfile(spec.path) or not suffix:
        raise InputError(f'source {spec.name!r}: {spec.path!r} is no file of conversations; '
                         f'expected one that is there, as {", ".join(BY_SUFFIX)}')
    return BY_SUFFIX[suffix](spec.path, '', spec.max_record_bytes)


@dataclasses.dataclass(frozen=True)
class Rendered(records.Document):
    """A conversation as a document of a token store; `text` is its messages as JSON."""
    ids: list = ()
    loss_weights: list = ()


def render_all(conversations, spec, template, tokenizer, seq_len, rejects, counts):
    """Rendered documents of conversations, cut at seq_len + 1 tokens.

    What is cut ends without an end token: none is invented. A conversation of which nothing to
    learn is left is rejected.

    Args:
        counts: a Counter; counts['cut'] becomes how many were cut.
    """
    for conversation in conversations:
        try:
            whole = chat.render(template, conversation.messages, tokenizer)
        except InputError as error:
            rejects.reject(spec.name, conversation.origin, f'not for this template: {error}')
            continue
        ids, weights = whole.ids[:seq_len + 1], whole.loss_weights[:seq_len + 1]
        if not any(weights[1:]):
            reason = (f'prompt too long: {len(whole.ids)} tokens, and no answer begins within '
                      f'seq_len={seq_len}' if any(whole.loss_weights) else
                      'nothing to learn: the template marks no token of it')
            rejects.reject(spec.name, conversation.origin, reason)
            continue
        if len(whole.ids) > len(ids):
            counts['cut'] += 1
        yield Rendered(text=json.dumps(conversation.messages, ensure_ascii=False, sort_keys=True),
                       id=conversation.id, source=spec.name, license=spec.license,
                       origin=conversation.origin, ids=ids, loss_weights=weights)


def encode(documents):
    """What `store.write_store` asks of Rendered documents."""
    return [(document.ids, document.loss_weights) for document in documents]
