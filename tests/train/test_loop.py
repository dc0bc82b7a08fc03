"""The loop: what happens when, what is written, and every way in which a run may stop."""

import json
import os
import pathlib
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.errors import GuardStop, InputError
from jaxllm.objectives.base import LossSums, Term
from jaxllm.sharding import make_mesh
from jaxllm.train import loop
from jaxllm.train import state as train_state
from jaxllm.train import step as train_step
from jaxllm.train.checkpoint import Checkpoints
from jaxllm.train.metrics import Metrics
from jaxllm.train.progress import Progress

GUARD = train_step.GuardConfig(spike_factor=0.0, history=3, max_skips_in_row=3)
OPTIMIZER = optax.scale_by_adam()


def objective(trainable, frozen, batch, rng):
    del frozen
    noise_B = jax.random.normal(rng, batch['x_BD'].shape[:1])
    error_B = batch['x_BD'] @ trainable['kernel'] - batch['y_B'] + 0.1 * noise_B
    return LossSums({'fit': Term(jnp.sum(error_B ** 2), jnp.float32(len(error_B)))}, {})


class Source:
    """Batch i is drawn from seed i; steps in `bad` have a NaN in them."""
    needs_state = False

    def __init__(self, bad=(), log=None):
        self.bad, self.log = bad, log if log is not None else []

    def iterate(self, start):
        i = start
        while True:
            self.log.append(('batch', i))
            rng = np.random.default_rng(i)
            x_BD = rng.normal(size=(8, 5)).astype(np.float32)
            x_BD[0, 0] = np.nan if i in self.bad else x_BD[0, 0]
            yield {'x_BD': x_BD, 'y_B': rng.normal(size=8).astype(np.float32)}
            i += 1


@pytest.fixture(scope='module')
def mesh():
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture(scope='module')
def compiled(mesh):
    """(step, shardings of its state, shardings of a batch)."""
    step = train_step.make_train_step(objective, OPTIMIZER, lambda step: jnp.float32(0.05), seed=3,
                                      guard=GUARD, ema_decay=0.5)
    everywhere = NamedSharding(mesh, PartitionSpec())
    batch = {'x_BD': NamedSharding(mesh, PartitionSpec('fsdp')),
             'y_B': NamedSharding(mesh, PartitionSpec('fsdp'))}
    return jax.jit(step, in_shardings=(everywhere, None, batch), out_shardings=everywhere,
                   donate_argnums=0), everywhere, batch


def _new_state(sharding):
    state = train_state.create({'kernel': jnp.arange(5.) / 5}, OPTIMIZER, ema=True,
                               aux={'guard': train_step.guard_state(GUARD)})
    return jax.device_put(state, sharding)


class Recorder:
    """Evaluates, samples and writes down in which order it was asked to."""

    def __init__(self):
        self.log = []

    def hooks(self):
        return loop.Hooks(self.evaluate, self.sample)

    def evaluate(self, state):
        self.log.append(('evaluate', int(state.step)))
        loss = float(jnp.sum(state.trainable['kernel'] ** 2))
        return {'val/loss': loss, 'val/bits_per_byte': loss / 2}

    def sample(self, state):
        self.log.append(('sample', int(state.step)))
        return [{'prompt': 'x', 'completion': f'{float(state.ema["kernel"][0]):.6f}'}]


def _train(workdir, compiled, *, bad=(), at_step=None, log=None, keep_last=2, **settings):
    """Runs or resumes in `workdir`; returns (final state, order of events)."""
    step, sharding, batch_sharding = compiled
    recorder = Recorder()
    log = recorder.log = log if log is not None else []
    config = loop.LoopConfig(**dict(num_steps=10, log_every=1, eval_every=4, sample_every=5,
                                    save_every=3, patience=0, profile_step=0) | settings)

    def logged_step(state, frozen, batch):
        log.append(('step', int(state.step)))
        if at_step is not None:
            at_step(int(state.step))
        return step(state, frozen, batch)

    checkpoints = Checkpoints(workdir / 'checkpoints', keep_last=keep_last)
    save = checkpoints.save

    def logged_save(state, **options):
        log.append(('save', int(state.step)))
        save(state, **options)

    checkpoints.save = logged_save
    state = _new_state(sharding)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
    restored, metadata, _ = checkpoints.restore(like)
    metrics = Metrics(workdir, metadata['offsets'] if metadata else None, True, tensorboard=False)
    try:
        with Progress(config.num_steps, enabled=False) as progress:
            return loop.train(
                logged_step, restored or state, {}, Source(bad, log), config,
                batch_sharding=batch_sharding, checkpoints=checkpoints, metrics=metrics,
                progress=progress, hooks=recorder.hooks(), metadata={'data': 'toy'},
                start_metadata=metadata, max_skips_in_row=GUARD.max_skips_in_row,
                tokens_per_step=8, trace_dir=str(workdir / 'profile')), log
    finally:
        metrics.close()
        checkpoints.close()


