"""Reward functions, good and bad, in their process; rewards by name."""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxllm.config import section
from jaxllm.errors import GuardStop, InputError
from jaxllm.rl import combine, rewards
from jaxllm.rl.rewards import Answered, FunctionReward, RewardSpec

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def toys_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))


def answered(*responses):
    prompt = ({'role': 'user', 'content': 'Where does Mara live?'},)
    return [Answered(prompt, response, tokens=2 * i + 1, finished=True, fields={'answer': 'Tarn'})
            for i, response in enumerate(responses)]


def spec(name, **settings):
    return RewardSpec('function', f'toy_rewards.{name}', timeout_s=settings.pop('timeout_s', 20.0),
                      on_error=settings.pop('on_error', 'stop'),
                      check_repeat=settings.pop('check_repeat', True), settings=settings)


def failures(folder):
    return [json.loads(line) for line in
            (folder / rewards.FAILURES).read_text(encoding='utf-8').splitlines()]


# ------------------------------------------------------------------ what a config says

def test_settings_are_bound_as_arguments_and_as_a_dataclass():
    with FunctionReward('a', spec('scaled', factor=0.1, offset=1)) as reward:
        got = reward(answered('x', 'y', 'z'))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [1.1, 1.3, 1.5], rtol=1e-6)
    with FunctionReward('b', spec('bonus', amount=2.5, names=['y'])) as reward:
        assert reward(answered('x', 'y')).tolist() == [0.0, 2.5]


@pytest.mark.parametrize('path, settings, said', [
    ('words', {}, 'dotted path'),
    ('no_such_module.f', {}, "no module 'no_such_module'"),
    ('toy_rewards.wrods', {}, "no function 'wrods'; it has .*words"),
    ('toy_rewards.NOT_CALLABLE', {}, 'no function'),
    ('toy_rewards.words', {'factor': 2}, "unexpected keyword argument 'factor'"),
    ('toy_rewards.scaled', {}, "missing .*'factor'.*takes \\*, factor|missing .*'factor'"),
    ('toy_rewards.bonus', {'amout': 1.0}, 'amout'),
    ('toy_rewards.bonus', {'amount': -1.0}, 'expected a number from 0'),
    ('toy_rewards.bonus', {'amount': 'much'}, "not supported between"),
])
def test_what_cannot_be_used_is_said_before_anything_runs(path, settings, said):
    with pytest.raises(InputError, match=said) as error:
        FunctionReward('r', RewardSpec('function', path, settings=settings))
    assert 'config.rewards.r' in str(error.value)


def test_a_module_that_fails_on_import_is_named(tmp_path, monkeypatch):
    (tmp_path / 'broken_toy.py').write_text('import no_such_library\n')
    (tmp_path / 'raising_toy.py').write_text('x = 1 / 0\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match='broken_toy.*no_such_library'):
        FunctionReward('r', RewardSpec('function', 'broken_toy.f'))
    with pytest.raises(InputError, match='raising_toy.*ZeroDivisionError'):
        FunctionReward('r', RewardSpec('function', 'raising_toy.f'))


@pytest.mark.parametrize('values, said', [
    (dict(kind='verifier', path='a.b'), 'kind'),
    (dict(kind='function'), 'needs path'),
    (dict(kind='function', path='a.b', run='runs/x'), 'needs path and no run'),
    (dict(kind='model', path='a.b'), 'needs run'),
    (dict(kind='model', run='runs/x', settings={'a': 1}), 'no settings'),
    (dict(kind='function', path='a.b', weight=math.nan), 'weight'),
    (dict(kind='function', path='a.b', timeout_s=0.0), 'timeout_s'),
    (dict(kind='function', path='a.b', on_error='ignore'), 'on_error'),
    (dict(kind='function', path='a.b', wieght=1.0), 'wieght'),
])
def test_bad_specs_are_refused(values, said):
    with pytest.raises(InputError, match=said):
        section(RewardSpec, values, 'rewards.r')


# ------------------------------------------------------------------ numbers

def test_integer_rewards_are_floats():
    """Invariant 17: rewards of 0.7 sum to 0.7, beside integers too."""
    with FunctionReward('r', spec('obey')) as reward:
        got = reward(answered('ok', 'int', 'bool', 'numpy', 'integer', 'array'))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, [0.7, 3, 1, 0.25, -2, 0.5], rtol=1e-6)
        assert abs(float(reward(answered('ok')).sum()) - 0.7) < 1e-6
        assert reward([]).shape == (0,) and reward([]).dtype == np.float32
    with FunctionReward('r', spec('as_array')) as reward:
        got = reward(answered('x', 'y', 'z'))
        assert got.dtype == np.float32 and got.tolist() == [2, 2, 2]


def test_large_batches_and_noise_go_through():
    big = ['word ' * 2000] * 300        # 3 MB, more than any pipe holds
    with FunctionReward('r', spec('words')) as reward:
        assert reward(answered(*big)).tolist() == [2000] * 300
    with FunctionReward('r', spec('obey')) as reward:
        np.testing.assert_allclose(reward(answered('print', 'stdin', 'ok')), [0.7, 0, 0.7],
                                   rtol=1e-6)


