"""One interface to every source of text: files, parquet, TFDS, the standard library, a world."""

import dataclasses
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from jaxllm.config import cache_dir
from jaxllm.data import readers, stdlib
from jaxllm.data.clean import planted
from jaxllm.data.readers import Raw
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.world import publish
from jaxllm.world.spec import WorldSpec

__all__ = ['Document', 'Rejects', 'SourceSpec', 'read_source']


@dataclasses.dataclass(frozen=True)
class Document:
    """One text and where it comes from.

    Attributes:
        id: the record's own id, or a hash of its source's name and its place in it.
        origin: 'file:line', 'file:row' (parquet), 'file' (a whole file) or 'dataset[index]'.
    """
    text: str
    id: str
    source: str
    license: str
    origin: str


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """Where one component of a mixture is read.

    Attributes:
        name: of the source, in ids, reports and mixtures.
        path: one of
            - a file, folder (recursive, without hidden files) or glob of .txt, .md, .py (a whole
              file is a document), .jsonl, .jsonl.gz (a line is a document) and .parquet (a row);
            - 'tfds:NAME[/CONFIG][:VERSION]' or 'tfds:/prepared/dir', in array_record format;
            - 'python:stdlib', the dataset of `jaxllm.data.stdlib`,
            - 'world:NAME', a dataset of `world`, generated into the cache when it is read.
        split: of a TFDS dataset, slices allowed; 'train' of python:stdlib means all its parts.
        validation_split: the split to validate on; '' holds out a share of `split`.
        text_key: field with the text, for JSON lines, parquet and TFDS.
        license: of records without a `license` field of their own.
        weight: share in a mixture, relative to the other sources.
        max_documents: read at most so many; 0 reads all.
        max_record_bytes: longer lines, files and fields are rejected, in bounded memory.
        dirt: share of planted dirt (data.clean.planted) in what is read, to try the filters on.
    """
    name: str
    path: str
    split: str = 'train'
    text_key: str = 'text'
    license: str = ''
    weight: float = 1.0
    max_documents: int = 0
    max_record_bytes: int = 10_000_000
    validation_split: str = ''
    world: WorldSpec | None = None
    dirt: float = 0.0

    def __post_init__(self):
        if not 0 <= self.dirt < 1:
            raise InputError(f'source {self.name!r} has dirt={self.dirt}; expected a share of at '
                             'least 0 and below 1, e.g. 0.1')
        if self.path.startswith('world:') != (self.world is not None):
            raise InputError(f'source {self.name!r} has path {self.path!r} and world {self.world}; '
                             "a path 'world:NAME' needs a world, and only that does")
        if self.world:
            publish.check_dataset(self.path.removeprefix('world:'), self.text_key)

    @property
    def fingerprint(self) -> str:
        """Of what is read and how, wherever the cache lies."""
        content = dataclasses.asdict(self)
        if not self.dirt:
            del content['dirt']
        if self.world:
            content['world'] = self.world.fingerprint
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_source(spec: SourceSpec, rejects: Rejects) -> Iterator[Document]:
    """The documents of one source, in an order that depends on nothing but the source.

    A malformed record is counted and recorded in `rejects`, and reading goes on.

    Raises:
        InputError: nothing at that path, no file of a known kind, an unknown dataset or split, or
            no document in all of it.
    """
    found = _documents(spec, rejects)
    yield from planted.plant(found, spec.dirt) if spec.dirt else found


def _documents(spec: SourceSpec, rejects: Rejects) -> Iterator[Document]:
    count = 0
    for raw in _open(spec):
        rejects.read(spec.name)
        reason = raw.error or _text_problem(raw, spec)
        if reason:
            rejects.reject(spec.name, raw.origin, reason, raw.start)
            continue
        fields = raw.fields
        yield Document(text=fields[spec.text_key], id=_record_id(spec, raw), source=spec.name,
                       license=_record_license(spec, fields), origin=raw.origin)
        count += 1
        if count == spec.max_documents:
            return
    if not count:
        raise InputError(f'source {spec.name!r} has no document: {spec.path!r} gave '
                         f'{rejects.describe(spec.name) or "no record at all"}; expected text '
                         f'under {spec.text_key!r}; check path and text_key')


