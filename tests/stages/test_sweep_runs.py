"""Sweeps and chains as they run: shared parents once, failures, signals, kills, several at once."""

import fcntl
import io
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time

import pytest
import runs

from jaxllm import sweep
from jaxllm.errors import InputError
from jaxllm.report import done
from jaxllm.stages import jobs as job_runs
from jaxllm.stages import sweep as verb
from jaxllm.stages.sweep_runner import Display, Runner

# A stage whose run takes as long as there is no file `go`, and whose output says what made it.
STAGE = '''
import pathlib, signal, time

OUTPUTS = 'out',


def prepare(config):
    pass


def describe(config):
    return f'a toy of {config.text}'


def run(config, workdir):
    with open(workdir / 'starts', 'a') as file:
        file.write('x')
    (workdir / 'lineage.json').write_text('{}')
    stopped = []
    signal.signal(signal.SIGTERM, lambda signum, frame: stopped.append(signum))
    while config.go and not pathlib.Path(config.go).exists():
        if stopped:
            (workdir / 'saved').touch()
            raise SystemExit(143)
        time.sleep(0.02)
    if config.text == 'bad':
        print('first line')
        print('it broke here', flush=True)
        raise SystemExit(3)
    before = (pathlib.Path(config.parent) / 'out').read_text() if config.parent else ''
    (workdir / 'out').write_text(f'{before}{config.text}{config.seed} ')
'''

CONFIG = '''
import ml_collections
from jaxllm.sweep import axis

SEEDS = 5, 6


def get_config(arg=''):
    config = ml_collections.ConfigDict(dict(stage='jaxllm.stages.chain', seed=0))
    step = lambda text, parent='', go='': dict(
        stage='toy_stage', seed=config.get_ref('seed'), text=text, parent=parent, go=go)
    config.steps = ml_collections.ConfigDict(dict(
        last=step('last', '@middle'), base=step('base', go=arg), middle=step('middle', '@base')))
    return config


def get_sweep(arg=''):
    return axis('steps.middle.text', {'good': 'middle', 'worse': 'bad', 'other': 'other'})
'''


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """The folder of the config file chain.py, with a toy stage that can be imported."""
    folder = tmp_path / 'toys'
    folder.mkdir()
    (folder / 'toy_stage.py').write_text(STAGE)
    (folder / 'chain.py').write_text(CONFIG)
    small = CONFIG.replace("last=step('last', '@middle'), ", '').replace(", 'other': 'other'", '')
    (folder / 'small.py').write_text(small)
    (folder / 'good.py').write_text(small.replace('bad', 'other'))
    monkeypatch.syspath_prepend(folder)
    return folder


