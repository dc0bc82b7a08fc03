"""Does an evaluation set overlap with the text that a model was trained on? By id, and by words.

Words are compared: lower-cased runs of letters and digits after Unicode normalisation (NFKC). An
item overlaps with a document that contains any WORDS words of it in a row, or, if it is shorter and
has at least SHORTEST words, all of it. Still shorter items are compared by id alone.

Ref: Brown et al. 2020 (arXiv 2005.14165), appendix C, for the 13 words.
"""

import dataclasses
import itertools
import json
import re
import unicodedata

import numpy as np

from jaxllm.errors import InputError

WORDS = 13
SHORTEST = 8
_WORD = re.compile(r'[^\W_]+')
_BATCH = 1 << 19     # words of training text in memory at once, or one document
_KEPT = 3            # documents that are named for an item
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class Overlap:
    """One item that is in the training text.

    how: 'id', or the number of words in a row, as '13 words'.
    documents: ids of the first few documents; num_documents: how many there are.
    text: the words that the first of them shares with the item, normalised; '' for an id.
    """
    item: str
    how: str
    documents: tuple
    num_documents: int
    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """overlaps: in the order of the items, at most one by id and one by words for each.
    num_items; num_short: items too short to compare by words; num_bytes: of training text read."""
    overlaps: tuple
    num_items: int
    num_short: int
    num_bytes: int

    @property
    def items(self):
        """Ids of the items that overlap, each once."""
        return tuple(dict.fromkeys(overlap.item for overlap in self.overlaps))

    def warning(self, file='overlap.jsonl'):
        """One line to warn with; '' if nothing overlaps."""
        if not self.overlaps:
            return ''
        return (f'{len(self.items):,} of {self.num_items:,} evaluation items overlap with the '
                f'training data; their ids are in {file}')

    def lines(self):
        """The overlaps as JSON lines."""
        return ''.join(json.dumps(dataclasses.asdict(overlap), ensure_ascii=False) + '\n'
                       for overlap in self.overlaps)


def find_overlap(items, splits, tokenizer, *, n=WORDS, shortest=SHORTEST):
    """Reads training text once, in bounded memory, and finds every item that is in it.

    Hashes only select what is compared word by word, so that nothing is found by accident.

    Args:
      items: {id: text} of the evaluation set; with an answer, the prompt and the answer.
      splits: StoreSplits of the training data.
      tokenizer: that of the splits; has token_bytes(id).
      n: words in a row.
      shortest: the least words of a shorter item that is looked for as a whole.

    Returns:
      Report.

    Raises:
      InputError: n or shortest that cannot be, or a split of another tokenizer.
    """
    if not 1 <= shortest <= n:
        raise InputError(f'shortest={shortest} and n={n}; expected 1 <= shortest <= n')
    index = _Index(items, n, shortest)
    places = {str(item): i for i, item in enumerate(items)}
    table = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    by_id, by_words = {}, {}
    num_bytes = 0
    for split in splits:
        if split.tokenizer_fingerprint != tokenizer.fingerprint:
            raise InputError(f'{split.folder} was built with another tokenizer; give the one of '
                             'the run that trained on it')
        num_bytes += int(split.text_bytes.sum())
        for words, owners, names in _batches(split, table, index.vocabulary):
            for name in names:
                if name in places:
                    by_id.setdefault(places[name], _Found('id', '')).add(name)
            for item, word, text in index.find(words):
                how = f'{len(text)} words'
                found = by_words.setdefault(item, _Found(how, ' '.join(text)))
                found.add(names[owners[word]])
    ids = list(places)
    overlaps = [found.overlap(ids[i]) for i in range(len(ids))
                for found in (by_id.get(i), by_words.get(i)) if found]
    return Report(tuple(overlaps), len(ids), index.num_short, num_bytes)


def words_of(text):
    """The words that are compared."""
    if not text.isascii():
        text = unicodedata.normalize('NFKC', text)
    return _WORD.findall(text.lower())


class _Found:
    """The documents found for an item."""

    def __init__(self, how, text):
        self.how, self.text = how, text
        self.documents, self.last, self.count = [], None, 0

    def add(self, document):
        """Documents come one after another, so that the last one is enough to count each once."""
        if document != self.last:
            self.last = document
            self.count += 1
            if len(self.documents) < _KEPT:
                self.documents.append(document)

    def overlap(self, item):
        return Overlap(item, self.how, tuple(self.documents), self.count, self.text)


