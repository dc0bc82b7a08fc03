"""Two processes that train together over gloo are one run: same numbers, same checkpoints."""

import socket
import time

import numpy as np
import pytest
import runs

pytestmark = pytest.mark.multiprocess

SETTINGS = dict(train__num_steps=12, train__log_every=1, train__save_every=3, train__eval_every=4,
                train__sample_every=0, optim__ema_decay=0.9)


def _free_port():
    with socket.socket() as listener:
        listener.bind(('localhost', 0))
        return listener.getsockname()[1]


def _start_pair(arguments):
    group = [f'--coordinator=localhost:{_free_port()}', '--num_processes=2']
    return [runs.start([*arguments, *group, f'--process_id={i}'], devices=2) for i in range(2)]


def _run_pair(arguments):
    """Standard errors of both processes, which must end well."""
    results = [runs.finish(process) for process in _start_pair(arguments)]
    assert [code for code, _, _ in results] == [0, 0], '\n'.join(err for *_, err in results)
    return [err for *_, err in results]


@pytest.fixture(scope='module')
def one(tmp_path_factory, shared_cache, text):
    """The run of a single process with one device."""
    workdir = tmp_path_factory.mktemp('one') / 'run'
    runs.run(runs.argv(workdir, text, **SETTINGS), JAXLLM_CACHE=str(shared_cache))
    return workdir


def _assert_same_numbers(workdir, one):
    got, want = runs.records(workdir), runs.records(one)
    assert [(r['step'], r['kind']) for r in got] == [(r['step'], r['kind']) for r in want]
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() & {'loss', 'nll', 'val/loss', 'val/bits_per_byte', 'grad_norm'}:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-5, err_msg=f'{key} {a["step"]}')
    assert runs.checkpoint_steps(workdir) == runs.checkpoint_steps(one)


def test_two_processes_are_as_one(tmp_path, text, one):
    workdir = tmp_path / 'run'
    first, second = _run_pair(runs.argv(workdir, text, **SETTINGS))
    _assert_same_numbers(workdir, one)
    assert [r['step'] for r in runs.records(workdir, file='samples.jsonl')] == [12] * 4
    assert 'report:' in first and 'report:' not in second  # process 0 alone writes files


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, text, one):
    short, long = (runs.argv(tmp_path / 'run', text, **SETTINGS),
                   runs.argv(tmp_path / 'other', text, **SETTINGS))
    pair = _start_pair(short)
    _wait_for_step(tmp_path / 'run', 7, pair[0])  # the checkpoint of step 3 is complete by then
    for process in pair:
        process.kill()
    assert [runs.finish(process)[0] for process in pair] == [-9, -9]
    _, err = runs.run(short)
    assert 'going on from step' in err
    _assert_same_numbers(tmp_path / 'run', one)

    alone = runs.start(long)
    _wait_for_step(tmp_path / 'other', 7, alone)
    alone.kill()
    assert runs.finish(alone)[0] == -9
    first, _ = _run_pair(long)
    assert 'going on from step' in first
    _assert_same_numbers(tmp_path / 'other', one)


def _wait_for_step(workdir, step, process, timeout_s=200):
    end = time.monotonic() + timeout_s
    file = workdir / 'metrics.jsonl'
    while not (file.exists() and f'{{"step": {step},' in file.read_text()):
        assert process.poll() is None and time.monotonic() < end, process.poll()
        time.sleep(0.002)


@pytest.mark.parametrize('signalled', [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_signal_to_one_process_saves_on_both(tmp_path, text, signalled):
    workdir = tmp_path / 'run'
    # JAX looks for the signal once a second and then agrees on a step, hence a long run.
    arguments = runs.argv(workdir, text, **SETTINGS | dict(train__num_steps=100_000))
    pair = _start_pair(arguments)
    _wait_for_step(workdir, 2, pair[0])
    pair[signalled].terminate()
    results = [runs.finish(process) for process in pair]
    assert [code for code, _, _ in results] == [143, 143], '\n'.join(err for *_, err in results)
    stopped = runs.checkpoint_steps(workdir)[-1]
    assert all(f'at step {stopped:,}' in err for *_, err in results)
    assert runs.records(workdir)[-1]['step'] == stopped


def test_both_processes_stop_where_the_directory_is_taken(tmp_path, text):
    workdir = tmp_path / 'run'
    workdir.mkdir()
    (workdir / 'thesis.txt').write_text('mine')
    results = [runs.finish(process) for process in _start_pair(runs.argv(workdir, text))]
    assert [code for code, _, _ in results] == [2, 2], '\n'.join(err for *_, err in results)
    assert 'holds no run' in results[0][2] and 'process 0' in results[1][2]
    assert sorted(path.name for path in workdir.iterdir()) == ['.lock', 'thesis.txt']
