"""A run that is killed at any moment, and goes on, ends as one that nothing happened to."""

import os
import pathlib
import random
import shutil
import signal
import time

import pytest
import runs

pytestmark = pytest.mark.kill

STEPS = 48
SETTINGS = dict(train__num_steps=STEPS, train__save_every=3, train__log_every=1,
                train__eval_every=4, train__sample_every=6, optim__schedule='wsd',
                optim__ema_decay=0.9, train__accum=2)


@pytest.fixture(scope='module')
def whole(tmp_path_factory, shared_cache, text):
    """The run that nothing happened to."""
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    runs.run(runs.argv(workdir, text, **SETTINGS), JAXLLM_CACHE=str(shared_cache))
    return workdir


def _assert_same(workdir, whole, step=STEPS):
    assert any('ema' in name for name in runs.assert_same_run(workdir, whole, step))


def _is_saving(workdir):
    folder = workdir / 'checkpoints'
    return folder.exists() and any('tmp' in path.name for path in folder.iterdir())


@pytest.mark.parametrize('saves, steps', [
    (3, 1), pytest.param(5, 3, marks=pytest.mark.long)], ids=['eight', 'twelve'])
def test_kills_leave_no_trace(saves, steps, tmp_path, text, whole):
    rng = random.Random(0)
    workdir = tmp_path / 'run'
    command = runs.argv(workdir, text, **SETTINGS)
    later = ['start'] + ['save'] * saves + ['step'] * steps
    rng.shuffle(later)
    moments = ['config.json', 'tokenizer', 'data/stores', *later]
    torn = 0
    for number, moment in enumerate(moments):
        # Kills wander from the first step to the last, so that there is work left for all.
        target = STEPS * (number + 1) // (len(moments) + 2)
        log = tmp_path / f'log-{number}'
        with open(log, 'w', encoding='utf-8') as file:
            process = runs.start(command, stderr=file)
        alive = True
        if moment == 'start':
            time.sleep(rng.uniform(0.2, 4.0))
        elif number < 3:  # while the first files come into being
            alive = runs.wait_for((workdir / moment).exists, process)
            time.sleep(rng.uniform(0.0, 0.02))
        else:
            # By then the lines and torn saves of the attempt before are gone.
            alive = runs.wait_for(lambda log=log: 'compiled in' in log.read_text(), process)
            alive = alive and runs.wait_for(lambda at=target: runs.last_step(workdir) >= at,
                                            process)
            if moment == 'save':
                alive = alive and runs.wait_for(lambda: _is_saving(workdir), process)
                time.sleep(rng.uniform(0.0, 0.01))
            else:
                time.sleep(rng.uniform(0.0, 0.03))
        process.kill()
        code, _, _ = runs.finish(process)
        assert alive and code == -signal.SIGKILL, (number, moment, code, log.read_text())
        torn += _is_saving(workdir)
    assert torn >= 1  # kills came in the middle of a save, too
    runs.run(command)
    _assert_same(workdir, whole)
    assert not _is_saving(workdir)


@pytest.mark.parametrize('signum', [
    signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_saves_before_the_run_stops(tmp_path, text, whole, signum):
    workdir = tmp_path / 'run'
    command = runs.argv(workdir, text, **SETTINGS)
    process = runs.start(command)
    assert runs.wait_for(lambda: runs.last_step(workdir) >= 7, process)
    process.send_signal(signum)
    code, _, err = runs.finish(process)
    assert code == 128 + signum, err
    stopped = runs.checkpoint_steps(workdir)[-1]
    assert 7 <= stopped < STEPS and f'at step {stopped}' in err
    assert stopped == runs.records(workdir)[-1]['step']  # nothing that was computed is lost
    _, err = runs.run(command)
    assert f'going on from step {stopped}' in err
    _assert_same(workdir, whole)


def _largest_files(folder, count):
    files = [path for path in folder.rglob('*') if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_size)[-count:]


def _truncate(folder):
    for path in _largest_files(folder, 3):
        os.truncate(path, path.stat().st_size // 2)


def _flip(folder):
    for path in _largest_files(folder, 3):
        content = bytearray(path.read_bytes())
        for i in range(len(content) // 3, 2 * len(content) // 3):
            content[i] ^= 0x5A
        path.write_bytes(content)


def _empty(folder):
    for path in folder.rglob('*'):
        if path.is_file():
            path.unlink()


@pytest.fixture(scope='module')
def half(tmp_path_factory, shared_cache, text):
    """A run that was terminated half-way, as (directory, arguments)."""
    workdir = pathlib.Path(tmp_path_factory.mktemp('half') / 'run')
    command = runs.argv(workdir, text, **SETTINGS)
    process = runs.start(command, JAXLLM_CACHE=str(shared_cache))
    assert runs.wait_for(lambda: runs.last_step(workdir) >= 20, process)
    process.terminate()
    runs.finish(process)
    return workdir


@pytest.mark.parametrize('damage', [
    pytest.param(_truncate, marks=pytest.mark.long), _flip,
    pytest.param(_empty, marks=pytest.mark.long)])
def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(tmp_path, text, whole, half,
                                                                  damage):
    workdir = tmp_path / 'run'
    shutil.copytree(half, workdir)
    *_, older, newest = runs.checkpoint_steps(workdir)
    damage(workdir / 'checkpoints' / str(newest))
    command = runs.argv(workdir, text, **SETTINGS)
    _, err = runs.run(command)
    assert f'checkpoint {newest} could not be read' in err
    assert f'going on from step {older}' in err
    assert (workdir / f'damaged-{newest}').is_dir()
    _assert_same(workdir, whole)
    (note,) = runs.records(workdir, 'note', 'perf.jsonl')
    assert f'checkpoint {newest}' in note['text'] and note['step'] == older
    assert f'damaged-{newest}' in (workdir / 'report.html').read_text()
