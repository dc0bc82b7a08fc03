"""Pairs of a better and a worse answer as arrays, from comparisons; batches pure in the step."""

import dataclasses
import functools
import hashlib
import itertools

import numpy as np

from jaxllm.data import chat, comparisons
from jaxllm.data.comparison_batches import WINDOW, row_length
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

    @functools.cached_property
    def partners(self):
        """int [N]: the next pair with another prompt, whose better answer does not belong to it.

        Raises:
            InputError: there is no other prompt.
        """
        prompts = [tokens[0, :starts[0] + 1].tobytes()
                   for tokens, starts in zip(self.tokens, self.starts, strict=True)]
        if len(set(prompts)) < 2:
            raise InputError(f'{len(self)} pairs of one prompt; this loss compares prompts with '
                             'the answers to others, so give at least two different prompts')
        found = np.zeros(len(self), np.int64)
        following = next(i for i, prompt in enumerate(prompts) if prompt != prompts[-1])
        for i in reversed(range(len(self))):
            if i + 1 < len(self) and prompts[i + 1] != prompts[i]:
                following = i + 1
            found[i] = following
        return found

    def longest(self, mismatched=False):
        """int [N]: tokens of the longest row of each pair."""
        longest_N = self.lengths.max(axis=1)
        if not mismatched:
            return longest_N
        return np.maximum(longest_N, self._third(np.arange(len(self)))[1])

    def rows(self, wanted, mismatched=False, length=0):
        """The arrays of `objectives.preference` for pairs `wanted`, without reference log-probs.

        Args:
            mismatched: a third row, the prompt of a pair with the better answer of its partner.
            length: L of the rows, at least the longest of them; 0 = of the whole set.
        """
        tokens, lengths, starts = (x[wanted] for x in (self.tokens, self.lengths, self.starts))
        if mismatched:
            row, size = self._third(wanted)
            tokens = np.concatenate([tokens, row[:, None]], axis=1)
            lengths = np.concatenate([lengths, size[:, None]], axis=1)
            starts = np.concatenate([starts, starts[:, :1]], axis=1)
        tokens = tokens[..., :length or None]
        T = min(self.room, tokens.shape[-1])
        index = np.minimum(starts[..., None] + 1 + np.arange(T), tokens.shape[-1] - 1)
        mask = starts[..., None] + 1 + np.arange(T) < lengths[..., None]
        return {'tokens': tokens, 'lengths': lengths, 'starts': starts,
                'completions': np.take_along_axis(tokens, index, axis=-1),
                'mask': mask.astype(np.float32)}

    def _third(self, wanted):
        """(tokens [P, L], lengths [P]) of prompts with the answers to others, cut where L ends."""
        others = self.partners[wanted]
        tokens = np.full((len(wanted), self.tokens.shape[-1]), self.pad_id, np.int32)
        lengths = np.zeros(len(wanted), np.int32)
        for row, (i, j) in enumerate(zip(wanted, others, strict=True)):
            both = np.concatenate([
                self.tokens[i, 0, :self.starts[i, 0] + 1],
                self.tokens[j, 0, self.starts[j, 0] + 1:self.lengths[j, 0]]])[:tokens.shape[1]]
            tokens[row, :len(both)], lengths[row] = both, len(both)
        return tokens, lengths


def encode_pairs(found, template, tokenizer, which, counts):
    """The PairSet of Comparisons that `comparisons.encode_all` has accepted.

    Answers that are the same tokens are left out and counted under 'same tokens'.

    Raises:
        InputError: the template's prompt is not how a conversation with its answer begins, so that
            another text would be asked than was learned.
    """
    stops, rows = chat.stop_ids(template, tokenizer), []
    for comparison in found:
        prompt = chat.render(template, list(comparison.prompt), tokenizer,
                             add_generation_prompt=True, train=False).ids
        ids = [comparisons.answer_ids(
            template, [*comparison.prompt, {'role': 'assistant', 'content': text}], tokenizer,
            stops) for text in comparison.responses]
        if any(row[:len(prompt)] != prompt for row in ids):
            raise InputError(f'chat template {template.name}: the prompt of {comparison.id!r} is '
                             'not how the conversation with its answer begins; use a template '
                             'whose add_generation_prompt ends where the answer starts')
        for better, worse in pairs_of(comparison, which):
            if ids[better] == ids[worse]:
                counts['same tokens'] += 1
            else:
                rows.append((len(prompt) - 1, ids[better], ids[worse]))
    L = max((len(ids) for _, *both in rows for ids in both), default=1)
    tokens = np.full((len(rows), 2, L), tokenizer.pad_id, np.int32)
    for row, (_, *both) in enumerate(rows):
        for side, ids in enumerate(both):
            tokens[row, side, :len(ids)] = ids
    lengths = np.array([[len(ids) for ids in both] for _, *both in rows], np.int32).reshape(-1, 2)
    starts = np.array([[start] * 2 for start, *_ in rows], np.int32).reshape(-1, 2)
    return PairSet(tokens, lengths, starts, tokenizer.pad_id)


class PairBatches:
    """Batches of pairs by step, each pair at most once an epoch, in another order every time.

    The pairs of a batch are of about one length and its rows only as long, so that little of it is
    padding: within windows of several batches they are sorted by length. What is left of an epoch
    beyond whole batches is left out, other pairs in every epoch.

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
        self._longest = pairs.longest(mismatched)
        self._epoch = functools.lru_cache(2)(self._epoch_of)
        digest = f'{pairs.fingerprint}/{batch_size}/{seed}/{mismatched}/{WINDOW}'
        self.fingerprint = hashlib.sha256(digest.encode()).hexdigest()[:32]

    def __call__(self, i, state=None):
        """This process's rows of the batch of step i."""
        epoch, place = divmod(int(i), len(self._pairs) // self._batch_size)
        wanted = self._epoch(epoch)[place]
        return self.batch(wanted[self._local], row_length(self._longest[wanted].max()))

    def batch(self, wanted, length=0):
        """The arrays of some pairs, in rows of `length` tokens, 0 = as the longest of the set."""
        return self._pairs.rows(wanted, self._mismatched, length) | {
            name: x[wanted] for name, x in self._columns.items()} | {
            'pair_weights': np.ones(len(wanted), np.float32)}

    def iterate(self, start=0):
        """Yields self(start), self(start + 1), ..."""
        return (self(i) for i in itertools.count(start))

    @property
    def tokens_per_step(self):
        """Of both answers with their prompts, on average, without padding."""
        return round(self._batch_size * self._pairs.lengths.sum() / len(self._pairs))

    def _epoch_of(self, epoch):
        """Indices of the pairs of every batch of an epoch, [batches, B]."""
        rng, count = np.random.default_rng([self._seed, epoch]), len(self._pairs)
        order = rng.permutation(count)[:count // self._batch_size * self._batch_size]
        size = WINDOW * self._batch_size
        windows = [order[first:first + size] for first in range(0, len(order), size)]
        ordered = np.concatenate([w[np.argsort(self._longest[w], kind='stable')] for w in windows])
        return rng.permutation(ordered.reshape(-1, self._batch_size))