def test_order_and_memory_are_found_out():
    with FunctionReward('r', spec('by_order')) as reward:
        with pytest.raises(GuardStop, match='opposite order.*check_repeat=False'):
            reward(answered('x', 'y', 'z'))
    with FunctionReward('r', spec('counts_calls')) as reward:
        with pytest.raises(GuardStop, match='gave 1.0 and then 2.0'):
            reward(answered('x'))
    with FunctionReward('r', spec('counts_calls', check_repeat=False)) as reward:
        assert reward(answered('x')).tolist() == [1] and reward(answered('x')).tolist() == [2]


# ------------------------------------------------------------------ failures

BAD = [('raise', "KeyError: 'no such city'.*toy_rewards.py, line"), ('exit', 'SystemExit'),
       ('die', 'SIGSEGV'), ('nan', 'nan.*not finite'), ('inf', '-inf.*not finite'),
       ('huge', '1e\\+39.*not finite in float32'), ('big', 'not finite in float32'),
       ('text', "'0.7' of type str.*no number"), ('nothing', 'None of type NoneType'),
       ('short', '0 rewards for 1'), ('long', '2 rewards for 1'), ('none', 'returned None')]


def test_each_failure_stops_and_names_reward_prompt_and_response(tmp_path):
    with FunctionReward('city', spec('obey'), tmp_path) as reward:
        for response, said in BAD:
            with pytest.raises(GuardStop, match=said) as error:
                reward(answered('ok', 'ok', response, 'ok'))
            for part in ("'city'", 'toy_rewards.obey', 'Where does Mara live?', repr(response),
                         'on_error=zero_and_count', str(tmp_path)):
                assert part in str(error.value), (part, error.value)
        # It goes on after every one of them, in a new process if need be.
        np.testing.assert_allclose(reward(answered('ok')), [0.7], rtol=1e-6)
    rows = failures(tmp_path)
    assert len(rows) == 4 * len(BAD)    # all of a batch that stopped: no sample is lost
    bad = [row['response'] for row in rows if row['reason']]
    assert bad == [response for response, _ in BAD]
    assert rows[2]['prompt'][0]['content'] == 'Where does Mara live?'
    assert rows[2]['fields'] == {'answer': 'Tarn'} and rows[2]['tokens'] == 5


def test_rewards_in_a_column_are_no_numbers():
    with FunctionReward('r', spec('obey')) as reward:
        with pytest.raises(GuardStop, match='ndarray, which is no number.*3 records of this batch'):
            reward(answered('ok', 'column', 'ok'))


def test_failures_can_count_as_zero(tmp_path):
    with FunctionReward('r', spec('obey', on_error='zero_and_count'), tmp_path) as reward:
        names = [name for name, _ in BAD if name != 'die']
        mixed = [name for pair in zip(names, ['ok'] * len(names), strict=True) for name in pair]
        got = reward(answered(*mixed))
        np.testing.assert_allclose(got, [0, np.float32(0.7)] * len(names), rtol=1e-6)
        assert reward.failed == len(names)
    assert [row['response'] for row in failures(tmp_path)] == names


@pytest.mark.parametrize('response', ['sleep', 'regex'])
def test_a_hang_is_killed_and_blamed_on_its_record(response, tmp_path):
    with FunctionReward('slow', spec('obey', timeout_s=0.4), tmp_path) as reward:
        start = time.monotonic()
        with pytest.raises(GuardStop, match=f"no answer within 0.4 s.*response '{response}'"):
            reward(answered('ok', response, 'ok'))
        assert time.monotonic() - start < 15
        np.testing.assert_allclose(reward(answered('ok')), [0.7], rtol=1e-6)
    assert [bool(row['reason']) for row in failures(tmp_path)] == [False, True, False]


def test_many_hangs_take_a_limited_time():
    with FunctionReward('r', spec('obey', timeout_s=0.3, on_error='zero_and_count')) as reward:
        got = reward(answered('ok', *['sleep'] * 3, 'ok', 'ok'))
        np.testing.assert_allclose(got[0], 0.7, rtol=1e-6)
        # After three hangs the others are not tried, and are counted.
        assert got[1:].tolist() == [0] * 5 and reward.failed == 5


def test_the_process_is_reused_and_ends_with_its_owner():
    with FunctionReward('r', spec('process')) as reward:
        first, second = reward(answered('x')), reward(answered('y'))
        assert first == second
        assert first != os.getpid()
    assert not pathlib.Path(f'/proc/{int(first[0])}').exists()
    with FunctionReward('r', spec('process')) as reward:
        pid = int(reward(answered('x'))[0])
        os.kill(pid, 9)         # between two batches: started again without a word
        deadline = time.monotonic() + 5
        while b'\0' in pathlib.Path(f'/proc/{pid}/cmdline').read_bytes():
            assert time.monotonic() < deadline
        assert reward(answered('x'))[0] != pid