def files(folder):
    """All files of a sweep but locks and logs."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()
                  and not path.name.endswith(('.lock', 'log.txt')))


def start(toys, workdir, file='good.py', *more):
    """`jaxllm sweep` in a process, whose standard error goes to a file."""
    path = os.pathsep.join((str(runs.ROOT), str(toys)))
    with open(workdir.with_suffix('.err'), 'ab') as err:
        return runs.start(['sweep', f'--config={toys / file}', f'--workdir={workdir}', *more],
                          stderr=err, PYTHONPATH=path)


def wait_for(condition, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, 'nothing happened'
        time.sleep(0.02)


def glob(workdir, pattern):
    return sorted((workdir / 'runs').glob(pattern))


def outputs(workdir):
    """{(arm, seed): what its last step wrote}."""
    table = json.loads((workdir / 'sweep.json').read_text())
    return {(run['arm'], run['seed']): (workdir / run['steps']['middle'] / 'out').read_text()
            for run in table['runs']}


# A chain, in this process.

def test_a_chain_runs_its_steps_once_and_can_be_moved(toys, tmp_path, capsys):
    command = ['run', f'--config={toys / "chain.py"}']
    assert runs.run_here([*command, '--dry_run']) == 0
    out = capsys.readouterr().out
    assert re.search('step 1 of 3: base\n.*a toy of base.*middle, after base.*last, after middle',
                     out, re.DOTALL)
    assert runs.run_here([*command, f'--workdir={tmp_path / "a"}']) == 0
    assert (tmp_path / 'a' / 'last' / 'out').read_text() == 'base0 middle0 last0 '
    assert json.loads((tmp_path / 'a' / 'done.json').read_text())['stage'] == sweep.CHAIN
    shutil.move(tmp_path / 'a', tmp_path / 'b')
    (tmp_path / 'b' / 'last' / 'out').unlink()  # without it, the step is not done
    assert runs.run_here([*command, f'--workdir={tmp_path / "b"}']) == 0
    assert 'step 2 of 3: middle is done' in capsys.readouterr().err
    assert (tmp_path / 'b' / 'last' / 'out').read_text() == 'base0 middle0 last0 '
    starts = {step: (tmp_path / 'b' / step / 'starts').read_text()
              for step in ('base', 'middle', 'last')}
    assert starts == {'base': 'x', 'middle': 'x', 'last': 'xx'}
    assert runs.run_here([*command, '--config.seed=1', f'--workdir={tmp_path / "b"}']) == 2
    assert 'another config' in capsys.readouterr().err
    tries = [(row['step'], row['event']) for row in map(
        json.loads, (tmp_path / 'b' / 'steps.jsonl').read_text().splitlines())]
    assert tries == [(step, event) for step in ('base', 'middle', 'last', 'last')
                     for event in ('begin', 'end')]
    assert '3 of 3 steps done' in (tmp_path / 'b' / 'report.html').read_text()


def test_a_step_is_done_only_if_what_it_starts_from_is(toys, tmp_path, capsys):
    command = ['run', f'--config={toys / "chain.py"}', f'--workdir={tmp_path / "a"}']
    assert runs.run_here(command) == 0
    (tmp_path / 'a' / 'middle' / 'out').unlink()
    capsys.readouterr()
    assert runs.run_here(command) == 0
    assert 'base is done' in capsys.readouterr().err
    starts = {step: (tmp_path / 'a' / step / 'starts').read_text()
              for step in ('base', 'middle', 'last')}
    assert starts == {'base': 'x', 'middle': 'xx', 'last': 'xx'}
    (tmp_path / 'a' / 'base' / 'done.json').write_text('')
    assert runs.run_here(command) == 2
    assert 'base/done.json is empty' in capsys.readouterr().err


def test_a_chain_stops_at_a_step_that_fails(toys, tmp_path):
    code = runs.run_here(['run', f'--config={toys / "chain.py"}', f'--workdir={tmp_path / "a"}',
                          '--config.steps.middle.text=bad'])
    assert code == 3
    assert (tmp_path / 'a' / 'base' / 'done.json').exists()
    assert not (tmp_path / 'a' / 'middle' / 'done.json').exists()
    assert not (tmp_path / 'a' / 'last').exists() and not (tmp_path / 'a' / 'done.json').exists()
    assert json.loads((tmp_path / 'a' / 'steps.jsonl').read_text().splitlines()[-1])[
        'event'] == 'stop'
    assert '1 of 3 steps done; next: middle' in (tmp_path / 'a' / 'report.html').read_text()


def test_expected_seconds_are_of_the_steps(toys, capsys):
    command = ['run', f'--config={toys / "good.py"}', '--dry_run']
    end = '    return config\n'
    text = (toys / 'good.py').read_text().replace(
        end, f'    config.expected_s = dict(base=3, middle=0)\n{end}')
    (toys / 'good.py').write_text(text)
    assert runs.run_here(command) == 2
    assert 'above 0 for each of base, middle' in capsys.readouterr().err


# Plans, in this process.

def test_a_plan_names_lines_and_jobs(toys):
    plan = verb.make_plan([f'--config={toys / "chain.py"}'])
    assert [(row.arm, row.seed) for row in plan.rows] == [
        (arm, seed) for seed in (5, 6) for arm in ('good', 'worse', 'other')]
    assert len(plan.jobs) == 2 * (1 + 3 + 3)
    assert {plan.jobs[row.steps['last']].config['seed'] for row in plan.rows[:3]} == {5}
    labels = plan.labels()
    assert labels[plan.rows[0].steps['base']] == 'base of all arms, seed 5'
    assert labels[plan.rows[4].steps['last']] == 'last of worse, seed 6'
    text = verb.describe(plan, plan.jobs, 2)
    assert '3 arms x 2 seeds, 14 different jobs, 2 at once' in text
    assert f'   4  worse  seed 6  base={plan.rows[4].steps["base"]}' in text


@pytest.mark.parametrize('old, new, argv, message', [
    ('steps.middle.text', 'steps.middle.txet', [],
     "'good' sets steps.middle.txet, which is unknown; did you mean steps.middle.text"),
    ("'other': 'other'", "'other': 7", [], 'expected str'),
    ("'other': 'other'", "'other': 'bad'", [], "'worse' and 'other' are equal"),
    ("axis('steps", "2 * axis('steps", [], "2 arms are called 'good'"),
    ('steps.middle.text', 'seed', [], 'give seeds as --seeds'),
    ('toy_stage', 'toy_stgae', [], "'toy_stgae' is no module"),
    ('toy_stage', '.toy_stage', [], "'.toy_stage' is no module"),
    ('return axis', 'axis', [], r'get_sweep\(\) returned None'),
    ('', '', ['--config.steps.middle.text=x'], "steps.middle.text is set by arm 'good'"),
])
def test_wrong_sweeps_are_found_before_anything_starts(toys, old, new, argv, message):
    file = toys / 'wrong.py'
    file.write_text(CONFIG.replace(old, new) if old else CONFIG)
    with pytest.raises(InputError, match=message):
        verb.make_plan([f'--config={file}', *argv])


@pytest.mark.parametrize('argv, message', [
    (['--seeds=1,x'], 'expected whole numbers'),
    (['--seeds=1,1'], 'has a seed twice'),
    (['--arm=6'], 'has lines 0 to 5'),
    (['--jobs=0'], 'must be at least 1'),
    (['--sedes=3'], 'overrides look like'),
])
def test_wrong_arguments_of_a_sweep(toys, tmp_path, capsys, argv, message):
    workdir = tmp_path / 'sweep'
    assert runs.run_here(['sweep', f'--config={toys / "chain.py"}', f'--workdir={workdir}',
                          *argv]) == 2
    assert message in capsys.readouterr().err and not workdir.exists()
    workdir.mkdir()
    (workdir / 'thesis.txt').touch()
    assert runs.run_here(['sweep', f'--config={toys / "chain.py"}', f'--workdir={workdir}']) == 2
    assert 'holds no sweep' in capsys.readouterr().err
    assert [path.name for path in workdir.iterdir()] == ['thesis.txt']


# The runner in this process; jobs are little scripts that take no time to start.

JOB = '''
import hashlib, json, os, sys, time
folder = sys.argv[1]
config = json.load(open(folder + '/config.json'))
print('cores', sorted(os.sched_getaffinity(0)), 'session', os.getsid(0) == os.getpid())
with open(folder + '/starts', 'a') as file:
    file.write('x')
print('from', config['parent'], flush=True)
time.sleep(config['sleep'])
if config['code']:
    sys.exit(config['code'])
fingerprint = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
mark = {'fingerprint': fingerprint, 'seconds': 0.1, 'outputs': [], 'inputs': {}}
open(folder + '/done.tmp', 'w').write(json.dumps(mark))
os.rename(folder + '/done.tmp', folder + '/done.json')
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run({name: (parents, seconds, exit code)}) -> (exit code, states, what was shown, folder)."""
    monkeypatch.setattr(job_runs.JobRun, 'command', lambda self: [
        sys.executable, '-S', '-c', JOB, str(self.folder)])

    def run(jobs, processes=2, signals=()):
        jobs = {name: sweep.Job(name, 'toy', {'parent': ''.join(f'@{need}' for need in needs),
                                              'sleep': sleep, 'code': code}, needs)
                for name, (needs, sleep, code) in jobs.items()}
        folder, shown = tmp_path / 'runs', io.StringIO()
        display = Display({name: f'job {name}' for name in jobs}, shown)
        runner = Runner(jobs, folder, processes, display)
        timers = [threading.Timer(after_s, os.kill, (os.getpid(), signum))
                  for after_s, signum in signals]
        for timer in timers:
            timer.start()
        code = runner.run()
        for timer in timers:
            timer.join()
        return code, dict(runner.state), shown.getvalue(), folder

    (tmp_path / 'runs').mkdir()
    return run


