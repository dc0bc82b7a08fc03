"""The batches of reinforcement learning: a rollout by the policy as it is, then steps on it.

Within a rollout nothing is saved: `period` steps belong together, and the loop evaluates, saves and
stops between rollouts alone. A rollout is a pure function of (its number, the state at its start,
the seed), so a run that was killed anywhere does the same again.
"""

import json
import time

import jax
import numpy as np

from jaxllm import rng
from jaxllm.config import write_atomic
from jaxllm.errors import InputError


class RolloutSource:
    """Makes rollouts and cuts them into batches.

    Attributes:
      period: steps per rollout. needs_state: True, so that nothing is made ahead.
    """

    needs_state = True

    def __init__(self, make, *, num_examples, epochs, batch_size, seed, folder, group_size=1,
                 extra=None, like=None, check=None, process_index=0, process_count=1):
        """
        Args:
          make: make(number, state) -> (examples {name: numpy array by row}, metrics, records).
          num_examples: rows of `examples`, of all processes.
          group_size: so many neighbours stay together; divides num_examples and batch_size.
          folder: where records are written, a file per rollout.
          extra: extra(step) -> this process's rows of more arrays, such as text for a
            pre-training loss.
          check: check(number, metrics) of a rollout that has been written; may end the run.
          like: shapes of a whole batch without `extra`, {name: ShapeDtypeStruct}.

        Raises:
          InputError: see `steps_per_epoch`.
        """
        self._make, self._seed, self._folder, self._extra = make, seed, folder, extra
        self._check, self._group_size = check, group_size
        self._num, self._batch_size, self._like = num_examples, batch_size, like
        self._steps_per_epoch = steps_per_epoch(num_examples, batch_size)
        self.period = epochs * self._steps_per_epoch
        self._local = slice(process_index * batch_size // process_count,
                            (process_index + 1) * batch_size // process_count)
        self._number, self._examples, self._columns, self._perf = -1, None, {}, {}

    def like(self):
        """A batch of this process, for its names and shapes."""
        rows = self._local.stop - self._local.start
        batch = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
                 for name, x in self._like.items()}
        return batch | (self._extra(0) if self._extra else {})

    def __call__(self, step, state):
        number, inner = divmod(int(step), self.period)
        if number != self._number:
            if inner:
                raise ValueError(f'step {step} is inside rollout {number}, which was never made')
            began = time.monotonic()
            self._examples, metrics, records = self._make(number, state)
            self._columns = {f'rollout/{name}': np.float32(x) for name, x in metrics.items()}
            self._write(number, metrics, records)
            if self._check:
                self._check(number, metrics)
            self._number = number
            self._perf = {'rollout/time_s': time.monotonic() - began}
        epoch, part = divmod(inner, self._steps_per_epoch)
        rows = self.order(number, epoch)[part * self._batch_size:][:self._batch_size][self._local]
        batch = {name: x[rows] for name, x in self._examples.items()}
        batch |= {name: np.full((len(rows),), x) for name, x in self._columns.items()}
        return batch | (self._extra(int(step)) if self._extra else {})

    def order(self, number, epoch):
        """A fresh permutation of the groups of examples for each pass over a rollout."""
        words = np.random.SeedSequence([self._seed, rng.SHUFFLE, number, epoch])
        size = self._group_size
        groups = np.random.default_rng(words).permutation(self._num // size)
        return (groups[:, None] * size + np.arange(size)).reshape(-1)

    def take_perf(self):
        """What the last rollout cost, once."""
        perf, self._perf = self._perf, {}
        return perf

    def _write(self, number, metrics, records):
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            lines = [{'rollout': number, 'metrics': metrics}, *records]
            write_atomic(self._folder / f'{number:06}.jsonl', ''.join(
                json.dumps(line, ensure_ascii=False) + '\n' for line in lines))


def history(folder, number):
    """The metrics of the rollouts before `number`, in order."""
    found = []
    for path in sorted(folder.glob('*.jsonl')):
        if int(path.stem) < number:
            with open(path, encoding='utf-8') as file:
                found.append(json.loads(file.readline())['metrics'])
    return found


def steps_per_epoch(num_examples, batch_size):
    """Of the optimiser on a rollout. Raises InputError: batches that do not divide it."""
    if num_examples % batch_size:
        raise InputError(
            f'a rollout gives {num_examples} examples, which train.batch_size={batch_size} '
            'does not divide; use a divisor of it, e.g. '
            f'--config.train.batch_size={_divisor(num_examples, batch_size)}')
    return num_examples // batch_size


def _divisor(total, near):
    return min((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - near))
