"""Batches of comparisons: a pure function of the step, as in `loader`."""

import collections
import concurrent.futures
import hashlib
import itertools
import json

import grain
import numpy as np

from jaxllm.data.loader import Indices, component_seed, local_rows, realised_shares
from jaxllm.errors import InputError


class ComparisonBatches:
    """An endless, shuffled mixture of sets of comparisons.

    Each set repeats for ever, in another order in each epoch; sets are interleaved by weight. The
    batch of step i depends on i, the comparisons and the settings alone. Process p of n holds rows
    [p B / n, (p + 1) B / n) of it.

    Attributes:
        num_responses, length: S and L of every batch: the most responses and the longest one, the
            latter up to the next multiple of 8.
        shares: name -> share of the rows.
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
        self._local_rows = local_rows(batch_size, process_index, process_count)
        self._sets = [encoded for _, encoded, _ in components]
        names, weights = [c[0] for c in components], [c[2] for c in components]
        self.batch_size = batch_size
        self.num_responses = max(encoded.most_responses for encoded in self._sets)
        self.length = padded(max(encoded.longest for encoded in self._sets))
        self.shares = dict(zip(names, realised_shares(weights), strict=True))
        self._mixture = grain.MapDataset.mix(
            [Indices(which, len(encoded)).shuffle(seed=component_seed(name, seed)).repeat()
             for which, (name, encoded) in enumerate(zip(names, self._sets, strict=True))], weights)
        settings = [[(name, encoded.fingerprint, weight) for name, encoded, weight in components],
                    batch_size, seed]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]

    def __call__(self, i, state=None):
        """This process's part of the batch of step i: see objectives/reward.py."""
        first = int(i) * self.batch_size
        picked = np.array([self._mixture[first + row] for row in self._local_rows])
        return gather(self._sets, [(which, row % len(self._sets[which])) for which, row in picked],
                      len(picked), self.num_responses, self.length)

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
        return {name: num_steps * self.batch_size * share / len(encoded) for (name, share), encoded
                in zip(self.shares.items(), self._sets, strict=True)}


class AllComparisons:
    """All comparisons of one set once, in order: a finite sequence of batches of one shape.

    Absent ones (ranks 0) fill the last batch, so that each comparison counts once.
    """

    def __init__(self, encoded, *, batch_size, num_responses=0, length=0, most=0, process_index=0,
                 process_count=1):
        """Args:
            num_responses, length: S and L, at least those of the set.
            most: at most this many comparisons, spread evenly; 0 = all.
        """
        self._local_rows = np.array(local_rows(batch_size, process_index, process_count))
        self._encoded, self._batch_size = encoded, batch_size
        count = min(most or len(encoded), len(encoded))
        self.chosen = np.arange(count) * len(encoded) // max(count, 1)
        self.num_responses = max(num_responses, encoded.most_responses)
        self.length = max(length, padded(encoded.longest))

    def __len__(self):
        return -(-len(self.chosen) // self._batch_size)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        wanted = i * self._batch_size + self._local_rows
        wanted = self.chosen[wanted[wanted < len(self.chosen)]]
        return self._encoded.batch(wanted, len(self._local_rows), self.num_responses, self.length)


def gather(sets, picked, rows, num_responses, length):
    """The batch of (which set, which comparison) pairs."""
    parts = [sets[which].batch([i], 1, num_responses, length) for which, i in picked]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def padded(length, multiple=8):
    """The next multiple, at least one."""
    return max(-(-length // multiple), 1) * multiple
