"""Checkpoints of a run: asynchronous, atomic, the best and the last n kept; on Orbax.

A checkpoint holds three trees, so that a consumer reads only what it needs: `params` (the trainable
parameters), `ema`, and `rest` (step, optimizer state, what objectives adapt); and JSON metadata:
where the metrics files stood, which data it was.
"""

import dataclasses
import itertools

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxllm.errors import InputError, RunError

_policies = ocp.training.preservation_policies
_NO_METRIC = 1e30  # JSON has no infinity


def _plain(tree):
    """A plain nested dict with string keys and no empty branches, as it stands on disk."""
    flat = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(tree))
    return flax.traverse_util.unflatten_dict(flat)


def _split(state):
    parts = {'params': _plain(state.trainable), 'ema': _plain(state.ema), 'rest': _plain(
        {'step': state.step, 'opt_state': state.opt_state, 'aux': state.aux})}
    return {name: tree for name, tree in parts.items() if tree}


def _join(parts, like):
    """The state `like` with the leaves of `parts`."""
    def fill(old, plain):
        flat = flax.traverse_util.flatten_dict(
            flax.serialization.to_state_dict(old), keep_empty_nodes=True)
        new = flax.traverse_util.flatten_dict(plain)
        return flax.serialization.from_state_dict(old, flax.traverse_util.unflatten_dict(
            {key: new.get(key, value) for key, value in flat.items()}))
    rest = fill({'step': like.step, 'opt_state': like.opt_state, 'aux': like.aux}, parts['rest'])
    return like.replace(trainable=fill(like.trainable, parts['params']),
                        ema=fill(like.ema, parts['ema']) if 'ema' in parts else like.ema, **rest)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    keep_last: int  # checkpoints that are kept beside the best

    def __post_init__(self):
        if self.keep_last < 1:
            raise InputError(f'checkpoint.keep_last={self.keep_last} must be at least 1')


class Checkpoints:
    """The checkpoints in `folder`. One writer at a time; every process of a run takes part."""

    def __init__(self, folder, *, keep_last=2):
        self._folder = epath.Path(folder)
        self._keep_last = keep_last
        self._pending = None
        self._broken = False
        self._open()

    def _open(self):
        self._orbax = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=_policies.AnyPreservationPolicy([
                _policies.LatestN(self._keep_last),
                _policies.BestN(get_metric_fn=lambda m: m['metric'], reverse=True, n=1)]),
            cleanup_tmp_directories=True)

    @property
    def steps(self):
        """Steps of all complete checkpoints, in order."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def save(self, state, *, metadata, metric=None):
        """Starts to save `state` under its step; the one before is waited for.

        Args:
          metadata: JSON, given back by `restore`.
          metric: what `best` is the lowest of; None = no rank.
        """
        self.wait()
        step = int(state.step)
        try:
            self._pending = step, self._orbax.save_checkpointables_async(
                step, _split(state), custom_metadata=metadata, force=True,
                overwrite=step in self.steps,
                metrics={'metric': _NO_METRIC if metric is None else float(metric)})
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error

    def wait(self):
        """Waits until the last save is complete. Raises RunError if it failed."""
        if self._pending is None:
            return
        step, response = self._pending
        self._pending = None
        try:
            response.result()
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error

    def _failed(self, step, error):
        self._broken = True
        kept = ', '.join(map(str, self.steps)) or 'none'
        return RunError(f'saving step {step} to {self._folder} failed: {_first_line(error)}; '
                        f'checkpoints of steps {kept} are intact: free space, then run the same '
                        'command again to go on from there')

    def restore(self, like):
        """The newest readable checkpoint.

        Args:
          like: a TrainState of ShapeDtypeStructs with shardings; any mesh will do.

        Returns:
          (state, metadata, repairs): `repairs` says in words which newer checkpoints could not be
          read and were set aside as `damaged-<step>`; state is None if there is no checkpoint.

        Raises:
          InputError: a checkpoint whose arrays have other names or shapes than `like`.
        """
        unreadable = {}
        for candidate in self.steps[::-1]:
            parts = _split(like)
            state = None
            try:
                found = self._orbax.checkpointables_metadata(candidate)
                _check(self._folder, candidate, parts, found.metadata)
                state = _join(self._orbax.load_checkpointables(candidate, parts), like)
            except (InputError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # no sign of damage: nothing is moved
            except Exception as error:  # whatever a damaged file makes the reader raise
                unreadable[candidate] = _first_line(error)
            if _on_every_process(state is not None):
                return state, found.custom_metadata, self._set_aside(unreadable)
        if unreadable:
            raise InputError(f'no checkpoint in {self._folder} can be read ({unreadable}); bring '
                             'the folder back from a copy, or delete it to start the run from its '
                             'beginning')
        return None, None, []

    def _set_aside(self, unreadable):
        """Moves checkpoints that cannot be read out of the way; says so."""
        if not unreadable:
            return []
        if jax.process_index() == 0:
            for step in unreadable:
                names = (f'damaged-{step}' + '+' * again for again in itertools.count())
                targets = (self._folder.parent / name for name in names)
                (self._folder / str(step)).rename(next(p for p in targets if not p.exists()))
        _on_every_process(True)
        self._orbax.close()
        self._open()
        return [f'checkpoint {step} could not be read ({error}) and was set aside as '
                f'damaged-{step}' for step, error in unreadable.items()]

    def close(self):
        """Waits for the last save. Raises RunError if it failed and nobody was told yet."""
        self.wait()
        try:
            self._orbax.close()
        except (OSError, ValueError):  # Orbax raises a failed save once more
            if not self._broken:
                raise


def best_step(orbax):
    """Step of the complete checkpoint with the lowest metric; the later of equals."""
    return min(orbax.checkpoints, key=lambda c: (c.metrics['metric'], -c.step)).step


def _check(folder, step, wanted, found):
    """Raises InputError for the first array that `found` has in another shape, or lacks."""
    for part, tree in wanted.items():
        has = {key: tuple(leaf.shape) for key, leaf in
               flax.traverse_util.flatten_dict(found.get(part, {})).items()}
        needs = {key: tuple(leaf.shape)
                 for key, leaf in flax.traverse_util.flatten_dict(tree).items()}
        for key in sorted(needs.keys() | has.keys()):
            if needs.get(key) != has.get(key):
                raise InputError(
                    f'checkpoint {folder}/{step} does not fit this config: '
                    f'{part}/{"/".join(key)} is {has.get(key, "absent")} there and '
                    f'{needs.get(key, "absent")} here; use the config it was made with, or a '
                    'new --workdir')


def _on_every_process(ok):
    """Whether `ok` holds on all processes, known to all of them."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils
    return bool(multihost_utils.process_allgather(np.int32(ok)).all())


