"""The one training loop. All side effects of training happen here and in the writers it is given.

Order at each step: evaluate, sample, save, take the next batch, step. A run ends after num_steps,
or at an evaluation that is `patience` evaluations behind the best one. Steps of one rollout belong
together: a signal that comes inside is obeyed at its end. Metrics of a step are
fetched after the next one was dispatched, so that the accelerator never waits for Python. A save
drains them first, so that a resumed run writes the same lines as one that was never interrupted.
"""

import dataclasses
import math
import signal
import time

import jax

from jaxllm.errors import GuardStop, InputError
from jaxllm.train import flops
from jaxllm.train.progress import duration


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long, and how often what happens, in steps. 0 = never, except at the end."""
    num_steps: int
    log_every: int
    eval_every: int
    sample_every: int
    save_every: int
    patience: int          # evaluations in a row without a lower val/loss that end the run
    profile_step: int      # a profiler trace of three steps from here on; 0 = none

    def __post_init__(self):
        if self.num_steps < 1:
            raise InputError(f'train.num_steps={self.num_steps} must be at least 1')
        if self.log_every < 1:
            raise InputError(f'train.log_every={self.log_every} must be at least 1')
        for name in ('eval_every', 'sample_every', 'save_every', 'patience', 'profile_step'):
            if getattr(self, name) < 0:
                raise InputError(f'train.{name}={getattr(self, name)} must not be negative')
        if self.patience and not self.eval_every:
            raise InputError(f'train.patience={self.patience} counts evaluations, and '
                             'train.eval_every=0 makes none before the end; use e.g. '
                             f'--config.train.eval_every={max(1, self.num_steps // 10)}')
        if self.patience and (not self.save_every or self.eval_every % self.save_every):
            raise InputError(f'train.patience={self.patience} keeps the best checkpoint, so every '
                             f'evaluation needs one: train.save_every={self.save_every} must '
                             f'divide train.eval_every={self.eval_every}; use '
                             f'--config.train.save_every={self.eval_every}')

    def due(self, every, step):
        return step == self.num_steps or (every > 0 and step % every == 0)


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls without knowing what it does."""
    evaluate: object   # evaluate(state) -> {name: float}; 'val/loss' ranks checkpoints
    sample: object     # sample(state) -> [{'prompt', 'completion'}]


class Interrupted(Exception):
    """SIGTERM or SIGINT arrived and the state was saved. `code` is the process's exit code."""

    def __init__(self, signum, step):
        super().__init__(signum, step)
        self.code = 128 + signum
        self.step = step

    def __str__(self):
        return (f'stopped by {signal.Signals(self.code - 128).name} at step {self.step:,}, which '
                'is saved; the same command goes on from there')


class StopRequest:
    """Notices SIGTERM and SIGINT while in scope; a second one acts at once.

    With several processes SIGTERM is left to JAX, which tells all of them and agrees on a step;
    SIGINT becomes a SIGTERM.
    """

    def __enter__(self):
        self.signum = 0
        self._old = {}
        for signum in (signal.SIGTERM, signal.SIGINT):
            if jax.process_count() == 1 or signum == signal.SIGINT:
                self._old[signum] = signal.signal(signum, self._notice)
        return self

    def _notice(self, signum, frame):
        del frame
        self.signum = signum
        signal.signal(signum, self._old[signum])
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)

    def at(self, step):
        """The signal to stop for before `step`, or 0; the same on every process."""
        if jax.process_count() == 1:
            return self.signum
        from jax.experimental import multihost_utils
        return signal.SIGTERM * multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_):
        for signum, handler in self._old.items():
            signal.signal(signum, handler)


class _Patience:
    """Evaluations since the lowest validation loss; part of every checkpoint's metadata."""

    def __init__(self, limit, metadata):
        self.limit = limit
        self.best, self.stale = metadata['patience'] if metadata else (None, 0)

    def see(self, loss):
        better = math.isfinite(loss) and (self.best is None or loss < self.best)
        self.best, self.stale = (loss, 0) if better else (self.best, self.stale + 1)

    @property
    def over(self):
        return 0 < self.limit <= self.stale


