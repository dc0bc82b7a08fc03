"""Texts that are the same or nearly so: normal forms, character shingles, MinHash."""

import collections
import re
import unicodedata

import numpy as np

_SHINGLE, _BANDS, _ROWS = 5, 16, 4
_PRIME = (1 << 31) - 1


def normal(text):
    """Letters and digits in lower case with single spaces: what two texts are compared by."""
    text = unicodedata.normalize('NFKC', text).casefold()
    return ' '.join(re.findall(r'\w+', text))


def shingles(text):
    """Sorted distinct hashes of the character 5-grams of a text's normal form."""
    codes = np.frombuffer(normal(text).encode('utf-32-le'), '<u4').astype(np.int64)
    if len(codes) <= _SHINGLE:
        codes = np.pad(codes, (0, _SHINGLE + 1 - len(codes)))
    value = np.zeros(len(codes) - _SHINGLE + 1, np.int64)
    for i in range(_SHINGLE):
        value = (value * 1_000_003 + codes[i:len(codes) - _SHINGLE + 1 + i]) % _PRIME
    return np.unique(value)


def jaccard(a, b):
    """|A and B| / |A or B| of two sorted arrays of distinct numbers."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def near_pairs(texts, least):
    """[(i, j)], i < j, of texts whose shingles are alike by at least `least` (Jaccard).

    Candidates share a band of a MinHash signature (16 bands of 4: a pair at 0.8 is one with
    probability 0.9998); each is then compared exactly. Ref: Broder 1997; Leskovec et al., Mining of
    Massive Datasets, chapter 3.
    """
    sets = [shingles(text) for text in texts]
    rng = np.random.default_rng(0)
    a = rng.integers(1, _PRIME, _BANDS * _ROWS)[:, None]
    b = rng.integers(0, _PRIME, _BANDS * _ROWS)[:, None]
    buckets = collections.defaultdict(list)
    for i, found in enumerate(sets):
        signature = ((a * found[None] + b) % _PRIME).min(axis=1)
        for band in range(_BANDS):
            buckets[band, signature[band * _ROWS:(band + 1) * _ROWS].tobytes()].append(i)
    pairs = {(i, j) for members in buckets.values() if len(members) > 1
             for at, i in enumerate(members) for j in members[at + 1:at + 50]}
    return sorted((i, j) for i, j in pairs if jaccard(sets[i], sets[j]) >= least)


def groups(count, pairs):
    """For each of `count` items the smallest item that it is linked to, directly or not."""
    root = list(range(count))

    def find(i):
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i
    for i, j in pairs:
        low, high = sorted((find(i), find(j)))
        root[high] = low
    return [find(i) for i in range(count)]