def test_the_process_dies_with_a_killed_trainer():
    """Even while the function hangs and holds the interpreter's lock."""
    trainer = subprocess.Popen(
        [sys.executable, '-c', '''
import sys, threading
from jaxllm.rl.rewards import Answered, FunctionReward, RewardSpec
reward = FunctionReward('r', RewardSpec('function', 'toy_rewards.obey', check_repeat=False))
print(reward._process._child.pid, flush=True)
reward([Answered((), 'regex', 1)])
'''], stdout=subprocess.PIPE, env=os.environ | {
            'PYTHONPATH': os.pathsep.join([str(HERE), *filter(None, sys.path)])})
    with trainer:
        pid = int(trainer.stdout.readline())
        time.sleep(0.2)
        trainer.kill()
    deadline = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < deadline, 'the worker outlives the trainer'
        time.sleep(0.01)


TRAINER = '''
import os, sys, threading, time
from jaxllm.rl import reward_process
start = reward_process.subprocess.Popen
class Popen(start):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        # A process of the trainer's own that lives on, and holds the pipe to the worker.
        helper = os.fork()
        if not helper:
            os.close(1)
            time.sleep(60)
            os._exit(0)
        print(self.pid, helper, flush=True)
reward_process.subprocess.Popen = Popen
reward_process.FunctionProcess('r', 'toy_rewards.words', {})
time.sleep(60)
'''


@pytest.mark.parametrize('moment_s', [0.0, 0.1, 1.0, 4.0])
def test_no_worker_outlives_a_killed_trainer(moment_s):
    """Whenever it is killed, and also while a process that it forked holds the pipe."""
    trainer = subprocess.Popen([sys.executable, '-c', TRAINER], stdout=subprocess.PIPE,
                               env=os.environ | {'PYTHONPATH': os.pathsep.join(
                                   [str(HERE), *filter(None, sys.path)])})
    with trainer:
        pid, helper = map(int, trainer.stdout.readline().split())
        time.sleep(moment_s)
        trainer.kill()
    try:
        deadline = time.monotonic() + 5
        while _group(pid):
            assert time.monotonic() < deadline, 'the worker outlives the trainer'
            time.sleep(0.01)
    finally:
        os.kill(helper, 9)
        for left in _group(pid):
            os.kill(left, 9)


def _group(pid):
    """Living processes of a process group."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, group = path.read_text().rpartition(')')[2].split()[:3]
        except (OSError, ValueError):
            continue
        found += [int(path.parent.name)] if int(group) == pid and state != 'Z' else []
    return found


def _alive(pid):
    try:
        state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except FileNotFoundError:
        return False
    return state != 'Z'


# ------------------------------------------------------------------ all of them, and combined

class LearnedReward:
    """Stands in for a reward model: float32, one per record."""

    def __init__(self, values):
        self.values = values

    def __call__(self, records):
        return np.asarray(self.values[:len(records)], np.float32)


def test_functions_and_models_are_mixed_in_one_config():
    specs = {name: section(RewardSpec, values, f'rewards.{name}') for name, values in {
        'right': dict(kind='function', path='jaxllm.rl.verifiers.exact_match',
                      settings={'field': 'answer'}, weight=2.0, timeout_s=20.0),
        'helpful': dict(kind='model', run='runs/helpful', weight=0.5),
        'words': dict(kind='function', path='toy_rewards.words', weight=0.0)}.items()}
    opened = rewards.open_rewards(
        specs, open_model=lambda name, spec: LearnedReward([1.0, -1.0, 0.25]))
    try:
        scores = rewards.score_all(opened, answered('Tarn', 'in Tarn', 'tarn.'))
    finally:
        rewards.close_rewards(opened)
    assert {name: x.tolist() for name, x in scores.items()} == {
        'right': [1, 0, 1], 'helpful': [1, -1, 0.25], 'words': [1, 2, 1]}
    assert all(x.dtype == np.float32 for x in scores.values())
    rule = combine.CombineConfig(rule='sum')
    combine.check(rule, specs)
    weights = {name: spec.weight for name, spec in specs.items()}
    got = combine.combine(rule, scores, weights)
    assert got.dtype == np.float32 and got.tolist() == [2.5, -0.5, 2.125]


def test_rewards_that_cannot_be_opened_are_refused():
    with pytest.raises(InputError, match='empty'):
        rewards.open_rewards({})
    with pytest.raises(InputError, match='reward model'):
        rewards.open_rewards({'r': RewardSpec('model', run='runs/x')})


@pytest.mark.parametrize('values, said', [
    ([1.0, 2.0], 'shape \\(2,\\)'), ([1.0, np.nan, 2.0], 'nan.*not finite'),
    ([[1.0], [2.0], [3.0]], 'shape \\(3, 1\\)'), ([1.0, np.inf, 0.0], 'inf')])
def test_a_learned_reward_that_is_no_number_is_named(values, said):
    with pytest.raises(GuardStop, match=f"'learned'.*{said}"):
        rewards.score_all({'learned': LearnedReward(values)}, answered('x', 'y', 'z'))