def test_jobs_wait_for_their_parents_and_have_cores_of_their_own(run):
    code, state, shown, folder = run({'a': ((), 0.3, 0), 'b': ((), 0.3, 0), 'c': (('a',), 0, 0)})
    assert code == 0 and set(state.values()) == {'done'}
    logs = {name: (folder / name / 'log.txt').read_text() for name in 'abc'}
    assert f'from {folder / "a"}' in logs['c']
    assert all('session True' in log for log in logs.values())
    cores = [set(re.findall(r'\d+', logs[name].split('session')[0])) for name in 'ab']
    mine = os.sched_getaffinity(0)
    if len(mine) > 1:
        assert not cores[0] & cores[1]
    assert cores[0] | cores[1] <= {str(core) for core in mine}
    assert os.sched_getaffinity(0) == mine
    assert shown.index('started  job c') > shown.index('done     job a (a)')
    assert 'jobs: 3 done' in shown
    again = run({'a': ((), 0.3, 0), 'b': ((), 0.3, 0), 'c': (('a',), 0, 0)})
    assert again[0] == 0 and '3 of them done before' in again[2]
    assert (folder / 'a' / 'starts').read_text() == 'x'


def test_a_failure_stops_only_what_needs_it(run):
    code, state, shown, folder = run({
        'a': ((), 0, 0), 'b': (('a',), 0, 3), 'c': (('b',), 0, 0), 'd': (('c',), 0, 0),
        'e': (('a',), 0.3, 0), 'f': (('e',), 0, 0)})
    assert code == 3
    assert state == {'a': 'done', 'b': 'failed', 'c': 'not run', 'd': 'not run', 'e': 'done',
                     'f': 'done'}
    assert 'FAILED   job b (b): exit code 3' in shown and f'| from {folder / "a"}' in shown
    assert '3 done, 1 failed, 2 not run' in shown and not (folder / 'c').exists()