def _lines(workdir, file='metrics.jsonl'):
    return [json.loads(line) for line in (workdir / file).read_text().splitlines()]


def _assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope='module')
def whole(tmp_path_factory, compiled):
    """(directory, final state, events) of a run of ten steps."""
    workdir = tmp_path_factory.mktemp('whole')
    return workdir, *_train(workdir, compiled)


def test_evaluate_sample_save_next_batch_step(whole):
    _, state, log = whole
    assert int(state.step) == 10
    expected = [('evaluate', 0), ('sample', 0)]
    for i in range(10):
        expected += [('batch', i), ('step', i)]
        done = i + 1
        if done % 4 == 0 or done == 10:
            expected.append(('evaluate', done))
        if done % 5 == 0:
            expected.append(('sample', done))
        if done % 3 == 0 or done == 10:
            expected.append(('save', done))
    assert log == expected


def test_lines_come_in_the_order_of_steps(whole):
    workdir, _, _ = whole
    lines = [(line['kind'], line['step']) for line in _lines(workdir)]
    # The metrics of a step are fetched late, but stand before what is measured after it.
    expected = [('eval', 0)]
    for step in range(1, 11):
        expected += [('train', step)] + [('eval', step)] * (step in (4, 8, 10))
    assert lines == expected
    assert [line['step'] for line in _lines(workdir, 'samples.jsonl')] == [0, 5, 10]
    last = _lines(workdir)[-2]
    assert last['tokens'] == 80 and last['lr'] == pytest.approx(0.05)
    assert {'step_time_s', 'tokens_per_second', 'peak_rss_bytes'} <= _lines(
        workdir, 'perf.jsonl')[-1].keys()


def test_metrics_wait_until_the_next_step_is_under_way(tmp_path, compiled):
    """So the accelerator never waits for Python; but what is due at a step sees all of them."""
    seen = {}

    def look(step):
        file = tmp_path / 'metrics.jsonl'
        seen[step] = [line['step'] for line in _lines(tmp_path) if line['kind'] == 'train'
                      ] if file.exists() else []

    _train(tmp_path, compiled, at_step=look, eval_every=0, sample_every=0, save_every=4)
    assert seen[3] == [1, 2]           # step 3 is done, its metrics are not fetched yet
    assert seen[4] == [1, 2, 3, 4]     # drained by the save
    assert seen[6] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize('log_every', [1, 3])