def has_checkpoint(folder):
    """Whether a run has saved anything complete in `folder`."""
    return epath.Path(folder).exists() and bool(ocp.training.Checkpointer(folder).checkpoints)


def saved_step(folder, which='best'):
    """The step of the 'best' (lowest validation loss) or 'last' complete checkpoint in `folder`.

    Raises:
      InputError: no checkpoint there.
    """
    orbax = _open_to_read(folder)
    step = best_step(orbax) if which == 'best' else orbax.checkpoints[-1].step
    orbax.close()
    return step


def saved_steps(folder):
    """Steps of the complete checkpoints in `folder`, in order. Raises InputError without any."""
    orbax = _open_to_read(folder)
    steps = [checkpoint.step for checkpoint in orbax.checkpoints]
    orbax.close()
    return steps


def load_params(folder, like, *, step=None, part='params', branch=''):
    """Parameters alone of the checkpoint `step` (default: the best) in `folder`.

    Args:
      like: tree of ShapeDtypeStructs with shardings.
      part: 'params' or 'ema'.
      branch: of several models that were trained together, the name of the one to load; nothing of
        the others is read.

    Raises:
      InputError: no checkpoint there, or one of other shapes.
    """
    wanted = {branch: _plain(like)} if branch else _plain(like)
    parts, step = _read(folder, {part: wanted}, step, branch)
    return (parts[part][branch] if branch else parts[part]), step


def load_state(folder, like, *, step=None):
    """The TrainState of the checkpoint `step` (default: the best), for reading only."""
    parts, _ = _read(folder, _split(like), step)
    return _join(parts, like)


def _read(folder, wanted, step, branch=''):
    """Reads without touching the folder, so that a run may write to it meanwhile. With a branch,
    what lies beside it is not read."""
    orbax = _open_to_read(folder)
    step = best_step(orbax) if step is None else step
    found = orbax.checkpointables_metadata(step).metadata
    if branch:
        found = {part: {branch: found.get(part, {}).get(branch, {})} for part in wanted}
    _check(folder, step, wanted, found)
    loading = ocp.options.PyTreeOptions.Loading(partial_load=bool(branch))
    with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=loading)):
        parts = orbax.load_checkpointables(step, wanted)
    orbax.close()
    return parts, step


def _open_to_read(folder):
    if not epath.Path(folder).exists():
        raise InputError(f'{folder} does not exist, so there is no model to load; check the run '
                         'directory, or train it first')
    orbax = ocp.training.Checkpointer(folder)
    if not orbax.checkpoints:
        raise InputError(f'{folder} holds no complete checkpoint; let the run save one first')
    return orbax


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
