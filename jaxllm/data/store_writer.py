"""Writes the files of a token store; `store.write_store` is the way in."""

import hashlib
import json
import os

import numpy as np

from jaxllm.errors import InputError

FORMAT = 'jaxllm-token-store'
VERSION = 1
SPLITS = ('train', 'validation')


class _SplitWriter:
    """Appends the documents of one split to its files."""

    def __init__(self, folder, split, dtype, weighted):
        self.dtype = dtype
        self.documents = self.num_tokens = self.num_text_bytes = 0
        self.by_source, self.by_license = {}, {}
        self.files = {name: open(folder / f'{split}.{name}', 'wb') for name in (
            'tokens.bin', 'offsets.bin', 'text_bytes.bin', 'documents.jsonl',
            *(('weights.bin',) if weighted else ()))}
        self.files['offsets.bin'].write(np.zeros(1, '<i8').tobytes())

    def add(self, document, text_bytes, ids, weights):
        self.documents += 1
        self.num_tokens += len(ids)
        self.num_text_bytes += text_bytes
        for counts, key in ((self.by_source, document.source),
                            (self.by_license, document.license)):
            count = counts.setdefault(str(key), {'documents': 0, 'tokens': 0})
            count['documents'] += 1
            count['tokens'] += len(ids)
        self.files['tokens.bin'].write(ids.astype(self.dtype).tobytes())
        if 'weights.bin' in self.files:
            self.files['weights.bin'].write(np.asarray(weights, np.uint8).tobytes())
        self.files['offsets.bin'].write(self.num_tokens.to_bytes(8, 'little'))
        self.files['text_bytes.bin'].write(text_bytes.to_bytes(8, 'little'))
        self.files['documents.jsonl'].write(json.dumps({
            'id': document.id, 'source': document.source, 'license': document.license,
            'origin': document.origin}).encode() + b'\n')

    def close(self):
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def counts(self):
        return {'documents': self.documents, 'tokens': self.num_tokens,
                'text_bytes': self.num_text_bytes, 'by_source': self.by_source,
                'by_license': self.by_license}


def write_files(documents, tokenizer, folder, holdout_share, batch_documents, batch_characters,
                encode):
    """Writes everything but the manifest; returns the manifest without its fingerprints."""
    dtype = '<u2' if tokenizer.vocab_size <= 1 << 16 else '<u4'
    writers = {split: _SplitWriter(folder, split, dtype, encode is not None) for split in SPLITS}
    encode = encode or (lambda batch: _text_ids(batch, tokenizer))
    skipped, lowest = 0, 1.0
    try:
        for batch in _batches(documents, batch_documents, batch_characters):
            filled = [document for document in batch if document.text]
            skipped += len(batch) - len(filled)
            utf8 = [_utf8(document) for document in filled]
            for document, text, (ids, weights) in zip(filled, utf8, encode(filled), strict=True):
                share = _hash_share(text)
                lowest = min(lowest, share)
                split = 'validation' if share < holdout_share else 'train'
                writers[split].add(document, len(text), _checked(ids, tokenizer), weights)
    finally:
        for writer in writers.values():
            writer.close()
    train, validation = writers['train'].documents, writers['validation'].documents
    if train + validation == 0:
        raise InputError(f'no documents with text to tokenise ({skipped} without text), expected '
                         'at least one; check the source and the filters of the data')
    if holdout_share > 0 and validation == 0:
        raise InputError(
            f'holdout_share={holdout_share} holds out none of {train} documents; use at least '
            f'{lowest * 1.0001 + 1e-9:.6f}, add documents, or use 0 for no validation split')
    if train == 0:
        raise InputError(f'holdout_share={holdout_share} leaves no training document of '
                         f'{validation}; use a smaller share or add documents')
    write_synced(folder / 'token_bytes.bin', tokenizer.byte_lengths().astype('<i4').tobytes())
    return {
        'format': FORMAT, 'version': VERSION, 'dtype': dtype,
        'vocab_size': tokenizer.vocab_size, 'pad_id': tokenizer.pad_id,
        'bos_id': tokenizer.bos_id, 'eos_id': tokenizer.eos_id,
        'special': dict(tokenizer.special), 'tokenizer_fingerprint': tokenizer.fingerprint,
        'holdout_share': holdout_share, 'skipped_without_text': skipped,
        'splits': {split: writer.counts() for split, writer in writers.items()},
        'files': {path.name: {'bytes': path.stat().st_size, 'sha256': sha256(path)}
                  for path in sorted(folder.iterdir())},
    }


def _batches(documents, max_documents, max_characters):
    batch, characters = [], 0
    for document in documents:
        if batch and (len(batch) == max_documents
                      or characters + len(document.text) > max_characters):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += len(document.text)
    if batch:
        yield batch


def _text_ids(documents, tokenizer):
    """([BOS] ids [EOS], no weights) of each document."""
    found = tokenizer.encode_batch([document.text for document in documents])
    return [(np.concatenate([[tokenizer.bos_id], ids, [tokenizer.eos_id]]), None) for ids in found]


def _checked(ids, tokenizer):
    """As int64; a wrong id would wrap around silently in a smaller dtype."""
    ids = np.asarray(ids, np.int64)
    if ids.min() < 0 or ids.max() >= tokenizer.vocab_size:
        raise ValueError(f'the tokenizer gave ids from {ids.min()} to {ids.max()}, expected '
                         f'0 <= id < vocab_size={tokenizer.vocab_size}')
    return ids


def _utf8(document):
    try:
        return document.text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'the text of document {document.id} is not valid Unicode ({error}); '
                         'remove its lone surrogates, which JSON escapes can create') from error


def _hash_share(text):
    """Maps the bytes of a text to a number in [0, 1) that depends on nothing else."""
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, 'big') / 2**64


def write_synced(path, content):
    with open(path, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sha256(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
