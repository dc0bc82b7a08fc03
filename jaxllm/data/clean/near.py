"""Near copies in a stream of texts: MinHash, bands of it as keys, and a comparison of what meets.

Two texts are near copies if their sets of shingles are alike by J = |A & B| / |A | B| >= least.
Short texts are cut into 5-grams of characters and longer ones into 5-grams of words: a text of 14
words has 10 word 5-grams, of which one typo destroys half.

Ref: Broder 1997, On the resemblance and containment of documents; Leskovec et al., Mining of
Massive Datasets, chapter 3; the rule of the smallest number in a bucket is that of one group-by
without connected components: a text goes if it is a near copy of any earlier one, kept or not.
"""

import collections
import zlib

import numpy as np

from jaxllm.data.prepare import similar

_GRAM = 5
_PRIME = (1 << 31) - 1
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SKETCH = 512   # smallest hashes kept of a text to compare by; a text with fewer has them all
_MEMBERS = 32   # texts kept per bucket, the latest ones


class NearIndex:
    """The texts seen so far, at most `window` of them; the oldest are forgotten first.

    A pair of likeness J becomes a candidate with probability 1 - (1 - J^rows)^bands; candidates are
    compared by their sketches, which is exact for texts of up to 512 shingles.
    """

    def __init__(self, *, least, bands, rows, short_words, window):
        """Args: least: J of near copies. short_words: texts of fewer words are cut into
        characters. window: texts remembered."""
        self._least, self._bands, self._rows = least, bands, rows
        self._short, self._window = short_words, window
        rng = np.random.default_rng(0)
        self._a = rng.integers(1, _PRIME, bands * rows)[:, None]
        self._b = rng.integers(0, _PRIME, bands * rows)[:, None]
        self._buckets = collections.defaultdict(collections.deque)
        self._seen = collections.OrderedDict()  # number -> (name, sketch, keys)
        self._count = 0

    def add(self, text, name):
        """The name of an earlier text that `text` is a near copy of, or ''; remembers `text`."""
        hashes = self._shingles(text)
        keys = self._keys(hashes)
        sketch = np.sort((hashes * 1_103_515_245 + 12_345) % _PRIME)[:_SKETCH]
        met = sorted({number for key in keys if key in self._buckets
                      for number in self._buckets[key]})
        found = next((self._seen[number][0] for number in met
                      if likeness(self._seen[number][1], sketch) >= self._least), '')
        self._remember(name, sketch, keys)
        return found

    def _shingles(self, text):
        """Sorted distinct hashes below 2^31 - 1."""
        words = similar.normal(text).split()
        if len(words) < self._short:
            return similar.shingles(text)
        codes = np.array([zlib.crc32(word.encode()) for word in words], np.int64) % _PRIME
        value = np.zeros(len(codes) - _GRAM + 1, np.int64)
        for i in range(_GRAM):
            value = (value * 1_000_003 + codes[i:len(codes) - _GRAM + 1 + i]) % _PRIME
        return np.unique(value)

    def _keys(self, hashes):
        """One integer per band of the MinHash signature, different for different bands."""
        signature = ((self._a * hashes[None] + self._b) % _PRIME).min(axis=1).astype(np.uint64)
        table = signature.reshape(self._bands, self._rows)
        keys = np.arange(1, self._bands + 1, dtype=np.uint64)
        for row in range(self._rows):
            keys = (keys ^ table[:, row]) * _MIX
            keys ^= keys >> np.uint64(29)
        return keys.tolist()

    def _remember(self, name, sketch, keys):
        self._count += 1
        self._seen[self._count] = name, sketch, keys
        for key in keys:
            bucket = self._buckets[key]
            bucket.append(self._count)
            if len(bucket) > _MEMBERS:
                bucket.popleft()
        if len(self._seen) > self._window:
            number, (_, _, old) = self._seen.popitem(last=False)
            for key in old:
                bucket = self._buckets[key]
                if bucket and bucket[0] == number:
                    bucket.popleft()
                if not bucket:
                    del self._buckets[key]


def likeness(a, b):
    """Jaccard similarity of two sets from their smallest hashes (sorted, at most 512 of each).

    Of the smallest 512 of the union, the share that both have; exact where both are whole sets.
    """
    both = np.intersect1d(a, b, assume_unique=True)
    if len(a) < _SKETCH and len(b) < _SKETCH:
        return len(both) / (len(a) + len(b) - len(both))
    # Beyond the last of a full sketch nothing is known about its set.
    union = np.union1d(a, b)[:_SKETCH]
    return len(np.intersect1d(both, union, assume_unique=True)) / len(union)