def test_the_pace_is_that_of_the_steps_alone(tmp_path, compiled, monkeypatch, log_every):
    """A clock in which a step takes 0.1 s on the host, 10 s on the device, and all else longer."""
    now = [0.0]

    def takes(seconds, function):
        def slow(*args, **options):
            now[0] += seconds
            return function(*args, **options)
        return slow

    step, sharding, batch_sharding = compiled
    monkeypatch.setattr(loop, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(jax, 'device_get', takes(10, jax.device_get))
    monkeypatch.setattr(Recorder, 'evaluate', takes(100, Recorder.evaluate))
    monkeypatch.setattr(Recorder, 'sample', takes(1000, Recorder.sample))
    monkeypatch.setattr(Checkpoints, 'save', takes(10_000, Checkpoints.save))
    _train(tmp_path, (takes(0.1, step), sharding, batch_sharding), log_every=log_every)
    # A step is dispatched before the one before it is measured, hence the tolerance.
    first, *others = [line['step_time_s'] for line in _lines(tmp_path, 'perf.jsonl')]
    assert others and others == pytest.approx([10.1] * len(others), abs=0.11)
    assert first >= 10  # compilation is left out, but not the steps of its interval


def test_log_every_thins_out_the_lines_alone(tmp_path, compiled, whole):
    state, _ = _train(tmp_path, compiled, log_every=4)
    _assert_same(state, whole[1])
    train = [line for line in _lines(tmp_path) if line['kind'] == 'train']
    assert [line['step'] for line in train] == [4, 8, 10]
    assert train == [line for line in _lines(whole[0]) if line['kind'] == 'train'
                     and line['step'] in (4, 8, 10)]


class Killed(Exception):
    """Stands for a kill: nothing is saved."""


@pytest.mark.parametrize('at', [0, 2, 3, 4, 7, 9])
def test_a_run_that_broke_off_ends_as_the_whole_one(tmp_path, compiled, whole, at):
    def kill(step):
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        _train(tmp_path, compiled, at_step=kill)
    state, log = _train(tmp_path, compiled)
    assert log[-1] == ('save', 10) and ('step', at) in log
    newest = at // 3 * 3
    assert [event for event in log if event[0] == 'batch'][0] == ('batch', newest)
    if newest:  # what came before the save is not done again
        assert ('evaluate', newest) not in log and ('save', newest) not in log
    _assert_same(state, whole[1])
    for file in ('metrics.jsonl', 'samples.jsonl'):
        assert (tmp_path / file).read_bytes() == (whole[0] / file).read_bytes()


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('at', [0, 3, 4, 9])
def test_a_signal_saves_and_stops(tmp_path, compiled, whole, signum, at):
    handler = signal.getsignal(signum)

    def send(step):
        if step == at:
            os.kill(os.getpid(), signum)

    with pytest.raises(loop.Interrupted) as stop:
        _train(tmp_path, compiled, at_step=send)
    assert stop.value.code == 128 + signum and stop.value.step == at + 1
    assert signal.getsignal(signum) is handler
    assert _lines(tmp_path)[-1]['step'] == at + 1
    state, log = _train(tmp_path, compiled)
    assert log[0][1] == at + 1
    _assert_same(state, whole[1])
    for file in ('metrics.jsonl', 'samples.jsonl'):
        assert (tmp_path / file).read_bytes() == (whole[0] / file).read_bytes()


def test_a_signal_right_after_a_resume_is_no_error(tmp_path, compiled, whole):
    """The state that is to be saved is saved already."""
    with pytest.raises(loop.Interrupted):
        _train(tmp_path, compiled, at_step=lambda step: os.kill(os.getpid(), signal.SIGTERM))

    class Eager(loop.StopRequest):
        def at(self, step):
            return signal.SIGTERM

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'StopRequest', Eager)
        with pytest.raises(loop.Interrupted):
            _train(tmp_path, compiled)
    state, _ = _train(tmp_path, compiled)
    _assert_same(state, whole[1])
    assert (tmp_path / 'metrics.jsonl').read_bytes() == (whole[0] / 'metrics.jsonl').read_bytes()


def test_a_finished_run_has_nothing_left_to_do(tmp_path, compiled, whole):
    _train(tmp_path, compiled)
    state, log = _train(tmp_path, compiled)
    assert log == []
    _assert_same(state, whole[1])
    assert (tmp_path / 'metrics.jsonl').read_bytes() == (whole[0] / 'metrics.jsonl').read_bytes()


def test_a_skipped_step_is_noted_and_the_run_goes_on(tmp_path, compiled):
    state, _ = _train(tmp_path, compiled, bad=(2, 3, 5), log_every=5)
    assert int(state.step) == 10 and int(state.aux['guard']['skips']) == 3
    notes = [line for line in _lines(tmp_path) if line['kind'] == 'note']
    assert [note['step'] for note in notes] == [3, 4, 6]
    assert 'step 3 was skipped: gradient norm nan' in notes[0]['text']
    train = [line['step'] for line in _lines(tmp_path) if line['kind'] == 'train']
    assert train == [3, 4, 5, 6, 10]  # a skipped step always has its line


def test_the_guard_stops_a_hopeless_run_and_resumes_into_the_same(tmp_path, compiled):
    for _ in range(2):
        with pytest.raises(GuardStop, match='3 steps in a row were skipped, the last at step 7'):
            _train(tmp_path, compiled, bad=(4, 5, 6, 7, 8), save_every=2)
        folder = pathlib.Path(tmp_path / 'checkpoints')
        assert sorted(path.name for path in folder.iterdir()) == ['4', '6']
    assert [line['step'] for line in _lines(tmp_path) if line['kind'] == 'note'] == [5, 6, 7]