def test_a_job_whose_parent_is_not_done_is_not_done(run):
    jobs = {'a': ((), 0, 0), 'b': (('a',), 0, 0), 'c': (('b',), 0, 0), 'd': ((), 0, 0)}
    *_, folder = run(jobs)
    (folder / 'b' / 'done.json').unlink()
    code, state, shown, _ = run(jobs)
    assert code == 0 and '4 jobs, 2 of them done before' in shown
    assert [(folder / name / 'starts').read_text() for name in 'abcd'] == ['x', 'xx', 'xx', 'x']


def test_what_another_process_does_is_waited_for(run, tmp_path):
    lock = open(tmp_path / 'runs' / '.a.lock', 'w', encoding='utf-8')
    fcntl.flock(lock, fcntl.LOCK_EX)

    def elsewhere():
        (tmp_path / 'runs' / 'a' / 'config.json').write_text('{"stage": "toy"}')
        done.write(tmp_path / 'runs' / 'a', {'stage': 'toy'}, 2.0, (), {})
        lock.close()

    timer = threading.Timer(0.3, elsewhere)
    timer.start()
    code, state, shown, folder = run({'a': ((), 0, 9), 'b': (('a',), 0, 0), 'c': (('b',), 0, 0)})
    timer.join()
    assert code == 0 and set(state.values()) == {'done'}
    assert not (folder / 'a' / 'starts').exists() and (folder / 'c' / 'starts').exists()
    assert shown.count('waiting  job a (a): another process runs it') == 1
    assert 'done     job a (a) by another process' in shown


def test_a_job_that_is_all_there_is_has_all_cores(run):
    *_, folder = run({'a': ((), 0, 0), 'b': (('a',), 0, 0), 'c': (('a',), 0, 0)})
    cores = {name: len(re.findall(r'\d+', (folder / name / 'log.txt').read_text().split(']')[0]))
             for name in 'abc'}
    assert cores['a'] == len(os.sched_getaffinity(0)) >= cores['b'] + cores['c'] - 1


def test_an_end_without_a_mark_or_by_a_signal_is_a_failure(run, monkeypatch):
    command = [sys.executable, '-S', '-c', 'pass']
    monkeypatch.setattr(job_runs.JobRun, 'command', lambda self: command)
    assert run({'a': ((), 0, 0)})[0] == 1
    command[-1] = 'import os; os.kill(os.getpid(), 9)'
    assert run({'a': ((), 0, 0)})[0] == 137


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_jobs(run, signum):
    before = signal.getsignal(signum)
    began = time.monotonic()
    code, state, shown, folder = run({'a': ((), 30, 0), 'b': ((), 30, 0), 'c': (('a',), 0, 0)},
                                     signals=[(0.3, signum)])
    assert code == 128 + signum and set(state.values()) == {'to do'}
    assert time.monotonic() - began < 10 and signal.getsignal(signum) == before
    assert 'the same command goes on' in shown and not (folder / 'c').exists()


def test_a_second_signal_ends_jobs_that_do_not_listen(run, monkeypatch):
    deaf = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(30)'
    monkeypatch.setattr(job_runs.JobRun, 'command',
                        lambda self: [sys.executable, '-S', '-c', deaf])
    began = time.monotonic()
    code, *_ = run({'a': ((), 0, 0)}, signals=[(0.3, signal.SIGTERM), (0.6, signal.SIGINT)])
    assert code == 143 and 0.5 < time.monotonic() - began < 10


