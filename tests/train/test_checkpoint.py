"""Checkpoints: what is kept, where it can be read again, and what happens when that goes wrong."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.errors import InputError, RunError
from jaxllm.sharding import ShardingConfig, make_mesh
from jaxllm.train import state as train_state
from jaxllm.train.checkpoint import CheckpointConfig, Checkpoints, load_params
from jaxllm.train.step import GuardConfig, guard_state

GUARD = GuardConfig(spike_factor=3.0, history=3, max_skips_in_row=5)
OPTIMIZER = optax.chain(optax.scale_by_adam(), optax.trace(0.9))


def _state(step=0, *, ema=True, rows=16, columns=24, seed=0):
    """A state in which every array has numbers of its own."""
    key = jax.random.key(seed)
    trainable = {'embed': {'table': jnp.zeros((rows, columns))}, 'scale': jnp.zeros((columns,))}
    state = train_state.create(trainable, OPTIMIZER, ema=ema,
                               aux={'guard': guard_state(GUARD), 'kl': jnp.float32(0)})
    leaves, structure = jax.tree.flatten(state)
    noise = [(100 * jax.random.normal(jax.random.fold_in(key, i), x.shape)).astype(x.dtype)
             for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, noise).replace(step=jnp.int32(step))


def _like(state, mesh=None):
    mesh = mesh or make_mesh()
    places = train_state.state_shardings(
        state, {'embed': {'table': NamedSharding(mesh, PartitionSpec('fsdp', 'tensor'))},
                'scale': NamedSharding(mesh, PartitionSpec('tensor'))}, mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                        state, places)


def _assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / 'checkpoints', keep_last=2)
    yield opened
    opened.close()


@pytest.mark.parametrize('ema', [True, False])
def test_a_state_comes_back_bit_for_bit(checkpoints, ema):
    state = _state(7, ema=ema)
    assert checkpoints.restore(_like(state)) == (None, None, [])
    checkpoints.save(state, metadata={'offsets': {'metrics': 12}}, metric=1.5)
    checkpoints.wait()
    got, metadata, repairs = checkpoints.restore(_like(state))
    _assert_same(got, state)
    assert metadata == {'offsets': {'metrics': 12}} and repairs == []
    assert type(got.opt_state) is type(state.opt_state)


@pytest.mark.parametrize('preset', ['dp', 'tp', 'fsdp_tp', 'dp_fsdp_tp'])
def test_a_state_comes_back_on_another_mesh(checkpoints, preset):
    state = _state(3)
    there = jax.device_put(state, jax.tree.map(lambda x: x.sharding, _like(state)))
    assert len(there.trainable['embed']['table'].sharding.device_set) == 8
    checkpoints.save(there, metadata={})
    checkpoints.wait()
    like = _like(state, make_mesh(ShardingConfig(preset)))
    got, _, _ = checkpoints.restore(like)
    _assert_same(got, state)
    for x, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(like), strict=True):
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
    # The moments live where their parameter lives.
    table = got.trainable['embed']['table'].sharding
    assert got.opt_state[0].mu['embed']['table'].sharding == table
    params, step = load_params(checkpoints._folder, like.trainable)
    _assert_same(params, state.trainable)
    assert step == 3


def test_the_best_and_the_last_are_kept(checkpoints):
    for step, metric in ((0, None), (1, 5.0), (2, 3.0), (3, 4.0), (4, 3.5), (5, 3.25)):
        checkpoints.save(_state(step, seed=step), metadata={}, metric=metric)
    checkpoints.wait()
    assert checkpoints.steps == [2, 4, 5]
    like = _like(_state())
    params, step = load_params(checkpoints._folder, like.trainable)
    assert step == 2
    _assert_same(params, _state(2, seed=2).trainable)
    average, _ = load_params(checkpoints._folder, like.trainable, part='ema', step=4)
    _assert_same(average, _state(4, seed=4).ema)
    got, _, _ = checkpoints.restore(like)
    assert int(got.step) == 5  # a run goes on from the newest, not from the best


def test_of_equally_good_ones_the_later_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / 'checkpoints', keep_last=3)
    for step in (1, 2, 3):
        checkpoints.save(_state(step), metadata={}, metric=2.0 if step < 3 else 9.0)
    checkpoints.wait()
    assert checkpoints.steps == [1, 2, 3]
    assert load_params(checkpoints._folder, _like(_state()).trainable)[1] == 2
    checkpoints.close()


def test_a_step_after_a_save_does_not_change_what_is_saved(checkpoints):
    """The save is asynchronous and the next step reuses the memory of the state it is given."""
    big = _state(1, rows=512, columns=2048)
    places = jax.tree.map(lambda x: x.sharding, _like(big))
    state = jax.device_put(big, places)
    want = jax.tree.map(lambda x: np.array(x, copy=True), state)

    def wreck(state):
        return jax.tree.map(lambda x: x + jnp.ones_like(x), state)

    step = jax.jit(wreck, donate_argnums=0, in_shardings=(places,), out_shardings=places)
    step(jax.device_put(_state(1, rows=512, columns=2048, seed=9), places))  # compiled beforehand
    checkpoints.save(state, metadata={})
    for _ in range(5):
        before, state = state, step(state)
    assert before.trainable['scale'].is_deleted()
    checkpoints.wait()
    got, _, _ = checkpoints.restore(_like(big))
    _assert_same(jax.tree.leaves(got), jax.tree.leaves(want))


def test_arrays_of_another_shape_are_named(checkpoints):
    checkpoints.save(_state(1), metadata={})
    checkpoints.wait()
    with pytest.raises(InputError, match=r'params/embed/table is \(16, 24\) there and \(16, 32\) '
                                         'here'):
        checkpoints.restore(_like(_state(columns=32)))
    with pytest.raises(InputError, match='params/embed/table'):
        load_params(checkpoints._folder, _like(_state(columns=32)).trainable)
    assert checkpoints.steps == [1]  # nothing was set aside
    checkpoints.save(_state(2, ema=False), metadata={})
    checkpoints.wait()
    with pytest.raises(InputError, match='ema/embed/table is absent there'):
        checkpoints.restore(_like(_state()))


def test_nothing_to_load(tmp_path):
    like = _like(_state()).trainable
    with pytest.raises(InputError, match='does not exist'):
        load_params(tmp_path / 'nowhere', like)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='no complete checkpoint'):
        load_params(tmp_path / 'empty', like)
    with pytest.raises(InputError, match='keep_last=0'):
        CheckpointConfig(keep_last=0)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(checkpoints, tmp_path):
    for step in (1, 2):
        checkpoints.save(_state(step, seed=step), metadata={'step': step})
    checkpoints.wait()
    for file in (tmp_path / 'checkpoints' / '2').rglob('*'):
        if file.is_file() and file.stat().st_size > 50:
            os.truncate(file, 20)
    got, metadata, repairs = checkpoints.restore(_like(_state()))
    _assert_same(got, _state(1, seed=1))
    assert metadata == {'step': 1} and checkpoints.steps == [1]
    assert len(repairs) == 1 and 'checkpoint 2 could not be read' in repairs[0]
    assert (tmp_path / 'damaged-2').is_dir()
    checkpoints.save(_state(2, seed=2), metadata={'step': 2})  # its name is free again
    checkpoints.wait()
    assert int(checkpoints.restore(_like(_state()))[0].step) == 2


def test_without_any_readable_checkpoint_the_run_does_not_silently_begin_again(checkpoints,
                                                                               tmp_path):
    checkpoints.save(_state(1), metadata={})
    checkpoints.wait()
    for file in (tmp_path / 'checkpoints' / '1').rglob('*'):
        if file.is_file():
            file.unlink()
    with pytest.raises(InputError, match='no checkpoint in .* can be read'):
        checkpoints.restore(_like(_state()))
    assert checkpoints.steps == [1]  # nothing was moved


_FULL_DISK = '''
import resource, signal, sys
sys.path.insert(0, {here!r})
import test_checkpoint as t
from jaxllm.errors import RunError
from jaxllm.train.checkpoint import Checkpoints
checkpoints = Checkpoints({folder!r}, keep_last=2)
checkpoints.save(t._state(1), metadata={{}})
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails like a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(t._state(2, rows=512, columns=2048), metadata={{}})
    checkpoints.wait()
except RunError as error:
    print(error)
checkpoints.close()
'''


def test_a_full_disk_is_one_clear_error(tmp_path):
    folder = tmp_path / 'checkpoints'
    here = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, '-c', _FULL_DISK.format(here=str(here), folder=str(folder))],
        env=os.environ | {'PYTHONPATH': str(here.parents[1])}, text=True, capture_output=True,
        timeout=200)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert f'saving step 2 to {folder} failed' in line and 'steps 1 are intact' in line
    again = Checkpoints(folder, keep_last=2)
    assert again.steps == [1]
    _assert_same(again.restore(_like(_state()))[0], _state(1))
    again.save(_state(2), metadata={})
    again.wait()
    assert again.steps == [1, 2]
    again.close()


def test_a_failed_save_is_reported_once(checkpoints, monkeypatch):
    checkpoints.save(_state(1), metadata={})
    checkpoints.wait()

    def no_space(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(checkpoints._orbax, 'save_checkpointables_async', no_space)
    with pytest.raises(RunError, match='saving step 2 .*No space left on device; checkpoints of '
                                       'steps 1 are intact'):
        checkpoints.save(_state(2), metadata={})
    checkpoints.wait()
