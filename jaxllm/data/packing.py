"""Best-fit-decreasing packing of documents into rows, planned once for a sequence length.

A row holds T = L + 1 tokens, so that its inputs and targets are the row without its last and
without its first token. Only documents that do not fit a row are cut. The pieces of a cut
document overlap by one token (the last target of one piece is the first input of the next), so
that every token but the first of a document is a target exactly once.
"""

import dataclasses

import numpy as np

from jaxllm.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class PackingPlan:
    """Which pieces of which documents make up each row.

    Row r holds pieces row_offsets[r] to row_offsets[r + 1]. Piece p is the tokens
    [starts[p], starts[p] + lengths[p]) of document documents[p].

    Attributes:
        seq_len: L; a row has L + 1 tokens.
        row_offsets: int64 [rows + 1].
        documents, starts, lengths: int64 [pieces], rows one after another.
        num_cut: documents that were cut.
    """

    seq_len: int
    row_offsets: np.ndarray
    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    num_cut: int

    @property
    def num_rows(self):
        return len(self.row_offsets) - 1

    @property
    def fill(self):
        """Share of the tokens of all rows that hold a document's token (not padding)."""
        return float(self.lengths.sum() / max(1, self.num_rows * (self.seq_len + 1)))


def plan_rows(document_lengths, seq_len, overhead=None):
    """Plans the rows of length seq_len + 1 for documents of the given lengths.

    Best fit decreasing: pieces in order of decreasing size, each into the fullest row that still
    has room. Rows with equal room are interchangeable, hence all pieces of one size are placed
    together and the time depends on the number of distinct sizes, not of documents. Pieces of
    one size come in a random order with a fixed seed, so that a row of short documents does not
    hold neighbours of the source.

    Args:
        document_lengths: int [documents], tokens per document, each at least 2 (BOS, EOS).
        seq_len: L.
        overhead: None, or a non-decreasing function that maps piece lengths, int64 [n], to the
            room to reserve in addition for each, int64 [n].

    Returns:
        A PackingPlan; the same arguments give the same plan.

    Raises:
        InputError: seq_len leaves no room for two tokens and the overhead.

    Ref: Johnson 1973, Near-optimal bin packing algorithms; Ding et al. 2024, Fewer truncations
    improve language modeling (arXiv:2404.10830).
    """
    lengths = np.asarray(document_lengths, np.int64)
    reserve = overhead if overhead is not None else np.zeros_like
    candidates = np.arange(2, max(seq_len, 1) + 2)
    fitting = candidates[candidates + reserve(candidates) <= seq_len + 1]
    if not len(fitting):
        raise InputError(f'seq_len={seq_len} has no room for a document of two tokens and the '
                         f'{reserve(np.array([2]))[0]} extra tokens of infilling; '
                         'use a larger seq_len')
    documents, starts, pieces = _cut(lengths, int(fitting[-1]))
    order = np.random.default_rng(0).permutation(len(pieces))
    sizes = (pieces + reserve(pieces))[order]
    order = order[np.argsort(-sizes, kind='stable')]
    rows, num_rows = _best_fit(*_groups(pieces + reserve(pieces)), seq_len + 1)
    by_row = np.argsort(rows, kind='stable')
    chosen = order[by_row]
    row_offsets = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=row_offsets[1:])
    return PackingPlan(
        seq_len=seq_len, row_offsets=row_offsets, documents=documents[chosen],
        starts=starts[chosen], lengths=pieces[chosen],
        num_cut=int((lengths > fitting[-1]).sum()))


def _cut(lengths, longest):
    """Cuts documents into pieces of at most `longest` tokens that overlap by one token.

    A document of n tokens has n - 1 targets and a piece at most longest - 1, hence
    ceil((n - 1) / (longest - 1)) pieces.

    Returns:
        documents, starts, lengths, each int64 [pieces].
    """
    if len(lengths) and lengths.min() < 2:
        raise ValueError(f'a document has {lengths.min()} tokens, expected at least 2 (BOS, EOS)')
    stride = longest - 1
    counts = -(-(lengths - 1) // stride)
    documents = np.repeat(np.arange(len(lengths)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.arange(len(documents)) - first) * stride
    return documents, starts, np.minimum(longest, lengths[documents] - starts)


def _groups(sizes):
    """Distinct sizes, largest first, and how many pieces have each."""
    counts = np.bincount(sizes) if len(sizes) else np.zeros(0, np.int64)
    distinct = np.flatnonzero(counts)[::-1]
    return distinct, counts[distinct]


def _best_fit(sizes, counts, capacity):
    """Best fit decreasing for groups of equal pieces.

    Bit r of `rooms` says that some row has room r, so the fullest row that fits is the lowest
    set bit from the size on. Once a row takes a piece of a size it stays the fullest that fits
    until it has no room for another, hence it takes room // size of them at once.

    Args:
        sizes: int [groups], decreasing.
        counts: int [groups].
        capacity: tokens per row.

    Returns:
        rows: int64 [pieces], the row of each piece, in the order of the groups.
        num_rows: number of rows.
    """
    open_rows = {}  # room -> list of arrays of rows
    rooms, num_rows, placed = 0, 0, []
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        while count:
            if candidates := rooms >> size:
                room = size + (candidates & -candidates).bit_length() - 1
                rows = np.concatenate(open_rows.pop(room))
                rooms ^= 1 << room
            else:
                room = capacity
                needed = -(-count // (room // size))
                rows = np.arange(num_rows, num_rows + needed)
                num_rows += needed
            each = room // size
            full, rest = min(len(rows), count // each), 0
            placed.append(np.repeat(rows[:full], each))
            count -= full * each
            if full < len(rows) and count:  # The last pieces do not use up all of the next row.
                rest = count
                placed.append(np.repeat(rows[full:full + 1], rest))
                count = 0
            used = full + (rest > 0)
            for left, chunk in ((room - each * size, rows[:full]),
                                (room - rest * size, rows[full:used]), (room, rows[used:])):
                if left and len(chunk):
                    open_rows.setdefault(left, []).append(chunk)
                    rooms |= 1 << left
    return (np.concatenate(placed) if placed else np.zeros(0, np.int64)), num_rows
