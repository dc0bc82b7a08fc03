"""Marks what a person wrote inside what a template renders, by private-use characters.

A template sees `Said`: a text that compares, searches and measures as it was written, and that
carries marks when it is put out. What is cut from it is marked as well, so that templates may trim
and split. A few ways lead around the marks (joining a list in Python, `%`): what comes out there
counts as the template's own text, but the names of special tokens in it are spelt out all the same,
because `Marker` has put a mark between their letters before.
"""

import dataclasses
import json
import re

from jaxllm.errors import InputError

ROLES = ('system', 'user', 'assistant', 'tool')
_FIRST, _LAST = '\U000f0000', '\U000ffffd'
_PRIVATE = re.compile(f'[{_FIRST}-{_LAST}]')
_EDGES = re.compile(rf'^[\s{_FIRST}-{_LAST}]+|[\s{_FIRST}-{_LAST}]+$')
_NOT_ASCII = re.compile(f'[^\0-\x7f{_FIRST}-{_LAST}]')


class Said(str):
    """A text that a person wrote; `str()` of it has marks around it."""

    def __new__(cls, text, opening, closing):
        self = super().__new__(cls, text)
        self._opening, self._closing = opening, closing
        self._marked = f'{opening}{text}{closing}' if text else ''
        return self

    def __str__(self):
        return self._marked

    def __format__(self, how):
        return format(self._marked, how)

    def __add__(self, other):
        return self._marked + str(other) if isinstance(other, str) else NotImplemented

    def __radd__(self, other):
        return str(other) + self._marked if isinstance(other, str) else NotImplemented

    def __iter__(self):
        return map(self._part, super().__iter__())

    def _part(self, value):
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._part, value))
        return Said(value, self._opening, self._closing)


def _part_of(name):
    plain = getattr(str, name)
    return lambda self, *args, **options: self._part(plain(self, *args, **options))


for _name in ('__getitem__', 'strip', 'lstrip', 'rstrip', 'removeprefix', 'removesuffix', 'split',
              'rsplit', 'splitlines', 'partition', 'rpartition', 'replace', 'lower', 'upper',
              'capitalize', 'title'):
    setattr(Said, _name, _part_of(_name))


@dataclasses.dataclass(frozen=True)
class Marks:
    """Characters that occur in no text of a conversation and not in its template.

    begin, end: around what is learned. opens: role -> mark before a text of it. close: behind it.
    joint: between the letters of a special token's name that somebody wrote.
    """
    begin: str
    end: str
    opens: dict
    close: str
    joint: str

    @classmethod
    def unused(cls, *values):
        """Marks that do not occur in JSON values."""
        used = set(_PRIVATE.findall(json.dumps(values, ensure_ascii=False, default=str)))
        free = (chr(code) for code in range(ord(_FIRST), ord(_LAST) + 1) if chr(code) not in used)
        found = [char for char, _ in zip(free, range(4 + len(ROLES)), strict=False)]
        if len(found) < 4 + len(ROLES):
            raise InputError('a conversation uses up the private-use characters of Unicode; '
                             'remove them')
        begin, end, close, joint, *opens = found
        return cls(begin, end, dict(zip(ROLES, opens, strict=True)), close, joint)

    def message(self, message, tokenizer):
        """A message whose texts, but for its role, are Said. Names of fields are no text."""
        said = lambda text: Said(tokenizer.spell_out(text, self.joint),
                                 self.opens[message['role']], self.close)
        return {key: message[key] if key == 'role' else self._walk(message[key], said, tokenizer)
                for key in message}

    def spelt(self, value, tokenizer):
        """A JSON value in which names of special tokens are spelt out."""
        return self._walk(value, lambda text: tokenizer.spell_out(text, self.joint), tokenizer)

    def _walk(self, value, said, tokenizer):
        if isinstance(value, dict):
            return {tokenizer.spell_out(str(key), self.joint): self._walk(item, said, tokenizer)
                    for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._walk(item, said, tokenizer) for item in value]
        return said(value) if isinstance(value, str) else value


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """The filter `tojson` as Transformers has it: HTML is not escaped."""
    text = json.dumps(_with_marks(value), ensure_ascii=False, indent=indent, separators=separators,
                      sort_keys=sort_keys)
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) if ensure_ascii else text


def _with_marks(value):
    if isinstance(value, dict):
        return {key: _with_marks(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_marks(item) for item in value]
    return str(value) if isinstance(value, Said) else value


def trim(value, chars=None):
    """The filter `trim`; of what a macro gives, marks at the ends stay and white space goes."""
    if isinstance(value, Said) or chars is not None:
        return value.strip(chars)
    return _EDGES.sub(lambda found: ''.join(_PRIVATE.findall(found[0])), str(value))
