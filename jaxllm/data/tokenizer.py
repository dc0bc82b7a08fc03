"""The tokenizer: one class for our BPE, byte and char vocabularies and imported tokenizer.json."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tiktoken
import tokenizers

from jaxllm.data import imported, vocabulary
from jaxllm.data.vocabulary import BOS, EOS, PAD, SPECIAL_TOKENS, encode_utf8
from jaxllm.errors import InputError

__all__ = ['SPECIAL_TOKENS', 'Tokenizer', 'byte_tokenizer', 'char_tokenizer', 'load', 'train_bpe']

JSON_NAME, SIDECAR_NAME, SIDECAR_FORMAT = 'tokenizer.json', 'jaxllm_tokenizer.json', 1


class Tokenizer:
    """Text <-> token ids. Text is only ever text: a special token that a user types is spelt out.

    For the kinds bpe, byte and char `decode_bytes(encode_bytes(b)) == b` for any bytes `b`.

    Attributes:
        kind: 'bpe', 'byte', 'char' (learnt here) or 'file' (imported tokenizer.json).
        vocab_size: number of ids; every id is below it.
        pad_id, bos_id, eos_id: may be equal in imported tokenizers.
        special: name -> id of every special token.
        name: for people, e.g. 'bpe-8192'.
        fingerprint: sha256 over everything that decides an id.
        spec: its tokenizer.json.
    """

    def __init__(self, spec: dict, kind: str, *, pad: str, bos: str, eos: str, name: str):
        """Args: spec: a tokenizer.json tree; pad, bos, eos: names of special tokens in it."""
        self.kind = kind
        self.name = name
        self.special = {token['content']: token['id'] for token in spec['added_tokens']
                        if token['special']}
        for role, token in (('eos', eos), ('bos', bos), ('pad', pad)):
            if token not in self.special:
                raise InputError(f'{role}={token!r} is not a special token of tokenizer {name!r}; '
                                 f'expected one of {sorted(self.special)[:40]}')
        self.pad, self.bos, self.eos = pad, bos, eos
        self.pad_id, self.bos_id, self.eos_id = (self.special[t] for t in (pad, bos, eos))
        self.spec = spec
        self._table = imported.token_table(spec)
        self.vocab_size = len(self._table)
        canonical = json.dumps([spec, kind, pad, bos, eos], sort_keys=True, ensure_ascii=True,
                               separators=(',', ':'))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    def __repr__(self):
        return (f'Tokenizer(name={self.name!r}, kind={self.kind!r}, vocab_size={self.vocab_size}, '
                f'fingerprint={self.fingerprint[:12]!r})')

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, without bos or eos."""
        return self._encode_array(text).tolist()

    def encode_piece(self, text: str, before: int | None) -> list[int]:
        """Ids of ordinary text within another.

        Args: before: id of the token in front of it, None at the beginning. SentencePiece
            vocabularies put a space before a text, some also behind a special token.
        """
        starts = before is None or (self._space_before == 'always'
                                    and before in self._special_names)
        if starts or self._space_before == 'never':
            return self.encode(text)
        encode_utf8(text)
        return self._unspaced.encode(text, add_special_tokens=False).ids

    def encode_with_special(self, text: str, before: int | None) -> list[int]:
        """Ids of a template's own text, in which the names of special tokens are these tokens."""
        ids = []
        for part in self._special_pattern.split(text):
            last = ids[-1] if ids else before
            ids += ([self.special[part]] if part in self.special
                    else self.encode_piece(part, last) if part else [])
        return ids

    def spell_out(self, text: str, joint: str) -> str:
        """Text with `joint` between the letters of every name of a special token."""
        while found := self._special_pattern.search(text):
            if len(found[0]) == 1:
                break
            text = self._special_pattern.sub(lambda name: joint.join(name[0]), text)
        return text

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of many texts, the same as `encode` gives, as int32 arrays."""
        if self.kind != 'file':
            return [self._encode_array(text) for text in texts]
        for text in texts:
            encode_utf8(text)
        encodings = self._portable.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, np.int32) for encoding in encodings]

    def encode_bytes(self, raw: bytes) -> list[int]:
        """Ids of any bytes: the valid UTF-8 in them as text, every other byte as its own token."""
        ids = []
        parts = re.split('([\udc80-\udcff]+)', raw.decode('utf-8', errors='surrogateescape'))
        for i, part in enumerate(parts):
            if i % 2 == 0:
                ids += self.encode(part) if part else []
            else:
                ids += [self._byte_id(b) for b in part.encode('utf-8', 'surrogateescape')]
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD. Special tokens vanish by default."""
        ids = self._checked(ids)
        if skip_special:
            ids = [i for i in ids if i not in self._special_names]
        if not self._exact:
            return self._portable.decode(ids, skip_special_tokens=skip_special)
        pieces = [self._special_names[i].encode() if i in self._special_names else self._table[i]
                  for i in ids]
        return b''.join(pieces).decode('utf-8', errors='replace')

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes that ids stand for; special tokens stand for none."""
        return b''.join(self._table[i] for i in self._checked(ids))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of text that one id stands for; none for a special token."""
        return self._table[self._checked([token_id])[0]]

    def byte_lengths(self) -> np.ndarray:
        """[V] int32, bytes of text per id; 0 for special tokens. Bits per byte divide by its sum.

        Exact for byte-level vocabularies; an imported SentencePiece one counts the space that it
        adds before a text.
        """
        return np.array([len(token) for token in self._table], np.int32)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json (loads in the `tokenizers` package) and a small sidecar."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sidecar = {'format': SIDECAR_FORMAT, 'kind': self.kind, 'name': self.name, 'pad': self.pad,
                   'bos': self.bos, 'eos': self.eos, 'vocab_size': self.vocab_size,
                   'fingerprint': self.fingerprint}
        for name, content in ((JSON_NAME, self.spec), (SIDECAR_NAME, sidecar)):
            partial = folder / f'.{name}.{os.getpid()}'
            partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + '\n', 'utf-8')
            os.replace(partial, folder / name)

    def _encode_array(self, text: str) -> np.ndarray:
        raw = encode_utf8(text)
        if self.kind == 'byte':
            return np.frombuffer(raw, np.uint8).astype(np.int32) + vocabulary.FIRST_BYTE_ID
        if self.kind == 'bpe':
            return self._bulk.encode_to_numpy(text, disallowed_special=()).astype(np.int32)
        if self.kind == 'char':
            return self._encode_chars(text)
        ids = self._portable.encode(text, add_special_tokens=False).ids
        return np.asarray(ids, np.int32)

    def _encode_chars(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode('utf-32-le'), '<u4')
        ids = self._char_ids[points]
        if ids.size and ids.min() < 0:
            known = [[i] if i >= 0 else [vocabulary.FIRST_BYTE_ID + b for b in char.encode()]
                     for i, char in zip(ids.tolist(), text, strict=True)]
            ids = np.array([i for group in known for i in group], np.int32)
        return ids

    def _checked(self, ids) -> list[int]:
        ids = ids.tolist() if isinstance(ids, np.ndarray) else [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise InputError(f'token id {i} is outside the vocabulary of tokenizer '
                                 f'{self.name!r}; expected 0 <= id < {self.vocab_size}; the model '
                                 'and the tokenizer do not belong together')
        return ids

    def _byte_id(self, byte: int) -> int:
        if byte not in self._byte_ids:
            raise InputError(f'byte 0x{byte:02X} has no token in tokenizer {self.name!r}; expected '
                             'a vocabulary with all 256 bytes; decode the text to UTF-8 first')
        return self._byte_ids[byte]

    @functools.cached_property
    def _byte_ids(self) -> dict[int, int]:
        # Asked for bytes outside UTF-8 only: these are 0x80 and up, where no character is one byte.
        return {token[0]: i for i, token in enumerate(self._table) if len(token) == 1}

    @functools.cached_property
    def _special_names(self) -> dict[int, str]:
        return {i: name for name, i in self.special.items()}

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern:
        names = sorted(self.special, key=len, reverse=True)
        return re.compile(f'({"|".join(map(re.escape, names))})')

    @functools.cached_property
    def _space_before(self) -> str:
        return imported.space_before(self.spec) if self.kind == 'file' else 'never'

    @functools.cached_property
    def _unspaced(self) -> tokenizers.Tokenizer:
        return imported.backend(imported.without_space(self.spec))

    @functools.cached_property
    def _exact(self) -> bool:
        return self.kind != 'file' or imported.is_byte_level(self.spec)

    @functools.cached_property
    def _portable(self) -> tokenizers.Tokenizer:
        return imported.backend(self.spec)

    @functools.cached_property
    def _bulk(self) -> tiktoken.Encoding:
        ranks = {token: i for i, token in enumerate(self._table)
                 if i >= vocabulary.FIRST_BYTE_ID}
        return tiktoken.Encoding(self.name, pat_str=vocabulary.SPLIT_PATTERN,
                                 mergeable_ranks=ranks, special_tokens={})

    @functools.cached_property
    def _char_ids(self) -> np.ndarray:
        ids = np.full(0x110000, -1, np.int32)
        for token, i in self.spec['model']['vocab'].items():
            if i >= vocabulary.BASE_SIZE:
                ids[ord(token)] = i
        return ids


def train_bpe(texts: Iterable[str], vocab_size: int, max_bytes: int = 100_000_000) -> Tokenizer:
    """Byte-level BPE with exactly `vocab_size` ids, trained on at most `max_bytes` of the texts.

    Deterministic: the same texts give the same fingerprint.
    Raises: InputError if the texts do not hold enough merges (it names the largest usable size).
    """
    return _ours(vocabulary.bpe_spec(texts, vocab_size, max_bytes), 'bpe')


def byte_tokenizer() -> Tokenizer:
    """A token per byte."""
    return _ours(vocabulary.byte_spec(), 'byte')


def char_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A token per character seen, at most `vocab_size` ids; rarer characters are spelt in bytes."""
    return _ours(vocabulary.char_spec(texts, vocab_size), 'char')


def load(path: str | os.PathLike, *, pad: str = '', bos: str = '', eos: str = '') -> Tokenizer:
    """A saved tokenizer folder, or any tokenizer.json (or a folder with one).

    Args:
        pad, bos, eos: names of special tokens of an imported file; '' takes them from a
            tokenizer_config.json beside it, or else guesses conventional names.
    Raises: InputError for a missing or damaged file, or where no end-of-text token is found.
    """
    path = Path(path)
    file = path / JSON_NAME if path.is_dir() else path
    spec = imported.read_json(file)
    sidecar_file = file.with_name(SIDECAR_NAME)
    if not sidecar_file.exists():
        spec = imported.prepare(spec, file)
        roles = imported.guess_roles(spec, file, pad=pad, bos=bos, eos=eos)
        return Tokenizer(spec, 'file', name=file.resolve().parent.name, **roles)
    sidecar = imported.read_json(sidecar_file)
    fields = {'format', 'kind', 'name', 'pad', 'bos', 'eos', 'vocab_size', 'fingerprint'}
    if sidecar.keys() != fields or sidecar['format'] != SIDECAR_FORMAT:
        raise InputError(f'{sidecar_file} is not a tokenizer sidecar of this version: got fields '
                         f'{sorted(sidecar)}, expected {sorted(fields)} with format='
                         f'{SIDECAR_FORMAT}; save the tokenizer again')
    imported.validate(spec, file)
    result = Tokenizer(spec, sidecar['kind'], name=sidecar['name'], pad=pad or sidecar['pad'],
                       bos=bos or sidecar['bos'], eos=eos or sidecar['eos'])
    if not (pad or bos or eos) and result.fingerprint != sidecar['fingerprint']:
        raise InputError(f'{file} does not match its sidecar: fingerprint '
                         f'{result.fingerprint[:12]}, expected {sidecar["fingerprint"][:12]}; one '
                         'of the two files was changed or damaged; restore or save them again')
    return result


def _ours(spec: dict, kind: str) -> Tokenizer:
    name = kind if kind == 'byte' else f'{kind}-{len(spec["model"]["vocab"])}'
    return Tokenizer(spec, kind, pad=PAD, bos=BOS, eos=EOS, name=name)
