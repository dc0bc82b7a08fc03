"""Batches of comparisons: a pure function of the step, as in `loader`.

A batch is of one source and of comparisons of about one length, so that little of it is padding,
and its shape is one of few. The order of the comparisons is a seeded permutation per epoch; within
windows of several batches they are sorted by length, and the batches come in random order.
"""

import collections
import concurrent.futures
import functools
import hashlib
import itertools
import json

import grain
import numpy as np

from jaxllm.data.loader import Indices, component_seed, local_rows, realised_shares
from jaxllm.errors import InputError

WINDOW = 8  # batches that are sorted by length together


class ComparisonBatches:
    """An endless, shuffled mixture of sets of comparisons.

    The batch of step i depends on i, the comparisons and the settings alone, so that the state of
    the input pipeline is the integer i. Process p of n holds rows [p B / n, (p + 1) B / n).

    Attributes:
        num_responses: the most of any set, S of its batches.
        longest: row length of the longest batches.
        tokens_per_step: valid tokens, on average.
        shares: name -> share of the batches.
        fingerprint: of the comparisons and every setting but the number of processes.
        needs_state: False.
    """

    needs_state = False

    def __init__(self, components, *, batch_size, seed, process_index=0, process_count=1):
        """Args:
            components: list of (name, comparisons.Encoded, weight).
            batch_size: comparisons of the global batch.

        Raises:
            InputError: an empty set, or a batch that does not divide over the processes.
        """
        for name, encoded, _ in components:
            if not len(encoded):
                raise InputError(f'source {name!r} has no comparison left to learn from; look at '
                                 'its rejects')
        self._local_rows = np.array(local_rows(batch_size, process_index, process_count))
        self._sets = [_Stream(encoded, batch_size, component_seed(name, seed))
                      for name, encoded, _ in components]
        names, weights = [c[0] for c in components], [c[2] for c in components]
        self._batch_size = batch_size
        self.num_responses = max(encoded.most_responses for _, encoded, _ in components)
        self.longest = max(row_length(encoded.longest) for _, encoded, _ in components)
        self.shares = dict(zip(names, realised_shares(weights), strict=True))
        self.tokens_per_step = round(batch_size * sum(
            share * len(encoded.tokens) / len(encoded)
            for share, (_, encoded, _) in zip(self.shares.values(), components, strict=True)))
        # Element i is (which set, which of its batches).
        self._mixture = grain.MapDataset.mix(
            [Indices(which, 1 << 40) for which in range(len(components))], weights)
        settings = [[(name, encoded.fingerprint, weight) for name, encoded, weight in components],
                    batch_size, seed, WINDOW]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]

    def __call__(self, i, state=None):
        """This process's part of the batch of step i: see objectives/reward.py."""
        which, number = self._mixture[int(i)]
        encoded, wanted = self._sets[which].encoded, self._sets[which].batch(number)
        return encoded.batch(wanted[self._local_rows], encoded.most_responses,
                             row_length(encoded.lengths[wanted].max()))

    def iterate(self, start=0):
        """Yields self(start), self(start + 1), ... made by one thread, two steps ahead."""
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='input') as thread:
            ahead = collections.deque(thread.submit(self, start + k) for k in range(2))
            for step in itertools.count(start + 2):
                batch = ahead.popleft().result()
                ahead.append(thread.submit(self, step))
                yield batch

    def epochs(self, num_steps):
        """name -> how often each set is read in this many steps, on average."""
        return {name: num_steps * self._batch_size * share / len(stream.encoded)
                for (name, share), stream in zip(self.shares.items(), self._sets, strict=True)}


class _Stream:
    """One set, for ever: place k of it is comparison permutation[epoch][k mod N]."""

    def __init__(self, encoded, batch_size, seed):
        self.encoded, self._batch_size, self._seed = encoded, batch_size, seed
        self._order = functools.lru_cache(4)(self._order_of)
        self._window = functools.lru_cache(2)(self._window_of)

    def batch(self, number):
        """Indices of the comparisons of one batch, [B]."""
        window, place = divmod(int(number), WINDOW)
        return self._window(window)[place]

    def _order_of(self, epoch):
        return np.random.default_rng([self._seed, 0, epoch]).permutation(len(self.encoded))

    def _window_of(self, window):
        size = WINDOW * self._batch_size
        epochs, places = np.divmod(np.arange(window * size, (window + 1) * size),
                                   len(self.encoded))
        chosen = np.array([self._order(int(e))[p] for e, p in zip(epochs, places, strict=True)])
        chosen = chosen[np.argsort(self.encoded.lengths[chosen], kind='stable')]
        batches = chosen.reshape(WINDOW, self._batch_size)
        return batches[np.random.default_rng([self._seed, 1, window]).permutation(WINDOW)]


class AllComparisons:
    """All comparisons of one set once, the short ones first: a finite sequence of batches, all of
    one shape.

    Absent ones (ranks 0) fill the last batch, so that each comparison counts once.
    """

    def __init__(self, encoded, *, batch_size, most=0, process_index=0, process_count=1):
        """Args: most: at most this many comparisons, spread evenly over the lengths; 0 = all."""
        self._local_rows = np.array(local_rows(batch_size, process_index, process_count))
        self._encoded, self._batch_size = encoded, batch_size
        count = min(most or len(encoded), len(encoded))
        by_length = np.argsort(encoded.lengths, kind='stable')
        self.chosen = by_length[np.arange(count) * len(encoded) // max(count, 1)]

    def __len__(self):
        return -(-len(self.chosen) // self._batch_size)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        mine = i * self._batch_size + self._local_rows
        return self._encoded.batch(
            self.chosen[mine[mine < len(self.chosen)]], self._encoded.most_responses,
            row_length(self._encoded.longest), len(mine))


def row_length(longest):
    """The next of 16, 32, 64, ...: few shapes, since each is compiled."""
    return 1 << max(4, (int(longest) - 1).bit_length())
