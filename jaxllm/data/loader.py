"""Batches of packed rows from token stores: a pure function of the step.

The batch of step i depends on i, the stores and the settings only, so that the state of the
input pipeline is the integer i, for any number of processes and also when their number changes.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import math

import grain
import numpy as np

from jaxllm.data.infill import InfillConfig
from jaxllm.data.rows import PackedRows, empty_batch
from jaxllm.errors import InputError

NO_INFILL = InfillConfig()


class PackedData:
    """An endless, shuffled mixture of token stores, in packed rows.

    Each component repeats for ever, with another order of its rows in each epoch. Rows of the
    components are interleaved in a fixed pattern by weight. All rows have the same length, hence
    the weights are shares of tokens too, up to padding.

    A batch is a dict of arrays for this process:
        tokens, targets: int32 [B, L]; targets are the tokens one step later.
        loss_weights: float32 [B, L], 0 for padding and where the target is in another segment.
        segment_ids: int32 [B, L], which document piece of the row, from 1; 0 is padding.
        positions: int32 [B, L], from 0 in each segment.
        num_bytes: float32 [B], bytes of text of the weighted targets.

    Process p of n holds rows [p B / n, (p + 1) B / n) of the global batch: concatenated in the
    order of the processes they are the batch of a single process.

    Attributes:
        plans: name -> PackingPlan.
        shares: name -> share of the rows. A weight is rounded down to 1% of the smallest.
        fingerprint: of the stores and of every setting but the number of processes.
        needs_state: False: batches do not depend on the training state and may be made ahead.
    """

    needs_state = False

    def __init__(self, components, *, seq_len, batch_size, seed, infill=NO_INFILL,
                 process_index=0, process_count=1):
        """Plans the rows.

        Args:
            components: list of (name, StoreSplit, weight), weight > 0.
            seq_len: L.
            batch_size: rows of the global batch.
            seed: of the order of the rows and of infilling.
            infill: an InfillConfig.
            process_index, process_count: which part of the batch this process holds.

        Raises:
            InputError: settings that contradict each other, or fewer rows than a batch needs.
        """
        self._local_rows = local_rows(batch_size, process_index, process_count)
        _check_components(components)
        self.seq_len, self.batch_size = seq_len, batch_size
        self._rows = [PackedRows(split, seq_len, infill, component_seed(name, seed))
                      for name, split, _ in components]
        self.plans = {name: rows.plan for (name, _, _), rows
                      in zip(components, self._rows, strict=True)}
        weights = [weight for _, _, weight in components]
        self.shares = dict(zip(self.plans, realised_shares(weights), strict=True))
        for name, share in self.shares.items():
            _check_enough_rows(name, self.plans[name], share, seq_len, batch_size)
        self._mixture = grain.MapDataset.mix(
            [Indices(which, rows.plan.num_rows).shuffle(seed=rows.seed).repeat()
             for which, rows in enumerate(self._rows)], weights)
        settings = {
            'components': [(name, split.fingerprint, weight)
                           for name, split, weight in components],
            'seq_len': seq_len, 'batch_size': batch_size, 'seed': seed,
            'infill': dataclasses.asdict(infill)}
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]

    def __call__(self, i, state=None):
        """Returns the part of the batch of step i that belongs to this process.

        Args:
            i: step, from 0.
            state: ignored; the training state, which other sources may read.
        """
        first = int(i) * self.batch_size
        picked = np.array([self._mixture[first + row] for row in self._local_rows])
        batch = empty_batch(len(picked), self.seq_len)
        for which, rows in enumerate(self._rows):
            where = np.flatnonzero(picked[:, 0] == which)
            if len(where):
                epoch, row = np.divmod(picked[where, 1], rows.plan.num_rows)
                for key, values in rows.batch(row, epoch).items():
                    batch[key][where] = values
        return batch

    def iterate(self, start=0):
        """Yields self(start), self(start + 1), ... made by one thread, two steps ahead."""
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='input') as thread:
            ahead = collections.deque(thread.submit(self, start + k) for k in range(2))
            for step in itertools.count(start + 2):
                batch = ahead.popleft().result()
                ahead.append(thread.submit(self, step))
                yield batch

    def epochs(self, num_steps):
        """Returns name -> how often each component is read in this many steps, on average."""
        return {name: num_steps * self.batch_size * self.shares[name] / plan.num_rows
                for name, plan in self.plans.items()}


class EvalBatches:
    """All rows of one split once, in a fixed order: a finite sequence of batches.

    Batches are those of PackedData without infilling, and global rows belong to processes in
    the same way. Rows of padding with no weight fill the last batch, so that every batch has the
    same shape and every target counts once.

    Attributes:
        plan: the PackingPlan of the whole split.
        num_rows: rows that are read, without padding.
        num_targets: targets with a weight in the rows that are read, over all processes.
        fingerprint: of the split and the settings.
    """

    def __init__(self, split, *, seq_len, batch_size, max_rows=None, process_index=0,
                 process_count=1):
        """Plans the rows.

        Args:
            split: a StoreSplit.
            seq_len: L.
            batch_size: rows of the global batch.
            max_rows: at most this many rows, spread evenly over the plan (whose rows come in
                order of the length of their documents); None is all.
            process_index, process_count: which part of each batch this process holds.

        Raises:
            InputError: the split is empty, or settings contradict each other.
        """
        if not split.num_documents:
            raise InputError(f'the {split.name} split of {split.folder} has no documents, '
                             'expected at least one; build the store with a larger holdout_share')
        if max_rows is not None and max_rows < 1:
            raise InputError(f'max_rows={max_rows} must be at least 1')
        self._local_rows = np.array(local_rows(batch_size, process_index, process_count))
        self.seq_len, self.batch_size = seq_len, batch_size
        self._rows = PackedRows(split, seq_len, NO_INFILL, seed=0)
        self.plan = self._rows.plan
        self.num_rows = min(max_rows or self.plan.num_rows, self.plan.num_rows)
        self._chosen = np.arange(self.num_rows) * self.plan.num_rows // self.num_rows
        self.num_targets = self._rows.num_targets(self._chosen)
        settings = [split.fingerprint, seq_len, batch_size, self.num_rows]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]

    def __len__(self):
        return -(-self.num_rows // self.batch_size)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        wanted = i * self.batch_size + self._local_rows
        wanted = wanted[wanted < self.num_rows]
        batch = empty_batch(len(self._local_rows), self.seq_len)
        batch['tokens'][:] = batch['targets'][:] = self._rows.split.pad_id
        if len(wanted):
            rows = self._chosen[wanted]
            for key, values in self._rows.batch(rows, np.zeros_like(rows)).items():
                batch[key][:len(rows)] = values
        return batch


class Indices(grain.MapDataset):
    """Element i is (which component, i), where i = epoch * rows + row is not reduced."""

    def __init__(self, which, num_rows):
        super().__init__()
        self._which, self._num_rows = which, num_rows

    def __len__(self):
        return self._num_rows

    def __getitem__(self, index):
        return self._which, index


def component_seed(name, seed):
    """Grain shuffles epoch e with seed + e, so the seeds of components must lie far apart."""
    digest = hashlib.blake2b(f'{seed}/{name}'.encode(), digest_size=4).digest()
    return int.from_bytes(digest, 'big')


def realised_shares(weights):
    """Shares of the rows after the rounding of `MapDataset.mix`."""
    scaled = [int(weight * (100 / min(weights))) for weight in weights]
    return [weight / sum(scaled) for weight in scaled]


def local_rows(batch_size, process_index, process_count):
    """Which rows of the global batch belong to this process."""
    if batch_size < 1 or batch_size % process_count:
        raise InputError(f'batch_size={batch_size} does not divide over {process_count} '
                         f'processes; use a multiple of {process_count}')
    if not 0 <= process_index < process_count:
        raise InputError(f'process_index={process_index} must be at least 0 and less than '
                         f'process_count={process_count}')
    each = batch_size // process_count
    return range(process_index * each, (process_index + 1) * each)


def _check_components(components):
    if not components:
        raise InputError('the mixture has no component, expected at least one (name, split, '
                         'weight)')
    names = [name for name, _, _ in components]
    if len(set(names)) < len(names):
        raise InputError(f'components are called {names}, expected distinct names')
    for name, split, weight in components:
        if not weight > 0:
            raise InputError(f'component {name} has weight {weight}, expected more than 0; '
                             'leave it out to not use it')
        if split.tokenizer_fingerprint != components[0][1].tokenizer_fingerprint:
            raise InputError(f'components {names[0]} and {name} were tokenised by different '
                             'tokenizers; build their stores with the same one')


def _check_enough_rows(name, plan, share, seq_len, batch_size):
    """A component that cannot fill its part of a single batch is a mistake."""
    needed = math.ceil(batch_size * share - 1e-6)
    if plan.num_rows < needed:
        raise InputError(
            f'component {name} has {int(plan.lengths.sum())} tokens, which fill {plan.num_rows} '
            f'rows of seq_len={seq_len}, expected at least {needed} for its share {share:.3g} of '
            f'batch_size={batch_size}; use a smaller batch_size or seq_len, or more data')