def _open(spec: SourceSpec) -> Iterator[Raw]:
    if spec.path == 'python:stdlib':
        split = '+'.join(stdlib.SPLITS) if spec.split == 'train' else spec.split
        builder = stdlib.prepare(cache_dir())
        return readers.read_tfds(builder, split, spec.text_key)
    if spec.path.startswith('tfds:'):
        builder = readers.open_tfds(spec.path.removeprefix('tfds:'))
        return readers.read_tfds(builder, spec.split, spec.text_key)
    if spec.world:
        name = spec.path.removeprefix('world:')
        folder = publish.prepare(cache_dir(), spec.world, [name])
        builder = readers.open_tfds(str(publish.tfds_dir(folder, name)))
        return readers.read_tfds(builder, spec.split, spec.text_key)
    if spec.path.startswith('python:'):
        raise InputError(f"source {spec.name!r}: unknown path {spec.path!r}; expected "
                         "'python:stdlib'")
    return _read_files(spec)


def _read_files(spec: SourceSpec) -> Iterator[Raw]:
    root, files = list_files(spec.path)
    for file in files:
        read = readers.BY_SUFFIX[_suffix(file)]
        for raw in read(file, spec.text_key, spec.max_record_bytes):
            yield dataclasses.replace(raw, place=os.path.relpath(file, root) + raw.place)


def list_files(path: str) -> tuple[str, list[str]]:
    """(root that ids are relative to, sorted files of known kinds). Raises InputError if none."""
    known = ', '.join(readers.BY_SUFFIX)
    if os.path.isfile(path):
        root, found = os.path.dirname(path), [path]
    elif os.path.isdir(path):
        root, found = path, [str(file) for file in Path(path).rglob('*')
                             if file.is_file() and not _hidden(file.relative_to(path))]
    else:
        root = os.path.dirname(_before_wildcard(path))
        found = [file for file in glob.glob(path, recursive=True) if os.path.isfile(file)]
        if not found:
            raise InputError(f'no such file, folder or glob: {path!r} (from {os.getcwd()}); '
                             f'expected text in {known}; check the path')
    files = sorted(file for file in found if _suffix(file))
    if not files:
        raise InputError(f'{path!r} holds {len(found)} files, none of a known kind; expected '
                         f'{known}; convert or rename them')
    return root or '.', files


def _before_wildcard(path: str) -> str:
    positions = [path.find(char) for char in '*?[' if char in path]
    return path[:min(positions)] if positions else path


def _hidden(path: Path) -> bool:
    return any(part.startswith('.') for part in path.parts)


def _suffix(file: str) -> str:
    return next((suffix for suffix in readers.BY_SUFFIX if file.endswith(suffix)), '')


def _text_problem(raw: Raw, spec: SourceSpec) -> str:
    """Why a record cannot be a document, or ''."""
    if spec.text_key not in raw.fields:
        return f'no field {spec.text_key!r}'
    text = raw.fields[spec.text_key]
    if not isinstance(text, str):
        return f'field {spec.text_key!r} is {type(text).__name__}, not text'
    if not text.strip():
        return 'empty text'
    try:
        size = len(text.encode('utf-8'))
    except UnicodeEncodeError:
        return 'lone surrogate in text'
    if size > spec.max_record_bytes:
        return f'text longer than {spec.max_record_bytes} bytes'
    return ''


def _record_id(spec: SourceSpec, raw: Raw) -> str:
    own = raw.fields['id'] if 'id' in raw.fields else None
    if isinstance(own, (str, int)) and not isinstance(own, bool) and own != '':
        return str(own)
    place = f'{spec.name}\0{raw.place}'.encode('utf-8', errors='surrogateescape')
    return hashlib.blake2b(place, digest_size=16).hexdigest()


def _record_license(spec: SourceSpec, fields: dict) -> str:
    own = fields['license'] if 'license' in fields else None
    return own if isinstance(own, str) and own else spec.license
