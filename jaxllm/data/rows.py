"""Rows of packed tokens from one split, laid out as batches: no order, no state, no processes.

T = L + 1 is the number of tokens of a row, B the number of rows, V the vocabulary.
"""

import numpy as np

from jaxllm.data import infill as infill_lib
from jaxllm.data import packing
from jaxllm.errors import InputError


class PackedRows:
    """The rows of one split and how to make batches of any of them."""

    def __init__(self, split, seq_len, infill, seed):
        self.split, self.seed, self._infill = split, seed, infill
        self._ids = None
        if infill.active:
            if split.weights is not None:
                raise InputError(f'{split.folder} holds conversations, which cannot be infilled; '
                                 'use infill.kind=none')
            self._ids = infill_lib.InfillIds.of(split.special, split.eos_id)
        self.plan = packing.plan_rows(split.lengths, seq_len,
                                      infill.overhead if infill.active else None)
        self._piece_starts = split.offsets[self.plan.documents] + self.plan.starts
        self._token_bytes_V = split.token_bytes_V.astype(np.float32)

    def pieces(self, rows):
        """Returns the pieces of some rows, one row after another, and how many each row has."""
        first = self.plan.row_offsets[rows]
        counts = self.plan.row_offsets[rows + 1] - first
        return _ranges(first, counts), counts

    def num_targets(self, rows):
        """How many targets of some rows have a weight; the first token of a piece is no target."""
        pieces = self.pieces(rows)[0]
        lengths = self.plan.lengths[pieces] - 1
        if self.split.weights is None:
            return int(lengths.sum())
        return int(self.split.weights[_ranges(self._piece_starts[pieces] + 1, lengths)].sum())

    def batch(self, rows, epochs):
        """Makes the batch (see PackedData) of some rows.

        Args:
            rows: int64 [B].
            epochs: int64 [B], used for infilling only.
        """
        pieces, counts = self.pieces(rows)
        starts, lengths = self._piece_starts[pieces], self.plan.lengths[pieces]
        if self._infill.active:
            flat, weights, lengths = self._infilled(rows, epochs, starts, lengths, counts)
        else:
            where = _ranges(starts, lengths)
            flat = self.split.tokens[where]
            weights = None if self.split.weights is None else self.split.weights[where]
        return _finalize(flat, weights, lengths, counts, self.plan.seq_len,
                         self.split.pad_id, self._token_bytes_V)

    def _infilled(self, rows, epochs, starts, lengths, counts):
        """Transforms piece by piece, with random numbers of (seed, row, epoch) for each row."""
        done, piece = [], 0
        for row, epoch, count in zip(rows, epochs, counts, strict=True):
            rng = np.random.default_rng([self.seed, int(row), int(epoch)])
            for _ in range(count):
                text = self.split.tokens[starts[piece]:starts[piece] + lengths[piece]]
                done.append(infill_lib.transform(text, rng, self._infill, self._ids))
                piece += 1
        tokens, weights = zip(*done, strict=True)
        return (np.concatenate(tokens), np.concatenate(weights),
                np.array([len(piece) for piece in tokens]))


def _finalize(flat, flat_weights, lengths, counts, seq_len, pad_id, token_bytes_V):
    """Lays pieces out in rows of T = L + 1 tokens.

    Args:
        flat: int [tokens], the tokens of all pieces, rows one after another.
        flat_weights: [tokens], loss weight of each as a target; None is all 1.
        lengths: int64 [pieces].
        counts: int64 [B], pieces per row, each at least 1.
        seq_len: L.
        pad_id: fills tokens and targets after the last piece.
        token_bytes_V: float32 [V].

    Returns:
        The batch described at PackedData.
    """
    num_rows, row_tokens = len(counts), seq_len + 1
    first = np.cumsum(counts) - counts
    used = np.add.reduceat(lengths, first)
    # The padding of a row is one more piece, so that the rows fill the array without a gap.
    ends = first + counts
    all_lengths = np.insert(lengths, ends, row_tokens - used)
    order = _ranges(np.ones(num_rows, np.int64), counts)
    all_segments = np.insert(order, ends, 0).astype(np.int32)
    all_starts = np.cumsum(all_lengths) - all_lengths
    segments_BT = np.repeat(all_segments, all_lengths).reshape(num_rows, row_tokens)
    column_starts = (all_starts % row_tokens).astype(np.int32)
    starts_BT = np.repeat(column_starts, all_lengths).reshape(num_rows, row_tokens)
    filled_BT = segments_BT > 0
    tokens_BT = np.full((num_rows, row_tokens), pad_id, np.int32)
    tokens_BT[filled_BT] = flat
    # The target is the next token of the same segment, never the first of the next one.
    weights_BL = ((segments_BT[:, 1:] == segments_BT[:, :-1]) & filled_BT[:, 1:]).astype(
        np.float32)
    if flat_weights is not None:
        target_weights_BT = np.zeros((num_rows, row_tokens), np.float32)
        target_weights_BT[filled_BT] = flat_weights
        weights_BL *= target_weights_BT[:, 1:]
    targets_BL = tokens_BT[:, 1:]
    positions_BL = np.arange(seq_len, dtype=np.int32)[None] - starts_BT[:, :-1]
    return {
        'tokens': tokens_BT[:, :-1], 'targets': targets_BL, 'loss_weights': weights_BL,
        'segment_ids': segments_BT[:, :-1],
        'positions': np.where(filled_BT[:, :-1], positions_BL, 0),
        'num_bytes': np.einsum('BL,BL->B', token_bytes_V[targets_BL], weights_BL),
    }


def empty_batch(num_rows, seq_len):
    kinds = {'tokens': np.int32, 'targets': np.int32, 'loss_weights': np.float32,
             'segment_ids': np.int32, 'positions': np.int32}
    batch = {key: np.zeros((num_rows, seq_len), kind) for key, kind in kinds.items()}
    return batch | {'num_bytes': np.zeros(num_rows, np.float32)}


def _ranges(starts, lengths):
    """Returns starts[0], starts[0] + 1, ... (lengths[0] of them), starts[1], ...; int64."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