class _Pace:
    """Steps per second and the share of time spent waiting for data, evaluations left out."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.steps, self.waited_s, self.paused_s, self.began = 0, 0.0, 0.0, time.monotonic()
        self.paused_at = None

    def pause(self):
        """From here on time does not count, until `go_on`."""
        if self.paused_at is None:
            self.paused_at = time.monotonic()

    def go_on(self):
        if self.paused_at is not None:
            self.paused_s += time.monotonic() - self.paused_at
            self.paused_at = None

    def take(self):
        busy_s = max(time.monotonic() - self.began - self.paused_s, 1e-9)
        out = {'step_time_s': busy_s / self.steps, 'data_wait_share': self.waited_s / busy_s}
        self.reset()
        return out


def train(step_fn, state, frozen, source, config, *, batch_sharding, checkpoints, metrics, progress,
          hooks, metadata, start_metadata, max_skips_in_row, tokens_per_step,
          flops_per_step=0.0, peak_flops=0.0, trace_dir=''):
    """Runs steps state.step .. num_steps - 1 and returns the final state.

    Args:
      step_fn: compiled (state, frozen, batch) -> (state, metrics); donates `state`.
      source: `iterate(start)` yields this process's part of batches start, start + 1, ...; or, with
        `needs_state`, source(step, state) makes each when it is due, from the state that it finds
        at multiples of `source.period` steps; `source.take_perf()` is what that cost.
      batch_sharding: {array name: NamedSharding} of a global batch.
      metadata: JSON saved with each checkpoint; start_metadata: that of the restored one, or None.
      max_skips_in_row: GuardStop is raised when the guard skipped this many steps in a row.
      flops_per_step, peak_flops: for the share of the peak that is used; 0 = not reported.

    Raises:
      GuardStop: too many skipped steps in a row.
      Interrupted: SIGTERM or SIGINT; the state was saved.
    """
    start = int(state.step)
    fresh = start_metadata is not None and start_metadata['hooks_done']
    batches = None if source.needs_state else source.iterate(start)
    period = source.period if source.needs_state else 1
    pending, pace, tracing = None, _Pace(), False
    patience = _Patience(config.patience, start_metadata)

    def drain():
        nonlocal pending
        if pending is None:
            return
        step, values = pending
        pending = None
        values = {name: float(x) for name, x in jax.device_get(values).items()}
        if values['skipped']:
            text = (f'step {step} was skipped: gradient norm {values["grad_norm"]:.4g}, loss '
                    f'{values["loss"]:.4g}')
            metrics.note(step, text)
            progress.line(text)
        if step % config.log_every == 0 or step == config.num_steps or values['skipped']:
            metrics.train(step, values | {'tokens': step * tokens_per_step})
            progress.update(step, loss=values['loss'])
            if pace.steps:
                perf = pace.take()
                perf['tokens_per_second'] = tokens_per_step / perf['step_time_s']
                if peak_flops:
                    perf['mfu'] = flops_per_step / perf['step_time_s'] / peak_flops
                if source.needs_state:
                    perf |= source.take_perf()
                metrics.perf(step, perf | {'memory_bytes': flops.memory_bytes(),
                                           'peak_rss_bytes': flops.peak_rss_bytes()})
                progress.update(step, tokens_per_s=perf['tokens_per_second'])
        if values['skips_in_row'] >= max_skips_in_row:
            checkpoints.wait()
            raise GuardStop(
                f'{max_skips_in_row} steps in a row were skipped, the last at step {step} '
                f'(gradient norm {values["grad_norm"]:.4g}, loss {values["loss"]:.4g}); the last '
                'checkpoint is intact. Lower --config.optim.lr, or look at the data, and use a new '
                '--workdir with --config.init_from=<this run>')

    def save(hooks_done, metric=None):
        """`metric`: of this very state, or None if it was not evaluated."""
        checkpoints.save(state, metric=metric, metadata=metadata | {
            'offsets': metrics.offsets(), 'hooks_done': hooks_done,
            'patience': [patience.best, patience.stale]})

    with StopRequest() as stop:
        for step in range(start, config.num_steps + 1):
            signum = 0 if step % period else stop.at(step // period)
            if signum:
                drain()
                if step > start or start_metadata is None:  # otherwise it is saved already
                    save(hooks_done=False)
                checkpoints.wait()
                raise Interrupted(signum, step)
            if not (fresh and step == start):
                metric = None
                if config.due(config.eval_every, step):
                    drain()
                    pace.pause()
                    values = hooks.evaluate(state)
                    metric = values['val/loss']
                    patience.see(metric)
                    metrics.eval(step, values)
                    shown = [name for name in ('val/bits_per_byte', 'val/loss') if name in values]
                    progress.update(step, **{shown[0]: values[shown[0]]})
                if patience.over and step < config.num_steps:
                    text = (f'stopped early: the validation loss was lowest ({patience.best:.4f}) '
                            f'{patience.stale} evaluations ago')
                    metrics.note(step, text)
                    progress.line(text)
                if patience.over or config.due(config.sample_every, step):
                    drain()
                    pace.pause()
                    for record in hooks.sample(state):
                        metrics.sample(step, record)
                        progress.line(f'[{step}] {record["prompt"]}|{record["completion"]!r}')
                # A checkpoint that a signal made here comes again, with its rank.
                if (patience.over or config.due(config.save_every, step)) and (
                        step > start or start_metadata):
                    drain()
                    pace.pause()
                    save(hooks_done=True, metric=metric)
            pace.go_on()
            if step == config.num_steps or patience.over:
                break
            if step == config.profile_step > 0:
                jax.profiler.start_trace(trace_dir)
                tracing = True
            waiting = time.monotonic()
            batch = next(batches) if batches else source(step, state)
            pace.waited_s += time.monotonic() - waiting
            batch = {name: jax.make_array_from_process_local_data(batch_sharding[name], x)
                     for name, x in batch.items()}
            state, values = step_fn(state, frozen, batch)
            drain()
            pending = step + 1, values
            pace.steps += 1
            if step == start:  # compilation is no part of the pace
                jax.block_until_ready(values)
                progress.line(f'compiled in {duration(time.monotonic() - waiting)}')
                pace.reset()
            if tracing and step + 1 == min(config.profile_step + 3, config.num_steps):
                jax.block_until_ready(values)
                jax.profiler.stop_trace()
                tracing = False
                progress.line(f'profiler trace of steps {config.profile_step} to {step} written '
                              f'to {trace_dir}')
        checkpoints.wait()
    return state
