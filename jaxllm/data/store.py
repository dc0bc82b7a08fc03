"""The token store: tokenised documents as flat arrays on disk, read back as memory maps.

A store is one folder:

    manifest.json               what it is, where it came from, size and sha256 of every file
    token_bytes.bin             int32 [V], bytes of text per token id (0 for special tokens)
    {train,validation}.tokens.bin      uint16 or uint32, documents one after another
    {train,validation}.offsets.bin     int64 [documents + 1], document d is tokens[o[d]:o[d + 1]]
    {train,validation}.text_bytes.bin  int64 [documents], UTF-8 bytes of each document
    {train,validation}.documents.jsonl id, source, license and origin of each document
    {train,validation}.weights.bin     uint8 [tokens], loss weight of each; of conversations only

Each document is `[BOS] text tokens [EOS]`, or a conversation as its template renders it. The
numbers are little-endian.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil

import numpy as np

from jaxllm.data.store_writer import (
    FORMAT, SPLITS, VERSION, sha256, write_files, write_synced)
from jaxllm.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class StoreSplit:
    """One split of a token store, memory-mapped.

    Attributes:
        name: 'train' or 'validation'.
        folder: the store.
        tokens: uint16 or uint32 [tokens], all documents one after another.
        offsets: int64 [documents + 1].
        text_bytes: int64 [documents], UTF-8 bytes of text.
        weights: uint8 [tokens], loss weight of each token as a target; None: all 1.
        token_bytes_V: int32 [V], bytes of text per token id.
        pad_id, bos_id, eos_id: token ids.
        special: name -> id of every special token.
        tokenizer_fingerprint: of the tokenizer that made the ids.
        fingerprint: of the content of the whole store and the name of the split.
    """

    name: str
    folder: pathlib.Path
    tokens: np.ndarray
    offsets: np.ndarray
    text_bytes: np.ndarray
    token_bytes_V: np.ndarray
    pad_id: int
    bos_id: int
    eos_id: int
    special: dict
    tokenizer_fingerprint: str
    fingerprint: str
    weights: np.ndarray | None = None

    @property
    def num_documents(self):
        return len(self.offsets) - 1

    @property
    def num_tokens(self):
        return len(self.tokens)

    @functools.cached_property
    def lengths(self):
        """int64 [documents], tokens per document, BOS and EOS included."""
        return np.diff(self.offsets)

    def document(self, index):
        """Returns the tokens of one document, [BOS] and [EOS] included."""
        return self.tokens[self.offsets[index]:self.offsets[index + 1]]

    def describe(self, index):
        """Returns id, source, license and origin of one document; reads the file up to it."""
        with open(self.folder / f'{self.name}.documents.jsonl', encoding='utf-8') as lines:
            return json.loads(next(itertools.islice(lines, int(index), None)))


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """A complete token store. `manifest` is the parsed manifest.json."""

    folder: pathlib.Path
    manifest: dict
    train: StoreSplit
    validation: StoreSplit

    @property
    def fingerprint(self):
        return self.manifest['fingerprint']

    @classmethod
    def open(cls, folder, verify=True):
        """Opens a store and checks that it is whole.

        Args:
            folder: what `write_store` wrote.
            verify: compare the sha256 of every file; otherwise only the sizes.

        Returns:
            A TokenStore with memory-mapped splits.

        Raises:
            InputError: no store there, a foreign format, or a missing, truncated or changed file.
        """
        folder = pathlib.Path(folder)
        manifest = _read_manifest(folder)
        for name, want in manifest['files'].items():
            _check_file(folder, name, want, verify)
        token_bytes_V = np.fromfile(folder / 'token_bytes.bin', '<i4')
        splits = {}
        for split in SPLITS:
            splits[split] = StoreSplit(
                name=split, folder=folder,
                tokens=_memory_map(folder / f'{split}.tokens.bin', manifest['dtype']),
                offsets=_memory_map(folder / f'{split}.offsets.bin', '<i8'),
                text_bytes=_memory_map(folder / f'{split}.text_bytes.bin', '<i8'),
                token_bytes_V=token_bytes_V, pad_id=manifest['pad_id'],
                bos_id=manifest['bos_id'], eos_id=manifest['eos_id'],
                special=manifest['special'],
                tokenizer_fingerprint=manifest['tokenizer_fingerprint'],
                fingerprint=f"{manifest['fingerprint']}/{split}",
                weights=(_memory_map(folder / f'{split}.weights.bin', 'u1')
                         if f'{split}.weights.bin' in manifest['files'] else None))
        return cls(folder=folder, manifest=manifest, **splits)


def write_store(documents, tokenizer, folder, *, holdout_share, source_fingerprint,
                batch_documents=512, batch_characters=4 << 20, encode=None):
    """Tokenises documents into a store, in one pass and in bounded memory.

    A document goes to validation when blake2b(text) / 2**64 < holdout_share, so that exact
    duplicates fall on the same side. The store appears under its name only when it is complete:
    it is written to a hidden folder beside it and renamed. One builder works at a time.

    Args:
        documents: iterable of `Document` (text, id, source, license, origin). Documents without
            text are skipped and counted in the manifest.
        tokenizer: a `Tokenizer`.
        folder: must not exist.
        holdout_share: expected share of documents for validation, in [0, 1); 0 means that no
            validation split is wanted.
        source_fingerprint: identifies the data and how it was selected.
        batch_documents: documents encoded at once, at most.
        batch_characters: characters encoded at once, at most (a longer document is encoded alone).
        encode: encode(documents) -> [(ids, loss weights)] of a batch, for a store with weights;
            default: `[BOS] text tokens [EOS]`, without.

    Raises:
        InputError: no documents, an empty split, a bad holdout_share, text that is not valid
            Unicode, or the folder exists.
    """
    folder = pathlib.Path(folder)
    if not 0 <= holdout_share < 1:
        raise InputError(f'holdout_share={holdout_share} must be at least 0 and less than 1; '
                         'use for example 0.01 to hold out 1% of the documents')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_builder(folder):
        if folder.exists():
            raise InputError(f'{folder} exists already, expected a new folder; open it with '
                             'TokenStore.open, or delete it to build it again')
        building = folder.parent / f'.{folder.name}.building'
        shutil.rmtree(building, ignore_errors=True)  # Left over by a build that was killed.
        building.mkdir()
        try:
            manifest = write_files(documents, tokenizer, building, holdout_share,
                                   batch_documents, batch_characters, encode)
            manifest['source_fingerprint'] = source_fingerprint
            manifest['fingerprint'] = _manifest_fingerprint(manifest)
            write_synced(building / 'manifest.json',
                         json.dumps(manifest, indent=1, sort_keys=True).encode())
            os.rename(building, folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise


@contextlib.contextmanager
def _only_builder(folder):
    """Waits until no other process builds this store; the kernel frees the lock of a dead one."""
    with open(folder.parent / f'.{folder.name}.lock', 'wb') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _manifest_fingerprint(manifest):
    content = {key: value for key, value in manifest.items() if key != 'fingerprint'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _read_manifest(folder):
    path = folder / 'manifest.json'
    if not path.is_file():
        raise InputError(f'{folder} is not a token store: it has no manifest.json; '
                         'build it with the tokenize step')
    try:
        manifest = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise InputError(f'{path} is not JSON ({error}); {_rebuild(folder)}') from error
    is_dict = isinstance(manifest, dict)
    found = (manifest.get('format'), manifest.get('version')) if is_dict else (None, None)
    if found != (FORMAT, VERSION):
        raise InputError(f'{path} has format and version {found}, expected {(FORMAT, VERSION)}; '
                         f'{_rebuild(folder)}')
    if manifest.get('fingerprint') != _manifest_fingerprint(manifest):
        raise InputError(f'{path} was changed after the store was built: its fingerprint does '
                         f'not match its content; {_rebuild(folder)}')
    return manifest


def _check_file(folder, name, want, verify):
    path = folder / name
    if not path.is_file():
        raise InputError(f'{path} is missing; {_rebuild(folder)}')
    size = path.stat().st_size
    if size != want['bytes']:
        raise InputError(f"{path} has {size} bytes, expected {want['bytes']}; {_rebuild(folder)}")
    if verify and sha256(path) != want['sha256']:
        raise InputError(f'{path} is corrupt: its sha256 is not the one in manifest.json; '
                         f'{_rebuild(folder)}')


def _rebuild(folder):
    return f'delete {folder} and run the tokenize step again'


def _memory_map(path, dtype):
    if path.stat().st_size == 0:  # An empty file cannot be mapped.
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode='r'))