def test_an_error_of_the_sweep_ends_its_jobs_and_is_not_hidden(run, monkeypatch):
    class Broken(Display):
        def update(self):
            raise ValueError('no room on the screen')

    monkeypatch.setattr('test_sweep_runs.Display', Broken)
    ended = []
    monkeypatch.setattr(os, 'killpg', lambda pid, signum: (
        ended.append(signum), os.kill(pid, signum), os.waitid(os.P_PID, pid, os.WEXITED),
        os.kill(pid, signum)))
    with pytest.raises(ValueError, match='no room'):
        run({'a': ((), 30, 0)})
    assert ended == [signal.SIGKILL]


def test_a_terminal_sees_one_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    jobs = {'a': sweep.Job('a', 'toy', {}, ())}
    with Display({'a': 'base of all arms, seed 0'}, shown) as display:
        runner = Runner(jobs, pathlib.Path('/nonexistent'), 1, display)
        display.start(runner)
        runner.state['a'], runner.slots[0] = 'running', 'a'
        display.update()
        display.line('a line')
    assert 'sweep 0/1' in shown.getvalue() and 'base of all arms, seed 0' in shown.getvalue()


# Whole sweeps in processes of their own.

def test_a_failed_arm_in_a_whole_sweep(toys, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join((str(runs.ROOT), str(toys))))
    workdir = tmp_path / 's'
    assert runs.run_here(['sweep', f'--config={toys / "small.py"}', f'--workdir={workdir}',
                          '--seeds=5']) == 3
    err = capsys.readouterr().err
    assert 'FAILED   middle of worse, seed 5' in err and '| it broke here' in err
    assert '2 done, 1 failed' in err and '1 of 3 jobs of the sweep are not done' in err
    assert 'worse, seed 5: middle' in (workdir / 'report.html').read_text()
    assert [path.read_text() for path in glob(workdir, '*/starts')] == ['x'] * 3
    # A job that was killed, as for want of memory, is a failure like any other.
    (workdir / 'report.html').unlink()
    monkeypatch.setattr(Runner, 'run', lambda self: 137)
    assert runs.run_here(['sweep', f'--config={toys / "small.py"}', f'--workdir={workdir}',
                          '--seeds=5']) == 137
    assert (workdir / 'report.html').exists()


def test_a_sweep_goes_on_as_it_began(toys, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Runner, 'run', lambda self: ran.append(list(self.runs)) or 0)
    ran, workdir = [], tmp_path / 's'
    command = ['sweep', f'--config={toys / "good.py"}', f'--workdir={workdir}']
    table = lambda: json.loads((workdir / 'sweep.json').read_text())
    assert runs.run_here([*command, '--seeds=5,6']) == 0
    began = table()
    assert [len(jobs) for jobs in ran] == [6] and began['began']['rules'] == []
    assert runs.run_here([*command, '--seeds=7']) == 0
    assert [len(jobs) for jobs in ran] == [6, 3] and table()['seeds'] == [5, 6, 7]
    assert [run['seed'] for run in table()['runs']] == [5, 5, 6, 6, 7, 7]
    assert all(run in table()['runs'] for run in began['runs'])
    before, text = table(), (toys / 'good.py').read_text()
    for old, new, more, message in (
            ("'other'", "'another'", [], 'differs in arms'),
            ('', '', ['--config.steps.base.text=b'], 'differs in overrides'),
            ("step('base'", "step('b'", [], "the settings of arm 'good', seed 5")):
        (toys / 'good.py').write_text(text.replace(old, new) if old else text)
        capsys.readouterr()
        assert runs.run_here([*command, '--seeds=8', *more]) == 2
        assert message in capsys.readouterr().err and table() == before
    (toys / 'good.py').write_text(f'{text}\n# a remark')
    (toys / 'good.py').rename(toys / 'elsewhere.py')
    command[1] = f'--config={toys / "elsewhere.py"}'
    capsys.readouterr()
    assert runs.run_here([*command, '--seeds=5']) == 2
    assert 'differs in config' in capsys.readouterr().err
    (toys / 'elsewhere.py').write_text(text)  # moved, and the same
    assert runs.run_here([*command, '--seeds=5']) == 0
    assert table() == before | {'config': str(toys / 'elsewhere.py')}
    assert len(ran) == 3


