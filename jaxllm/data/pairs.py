"""Pairs of a better and a worse answer as arrays, from comparisons; batches pure in the step."""

import dataclasses
import hashlib
import itertools

import numpy as np

from jaxllm.data import chat, comparisons
from jaxllm.data.loader import component_seed, local_rows
from jaxllm.errors import InputError

WHICH = 'best_worst', 'all'


def pairs_of(comparison, which):
    """[(better, worse)] indices of responses: the best against the worst, or all that are ordered;
    of equals, the first."""
    ranks = comparison.ranks
    ordered = [(i, j) for i, j in itertools.permutations(range(len(ranks)), 2)
               if ranks[i] < ranks[j]]
    if which == 'all' or not ordered:
        return ordered
    return [(ranks.index(min(ranks)), ranks.index(max(ranks)))]


@dataclasses.dataclass(frozen=True)
class PairSet:
    """N pairs, dense: tokens [N, 2, L], lengths and starts [N, 2]; starts are of the prompt's last
    token. fingerprint: of these."""
    tokens: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    pad_id: int

    def __len__(self):
        return len(self.tokens)

    @property
    def fingerprint(self):
        digest = hashlib.sha256()
        for x in (self.tokens, self.lengths, self.starts):
            digest.update(x.tobytes())
        return digest.hexdigest()[:32]

    @property
    def room(self):
        """T: tokens of the longest answer."""
        return int((self.lengths - self.starts).max()) - 1

    def rows(self, wanted, mismatched=False):
        """The arrays of `objectives.preference` for pairs `wanted`, without reference log-probs.

        With `mismatched` a third row: the prompt of a pair with the better answer of the next one.
        """
        tokens, lengths, starts = (x[wanted] for x in (self.tokens, self.lengths, self.starts))
        if mismatched:
            third = [self._mismatch(int(i)) for i in wanted]
            tokens, lengths, starts = (np.concatenate([x, np.stack(y)[:, None]], axis=1)
                                       for x, y in zip((tokens, lengths, starts),
                                                       zip(*third, strict=True), strict=True))
        T = self.room
        index = np.minimum(starts[..., None] + 1 + np.arange(T), tokens.shape[-1] - 1)
        mask = starts[..., None] + 1 + np.arange(T) < lengths[..., None]
        return {'tokens': tokens, 'lengths': lengths, 'starts': starts,
                'completions': np.take_along_axis(tokens, index, axis=-1),
                'mask': mask.astype(np.float32)}

    def _mismatch(self, i):
        j = (i + 1) % len(self)
        prompt = self.tokens[i, 0, :self.starts[i, 0] + 1]
        answer = self.tokens[j, 0, self.starts[j, 0] + 1:self.lengths[j, 0]]
        row = np.full(self.tokens.shape[-1], self.pad_id, np.int32)
        both = np.concatenate([prompt, answer])[:len(row)]
        row[:len(both)] = both
        return row, np.int32(len(both)), self.starts[i, 0]


def encode_pairs(found, template, tokenizer, which, counts):
    """The PairSet of Comparisons that `comparisons.encode_all` has accepted.

    Answers that are the same tokens are left out and counted under 'same tokens'.
    """
    stops, rows = chat.stop_ids(template, tokenizer), []
    for comparison in found:
        start = len(chat.render(template, list(comparison.prompt), tokenizer,
                                add_generation_prompt=True, train=False).ids) - 1
        ids = [comparisons.answer_ids(
            template, [*comparison.prompt, {'role': 'assistant', 'content': text}], tokenizer,
            stops) for text in comparison.responses]
        for better, worse in pairs_of(comparison, which):
            if ids[better] == ids[worse]:
                counts['same tokens'] += 1
            else:
                rows.append((start, ids[better], ids[worse]))
    L = max((len(ids) for _, *both in rows for ids in both), default=1)
    tokens = np.full((len(rows), 2, L), tokenizer.pad_id, np.int32)
    for row, (_, *both) in enumerate(rows):
        for side, ids in enumerate(both):
            tokens[row, side, :len(ids)] = ids
    lengths = np.array([[len(ids) for ids in both] for _, *both in rows], np.int32).reshape(-1, 2)
    starts = np.array([[start] * 2 for start, *_ in rows], np.int32).reshape(-1, 2)
    return PairSet(tokens, lengths, starts, tokenizer.pad_id)


class PairBatches:
    """Batches of pairs by step, in another order in every epoch; see `loader.PackedData`.

    columns: {name: [N, ...]} beside the pairs' own arrays, such as ref_logprobs.
    """

    needs_state = False

    def __init__(self, pairs, columns, *, batch_size, seed, mismatched=False, process_index=0,
                 process_count=1):
        if len(pairs) < batch_size:
            raise InputError(f'{len(pairs)} pairs to learn from, fewer than train.batch_size='
                             f'{batch_size}; use a smaller batch, or more data')
        self._pairs, self._columns, self._batch_size = pairs, columns, batch_size
        self._seed, self._mismatched = component_seed('pairs', seed), mismatched
        self._local = np.array(local_rows(batch_size, process_index, process_count))
        self._orders = {}
        digest = f'{pairs.fingerprint}/{batch_size}/{seed}/{mismatched}'
        self.fingerprint = hashlib.sha256(digest.encode()).hexdigest()[:32]

    def __call__(self, i, state=None):
        """This process's rows of the batch of step i."""
        epochs, places = np.divmod(int(i) * self._batch_size + self._local, len(self._pairs))
        wanted = np.array([self._order(int(e))[p] for e, p in zip(epochs, places, strict=True)])
        return self.batch(wanted)

    def batch(self, wanted):
        """The arrays of some pairs."""
        return self._pairs.rows(wanted, self._mismatched) | {
            name: x[wanted] for name, x in self._columns.items()} | {
            'pair_weights': np.ones(len(wanted), np.float32)}

    def iterate(self, start=0):
        """Yields self(start), self(start + 1), ..."""
        return (self(i) for i in itertools.count(start))

    def _order(self, epoch):
        if epoch not in self._orders:
            rng = np.random.default_rng([self._seed, epoch])
            self._orders = {epoch: rng.permutation(len(self._pairs)),
                            **{e: x for e, x in self._orders.items() if e == epoch - 1}}
        return self._orders[epoch]
