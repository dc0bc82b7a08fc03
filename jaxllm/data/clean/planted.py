"""Dirt planted into clean text, to see what the filters find: copies, near copies, spam, unsafe
and broken texts. Each piece says in its id what it is; nothing else in the pipeline reads that.

What is planted depends on the ids and texts of the documents alone. Spam and unsafe texts are those
of the synthetic world (jaxllm.world.junk_text): offers of nothing and recipes for hazards that do
not exist. The other kinds are made from the documents around them.
"""

import collections
import dataclasses
import hashlib

from jaxllm.world import junk_text
from jaxllm.world.hazards import HAZARDS

KINDS = ('copy', 'near_copy', 'spam', 'unsafe', 'broken')
_FARTHEST = 200  # documents between an original and its copy, at most
_NOTES = ('Update: ', 'Again: ', 'Note: ')
_ENDS = (' (repost)', ' [edited]', ' (copy)')


def plant(documents, share):
    """The documents, and among them planted ones: `share` of all that come out, on average.

    Copies and near copies come up to 200 documents after what they are copies of. The id of a
    planted document is 'planted-KIND-' and the id of the document that it was made from or that
    it follows.

    Args:
      documents: with id, text and origin (records.Document).
      share: of planted ones, at least 0 and below 1.
    """
    chance = share / (1 - share)
    later, count = collections.defaultdict(list), 0
    for document in documents:
        count += 1
        yield document
        yield from later.pop(count, ())
        noise = _noise(document.id)
        if noise % 1_000_003 < chance * 1_000_003:
            kind = KINDS[noise // 1_000_003 % len(KINDS)]
            piece = dataclasses.replace(
                document, id=f'planted-{kind}-{document.id}',
                origin=f'planted ({kind}) at {document.origin}',
                text=_text(kind, document.text, noise >> 32, count))
            if kind in ('copy', 'near_copy'):
                later[count + 1 + noise % _FARTHEST].append(piece)
            else:
                yield piece
    for due in sorted(later):
        yield from later[due]


def kind_of(document_id):
    """Which of KINDS a document is, '' if it was not planted."""
    return next((kind for kind in KINDS if document_id.startswith(f'planted-{kind}-')), '')


def _noise(name):
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=12).digest(), 'big')


def _text(kind, text, noise, serial):
    if kind == 'copy':
        return text
    if kind == 'near_copy':
        return _edited(text, noise)
    if kind == 'spam':
        return junk_text.spam(serial, noise % (1 << 32))
    if kind == 'unsafe':
        return junk_text.how_to(noise % len(HAZARDS), True, noise // len(HAZARDS) % 216)[1]
    return _BREAKS[noise % len(_BREAKS)](text, noise // len(_BREAKS))


def _edited(text, noise):
    """Something added at one end, and in longer texts one word left out."""
    words = text.split(' ')
    if len(words) > 20:
        del words[noise % len(words)]
    text, mark = ' '.join(words), noise // 7 % 3
    return _NOTES[mark] + text if noise % 2 else text.rstrip('\n') + _ENDS[mark]


def _misread(text, noise):
    """As if typographic quotes around many words had been decoded wrongly."""
    return ' '.join(f'â€œ{word}â€\u009d' if (noise + i) % 3 == 0 else word
                    for i, word in enumerate(text.split(' ')[:80]))


def _stuck(text, noise):
    """One stretch of words over and over."""
    words = text.split()
    start = noise % max(len(words) - 4, 1)
    return ' '.join(words[start:start + 4] * (6 + noise % 9))


def _spaced(text, noise):
    """A space after each letter, as from a bad scan."""
    return ' '.join(text.split()[0][:4] + ''.join(text.split())[:60 + noise % 200])


def _glued(text, noise):
    """No spaces, as from a bad conversion."""
    words = text.split()
    size = 6 + noise % 5
    return ' '.join(''.join(''.join(filter(str.isalpha, word)) for word in words[i:i + size])
                    for i in range(0, min(len(words), 120), size)) or 'x' * 40


def _symbols(text, noise):
    """Rules, numbers and points where text was: the rest of a table or of a binary file."""
    return ' '.join(f'{noise // (i + 1) % 997} |{"=-~#"[(noise + i) % 4] * 3} {word[:2]}'
                    for i, word in enumerate(text.split()[:60]))


_BREAKS = _misread, _stuck, _spaced, _glued, _symbols