def test_a_killed_sweep_leaves_no_orphan_and_goes_on(toys, tmp_path):
    workdir, go = tmp_path / 's', tmp_path / 'go'
    arguments = (f'good.py:{go}', '--seeds=5')
    process = start(toys, workdir, *arguments)
    wait_for(lambda: glob(workdir, '*/starts'))
    (base,) = glob(workdir, '*/starts')
    process.kill()
    runs.finish(process)
    wait_for((base.parent / 'saved').exists)  # the job noticed
    assert not (base.parent / 'done.json').exists()
    go.touch()
    code, out, _ = runs.finish(start(toys, workdir, *arguments))
    assert code == 0, (tmp_path / 's.err').read_text()
    assert outputs(workdir) == {('good', 5): 'base5 middle5 ', ('worse', 5): 'base5 other5 '}
    assert base.read_text() == 'xx'
    (base.parent / 'saved').unlink()
    whole = ['config.json', 'done.json', 'lineage.json', 'out', 'starts']
    folders = [path.name for path in glob(workdir, 'toy_stage-*')]
    assert len(folders) == 3
    assert files(workdir) == sorted(['report.html', 'sweep.json'] + [
        f'runs/{folder}/{name}' for folder in folders for name in whole])


def test_two_processes_share_a_parent(toys, tmp_path):
    workdir, go = tmp_path / 's', tmp_path / 'go'
    arguments = (f'good.py:{go}', '--seeds=5', '--jobs=1')
    both = [start(toys, workdir, *arguments, f'--arm={arm}') for arm in (0, 1)]
    log = tmp_path / 's.err'
    wait_for(lambda: 'another process runs it' in log.read_text())
    go.touch()
    assert [runs.finish(process)[0] for process in both] == [0, 0], log.read_text()
    assert outputs(workdir) == {('good', 5): 'base5 middle5 ', ('worse', 5): 'base5 other5 '}
    assert [path.read_text() for path in glob(workdir, '*/starts')] == ['x'] * 3


def test_a_run_by_hand_is_waited_for(toys, tmp_path):
    """The lock of `jaxllm run` counts as much as that of a sweep."""
    plan = verb.make_plan([f'--config={toys / "good.py"}'])
    job = next(iter(plan.jobs.values()))
    (tmp_path / job.name).mkdir()
    run, other = job_runs.JobRun(job, tmp_path), job_runs.JobRun(job, tmp_path)
    with open(tmp_path / job.name / '.lock', 'w', encoding='utf-8') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not run.claim()
    assert run.claim() and not other.claim()
    run.release()
    assert other.claim()
    other.release()


PRETRAIN = '''
from jaxllm import config as configs
from jaxllm.sweep import axis


def get_config(arg=''):
    return configs.load_file({file!r} + ':smoke,text=' + arg)


def get_sweep(arg=''):
    return axis('optim.lr', {{'low': 1e-4, 'high': 1e-2}})
'''


@pytest.mark.parametrize('stage', ['.pretrain', 'jaxllm..stages', 'jaxllm.stages.pertrain'])
def test_a_stage_that_is_no_module(capsys, stage):
    assert runs.run_here(['run', f'--config={runs.PRETRAIN}:smoke', f'--config.stage={stage}',
                          '--dry_run']) == 2
    err = capsys.readouterr().err
    assert f'config.stage={stage!r} is no' in err and err.count('\n') == 1


def test_one_of_two_arms_of_pretraining(tmp_path, text, shared_cache):
    file = tmp_path / 'two.py'
    file.write_text(PRETRAIN.format(file=str(runs.PRETRAIN)))
    workdir = tmp_path / 's'
    runs.run(['sweep', f'--config={file}:{text}', f'--workdir={workdir}', '--seeds=3', '--arm=1',
              *runs.overrides(tokenizer__kind='byte', tokenizer__vocab_size=288,
                              metrics__tensorboard=False, train__num_steps=2, train__batch_size=2,
                              train__eval_every=2, train__save_every=2, train__sample_every=0,
                              eval__max_rows=2, model__num_layers=1, data__seq_len=16,
                              optim__warmup_steps=0, train__log_every=1,
                              sample__prompts='()')],
             JAXLLM_CACHE=str(shared_cache))
    table = json.loads((workdir / 'sweep.json').read_text())
    low, high = [workdir / run['steps']['pretrain'] for run in table['runs']]
    assert not low.exists() and list(runs.losses(high)) == [1, 2]
    assert json.loads((high / 'config.json').read_text())['optim']['lr'] == 1e-2
    page = (workdir / 'report.html').read_text()
    assert 'val/loss' in page and 'validation loss' in page and 'low, seed 3: pretrain' in page
    assert f'href="runs/{high.name}/report.html"' in page