class _Index:
    """The runs of words of all items: {length: (sorted hashes, items, first words)}.

    vocabulary: {word of some item: 1, 2, ...}; all other words are 0, which is in no run.
    """

    def __init__(self, items, n, shortest):
        self.vocabulary, self.num_short = {}, 0
        runs, codes = {}, []
        for i, text in enumerate(items.values()):
            words = words_of(text)
            length = min(n, len(words))
            if length < shortest:
                self.num_short += 1
                continue
            start = len(codes)
            codes += [self.vocabulary.setdefault(word, len(self.vocabulary) + 1) for word in words]
            runs.setdefault(length, []).extend(
                (i, start + j) for j in range(len(words) - length + 1))
        self._codes = np.array(codes, np.int64)
        self._words = ['', *self.vocabulary]
        self._runs = {}
        for length, pairs in sorted(runs.items()):
            item, first = np.array(pairs, np.int64).T
            hashes = _hashes(self._codes, [length])[length][first]
            order = np.argsort(hashes, kind='stable')
            self._runs[length] = hashes[order], item[order], first[order]

    def find(self, words):
        """Yields (item, index of the first word, the words), an item once per run of `words`."""
        zeros = np.flatnonzero(words == 0)
        if not len(words) or not self._runs:
            return
        # To the next word that no item has.
        ends = np.append(zeros, len(words))
        room = ends[np.searchsorted(zeros, np.arange(len(words)))] - np.arange(len(words))
        tables = _hashes(words, list(self._runs))
        hits = []
        for length, (hashes, item, first) in self._runs.items():
            at = np.flatnonzero(room >= length)
            mine = tables[length][at]
            low = np.searchsorted(hashes, mine)
            known = low < len(hashes)
            known[known] = hashes[low[known]] == mine[known]
            at, low = at[known], low[known]
            many = np.searchsorted(hashes, mine[known], side='right') - low
            at = np.repeat(at, many)
            entry = np.arange(len(at)) - np.repeat(np.cumsum(many) - many - low, many)
            span = np.arange(length)[None]
            same = np.all(words[at[:, None] + span]
                          == self._codes[first[entry][:, None] + span], axis=1)
            hits += zip(at[same].tolist(), item[entry[same]].tolist(),
                        itertools.repeat(length), strict=False)
        for at, item, length in sorted(hits):
            yield item, at, [self._words[code] for code in words[at:at + length]]


def _hashes(codes, lengths):
    """{length: uint64 hash of the `length` codes from each place on}; past the end, of zeros.

    hash = sum_j code_j * factor^j mod 2^64, by doubling.
    """
    size, power, factor = len(codes), 1, int(_FACTOR)
    block = codes.astype(np.uint64) * _FACTOR
    found = {length: (np.zeros(size, np.uint64), 0, 1) for length in lengths}
    while power <= max(lengths):
        for length, (total, done, scale) in found.items():
            if length & power:
                total = total + _shifted(block, done) * np.uint64(scale)
                found[length] = total, done + power, scale * factor % 2**64
        block = block + _shifted(block, power) * np.uint64(factor)
        power, factor = power * 2, factor * factor % 2**64
    return {length: total for length, (total, _, _) in found.items()}


def _shifted(x, by):
    return np.concatenate([x[by:], np.zeros(min(by, len(x)), x.dtype)])


def _batches(split, table, vocabulary):
    """Yields (words as codes, 0 behind each document; document of each word; ids of documents)."""
    codes, sizes, names = [], [], []
    with open(split.folder / f'{split.name}.documents.jsonl', encoding='utf-8') as lines:
        for number, line in enumerate(lines):
            names.append(json.loads(line)['id'])
            raw = b''.join(map(table.__getitem__, split.document(number).tolist()))
            words = words_of(raw.decode('utf-8', errors='replace'))
            codes.extend(map(vocabulary.get, words, itertools.repeat(0)))
            codes.append(0)
            sizes.append(len(words) + 1)
            if len(codes) >= _BATCH:
                yield np.array(codes, np.int64), np.repeat(np.arange(len(sizes)), sizes), names
                codes, sizes, names = [], [], []
    if names:
        yield np.array(codes, np.int64), np.repeat(np.arange(len(sizes)), sizes), names