def test_a_profile_is_written(tmp_path, compiled, whole):
    state, _ = _train(tmp_path, compiled, profile_step=2)
    traces = [path for path in (tmp_path / 'profile').rglob('*.xplane.pb')]
    assert len(traces) == 1 and traces[0].stat().st_size > 1000
    _assert_same(state, whole[1])


def _ranks(folder):
    checkpoints = Checkpoints(folder / 'checkpoints')
    ranks = {c.step: c.metrics['metric'] for c in checkpoints._orbax.checkpoints}
    checkpoints.close()
    evaluated = {line['step']: line['val/loss'] for line in _lines(folder)
                 if line['kind'] == 'eval'}
    return ranks, evaluated


def test_a_checkpoint_is_ranked_by_its_own_evaluation_only(tmp_path, compiled):
    """A state that was never evaluated must not be taken for the best one."""
    _train(tmp_path, compiled, eval_every=4, save_every=1, num_steps=6, keep_last=3)
    ranks, evaluated = _ranks(tmp_path)
    assert ranks[4] == evaluated[4] and ranks[6] == evaluated[6]
    assert ranks[5] > 1e29


def test_a_checkpoint_saved_for_a_signal_gets_its_rank_after_the_resume(tmp_path, compiled):
    with pytest.raises(loop.Interrupted):
        _train(tmp_path, compiled, eval_every=4, save_every=4, at_step=lambda step: (
            os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None))
    assert _ranks(tmp_path)[0][4] > 1e29
    _train(tmp_path, compiled, eval_every=4, save_every=4, num_steps=7)
    ranks, evaluated = _ranks(tmp_path)
    assert ranks[4] == evaluated[4] and ranks[7] == evaluated[7]


@pytest.mark.parametrize('wrong', [dict(num_steps=0), dict(log_every=0), dict(eval_every=-1),
                                   dict(sample_every=-1), dict(save_every=-2),
                                   dict(patience=-1), dict(patience=1),
                                   dict(patience=1, eval_every=2, save_every=4),
                                   dict(profile_step=-1)])
def test_settings_that_make_no_sense(wrong):
    good = dict(num_steps=1, log_every=1, eval_every=0, sample_every=0, save_every=0,
                patience=0, profile_step=0)
    with pytest.raises(InputError, match=f'train.{next(iter(wrong))}'):
        loop.LoopConfig(**good | wrong)


def test_nothing_is_due_but_at_the_end():
    config = loop.LoopConfig(num_steps=7, log_every=1, eval_every=0, sample_every=2, save_every=3,
                             patience=0, profile_step=0)
    assert [step for step in range(8) if config.due(config.eval_every, step)] == [7]
    assert [step for step in range(8) if config.due(config.save_every, step)] == [0, 3, 6, 7]


@pytest.mark.parametrize('losses, end', [
    ((5, 4, 3, 4, 4, 2), 10),   # two behind the best at step 10, and the better one never comes
    ((5, 4, 3, 4, 2, 4), 12),   # a lower one in between begins the count anew
    ((5, float('nan'), float('nan'), 1, 1, 1), 6),  # what is no number is not better
])
def test_patience_ends_a_run_at_an_evaluation(losses, end, tmp_path, compiled, monkeypatch):
    said = {2 * i + 2: x for i, x in enumerate(losses)}
    monkeypatch.setattr(Recorder, 'evaluate', lambda self, state: {
        'val/loss': float(said.get(int(state.step), 9.0))})
    state, _ = _train(tmp_path, compiled, num_steps=12, eval_every=2, save_every=2, patience=2,
                      sample_every=0)
    assert int(state.step) == end
    notes = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()
             if '"note"' in line]
    assert bool(notes) == (end < 12)
    # Run again, it is over; nothing is written twice.
    before = (tmp_path / 'metrics.jsonl').read_bytes()
    state, log = _train(tmp_path, compiled, num_steps=12, eval_every=2, save_every=2, patience=2,
                        sample_every=0)
    assert int(state.step) == end and not [x for x in log if x[0] == 'step']
    assert (tmp_path / 'metrics.jsonl').read_bytes() == before
