"""Reinforcement learning: exact resume, what moves and what does not, rewards that fail, alarms,
prompts and settings that cannot be used."""

import json
import os
import signal
import types

import jax
import numpy as np
import pytest
import runs

from jaxllm.config import load_file
from jaxllm.data import chat, tokenizer
from jaxllm.errors import InputError
from jaxllm.sharding import make_mesh
from jaxllm.stages import base as bases
from jaxllm.stages import compare, compare_setup, reward_model, rl, rl_rewards
from jaxllm.stages.compare_config import artefact, compare_config
from jaxllm.stages.rl_config import OBJECTIVES, function_reward, prompt_source
from jaxllm.stages.training import Trainer

# 8 prompts x 2 samples in batches of 8, twice: 4 steps on each rollout.
PERIOD, STEPS = 4, 24
CONFIG = '''
from jaxllm.stages.rl_config import OBJECTIVES, function_reward, prompt_source, rl_config


def get_config(arg=''):
    config = rl_config(f'jaxllm.objectives.{arg}', OBJECTIVES[arg])
    config.rewards = dict(mine=function_reward('stage_reward.score'))
    config.data.prompts = dict(mine=prompt_source(path=''))
    return config
'''
# What it does is in a file beside it, so that it is repaired without another config: a mode, and
# the file from whose existence on it holds.
REWARD = '''
import pathlib
import time

HERE = pathlib.Path(__file__).parent


def score(records):
    scores = [len(set(record.response)) / 7 + record.tokens / 16 for record in records]
    mode, _, since = (HERE / 'mode').read_text().partition(' ')
    if not mode or not pathlib.Path(since).exists():
        return scores
    if mode == 'raise':
        raise KeyError('no such city')
    if mode in ('hang', 'slow'):
        (HERE / 'asleep').touch()
        time.sleep(60 if mode == 'hang' else 5)
    if mode == 'nan':
        scores[0] = float('nan')
    return scores[1:] if mode == 'short' else scores
'''


@pytest.fixture(scope='module')
def parent(tmp_path_factory, shared_cache, text):
    workdir = tmp_path_factory.mktemp('parent') / 'base'
    runs.run(runs.argv(workdir, text, train__num_steps=2, train__save_every=2, train__eval_every=2,
                       train__sample_every=0, optim__warmup_steps=1, sample__prompts='()'),
             JAXLLM_CACHE=str(shared_cache))
    return workdir


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a config, prompts and a reward function that does well."""
    (tmp_path / 'rl_file.py').write_text(CONFIG)
    (tmp_path / 'stage_reward.py').write_text(REWARD)
    (tmp_path / 'mode').write_text('')
    write_prompts(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_prompts(folder, *others):
    rows = [f'number {i}?' for i in range(24)] + list(others)
    (folder / 'prompts.jsonl').write_text(
        ''.join(json.dumps({'prompt': row}) + '\n' for row in rows))


def argv(folder, parent, *, run='run', method='ppo', **values):
    defaults = dict(
        init_from=parent, data__prompts__mine__path=folder / 'prompts.jsonl',
        data__holdout_share=0.25, rollout__prompts=8, rollout__samples=2, rollout__epochs=2,
        rollout__max_new_tokens=6, rollout__unfinished='reward', rollout__score_batch_size=16,
        train__num_steps=STEPS, train__batch_size=8, train__log_every=1,
        train__eval_every=2 * PERIOD, train__save_every=PERIOD, eval__max_prompts=4, optim__lr=1e-3,
        metrics__tensorboard=False)
    return ['run', f'--config={folder / "rl_file.py"}:{method}', f'--workdir={folder / run}',
            *runs.overrides(**defaults | values)]


@pytest.fixture(scope='module')
def aligned(tmp_path_factory, shared_cache, parent):
    """PPO on a learned reward, at a temperature, with every checkpoint kept: (folder, {name: hashes
    of tensors}) of what is in memory before and after its training."""
    folder, seen = tmp_path_factory.mktemp('aligned'), {}
    (folder / 'rl_file.py').write_text(CONFIG)
    write_prompts(folder)
    (folder / 'pairs.jsonl').write_text(''.join(json.dumps({
        'prompt': f'number {i}?', 'chosen': 'good', 'rejected': f'bad {i}'}) + '\n'
        for i in range(16)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAXLLM_CACHE', str(shared_cache))
        patch.setattr('jaxllm.train.flops.machine_matmul_peak', lambda dtype: 1e11)
        assert runs.run_here([
            'run', f'--config={runs.ROOT}/experiments/reward.py:data={folder / "pairs.jsonl"}',
            f'--workdir={folder / "reward"}', *runs.overrides(
                init_from=parent, train__num_steps=2, train__eval_every=2, train__save_every=2,
                train__batch_size=8, data__seq_len=64, data__holdout_share=0.2,
                reference__prompts=0, optim__warmup_steps=0,
                metrics__tensorboard=False)]) == 0
        fit, opened, scorers = Trainer.fit, rl_rewards.Scorer.opened, []

        def watched_open(self, *args):
            scorers.append(opened(self, *args))
            return scorers[-1]

        def watched_fit(self, *args, frozen, **options):
            hashes = lambda **trees: {name: bases.tensor_hashes(x) for name, x in trees.items()}
            constants = lambda: hashes(ref=frozen['ref'], reward=scorers[0].weights['mine'][0])
            seen['before'] = constants()
            state = fit(self, *args, frozen=frozen, **options)
            seen['after'], seen['trained'] = constants(), hashes(**state.trainable)
            return state
        patch.setattr(rl_rewards.Scorer, 'opened', watched_open)
        patch.setattr(Trainer, 'fit', watched_fit)
        assert runs.run_here(argv(
            folder, parent, train__num_steps=3 * PERIOD, train__eval_every=PERIOD,
            checkpoint__keep_last=9, rollout__temperature=0.7, rewards__mine__kind='model',
            rewards__mine__path='', rewards__mine__run=folder / 'reward')) == 0
    return folder, seen


def test_reference_and_reward_do_not_move(aligned, parent):
    """Invariant 24: to the last bit, though policy and value network begin as copies of them."""
    folder, seen = aligned
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        own = {'ref': bases.load_plain(bases.open_base(parent), mesh),
               'reward': reward_model.open_reward(folder / 'reward').load(mesh)}
    own = {name: bases.tensor_hashes(x) for name, x in own.items()}
    assert seen['before'] == own and seen['after'] == own
    for moved, still in (('policy', 'ref'), ('value', 'reward')):
        assert seen['trained'][moved].keys() == own[still].keys()
        assert seen['trained'][moved] != own[still]


def test_the_kl_begins_at_zero_at_a_temperature(aligned):
    """Invariant 16: exactly, token by token, and in evaluation too; and then it is none."""
    workdir = aligned[0] / 'run'
    (first, *rows), *_, (last, *_) = (runs.records(workdir, file=f'rollouts/{name}')
                                      for name in rollouts(workdir))
    assert first['metrics']['kl'] == 0 == first['metrics']['kl_max'] != last['metrics']['kl']
    assert len(rows) == 16 and all(row['kl'] == 0 for row in rows)
    assert runs.records(workdir, 'eval')[0]['val/kl'] == 0


def compared(folder, **checkpoints):
    """Config of a comparison of models of the run, with a judge that likes long answers."""
    config = compare_config({name: artefact(str(folder / 'run'), checkpoint)
                             for name, checkpoint in checkpoints.items()}, 'ref')
    config.data.prompts = dict(mine=prompt_source(path=str(folder / 'prompts.jsonl')))
    config.data.max_prompts = 8
    config.rewards = dict(long=function_reward('jaxllm.rl.verifiers.length', unit='characters',
                                               target=40, width=40))
    config.sampling.update(max_new_tokens=5, score_batch_size=8)
    config.statistics.draws = 20
    return config


def test_every_checkpoint_of_a_run_is_compared(aligned, tmp_path):
    compare.run(compared(aligned[0], ref='4', ppo='all'), tmp_path)
    results = json.loads((tmp_path / 'results.json').read_text())
    rows = {row['artefact']: row for row in results['rows']}
    assert {name: row['step'] for name, row in rows.items()} == {
        'ref': 4, 'ppo-4': 4, 'ppo-8': 8, 'ppo-12': 12}
    assert all(row['method'] == 'ppo' for name, row in rows.items() if name != 'ref')
    assert rows['ppo-4']['kl']['value'] == pytest.approx(0, abs=1e-4)
    assert abs(rows['ppo-12']['kl']['value']) > 1e-3
    (at_equal,) = results['equal_kl']['rows']
    assert at_equal['at_kl'] == max(row['kl']['value'] for row in rows.values() if row['kl'])


@pytest.mark.parametrize('checkpoints, parts', [
    (dict(ref='4', ppo='6'), ['no checkpoint of step 6', '4, 8, 12', 'keep_last']),
    (dict(ref='7', ppo='all'), ['no checkpoint of step 7', '4, 8, 12']),
    ({'ref': '4', 'ppo': 'all', 'ppo-8': '12'}, ["name 'ppo-8'", 'rename']),
    (dict(ref='4', ppo='-4'), ["'-4' is unknown", 'all'])], ids=str)
def test_a_checkpoint_that_is_not_there(checkpoints, parts, aligned):
    with pytest.raises(InputError) as error:
        compare_setup.prepare(compared(aligned[0], **checkpoints))
    assert all(part in str(error.value) for part in parts), error.value


def said(capsys, arguments, code):
    assert runs.run_here(arguments) == code
    return capsys.readouterr().err.strip().splitlines()[-1]


def rollouts(workdir):
    return {path.name: path.read_bytes() for path in sorted((workdir / 'rollouts').iterdir())}


@pytest.mark.kill
@pytest.mark.parametrize('method, values, moved', [
    ('ppo', dict(objective__kl_target=0.01, objective__kl_horizon=50.0), 'kl_coef'),
    pytest.param('grpo', dict(lora__rank=2, optim__lr=1e-2), 'lora_b', marks=pytest.mark.long)])
def test_kills_in_a_rollout_and_in_updates_leave_no_trace(method, values, moved, folder, parent,
                                                          shared_cache):
    """Invariant 31, with a KL coefficient that moves, and with an adapter."""
    env = dict(JAXLLM_CACHE=str(shared_cache),
               PYTHONPATH=f'{runs.ROOT}{os.pathsep}{folder}')
    values = values | dict(method=method)
    runs.run(argv(folder, parent, run='whole', **values), **env)
    workdir, whole = folder / 'run', folder / 'whole'
    command = argv(folder, parent, **values)
    (folder / 'mode').write_text(f'slow {workdir / "rollouts" / "000000.jsonl"}')
    process = runs.start(command, **env)
    assert runs.wait_for((folder / 'asleep').exists, process)   # the second rollout is scored
    process.kill()
    assert runs.finish(process)[0] == -signal.SIGKILL
    assert runs.checkpoint_steps(workdir)[-1:] in ([], [PERIOD])
    (folder / 'mode').write_text('')
    process = runs.start(command, **env)
    assert runs.wait_for(lambda: PERIOD < runs.last_step(workdir) + 1 < STEPS, process)
    process.kill()
    assert runs.finish(process)[0] == -signal.SIGKILL and not (workdir / 'done.json').exists()
    runs.run(command, **env)
    (workdir / 'samples.jsonl').touch()
    (whole / 'samples.jsonl').touch()
    want = runs.assert_same_run(workdir, whole, STEPS)
    began = 0.05 if moved == 'kl_coef' else 0.0
    assert any(moved in name and np.any(x != began) for name, x in want.items())
    assert rollouts(workdir) == rollouts(whole) and len(rollouts(whole)) == STEPS // PERIOD


@pytest.mark.parametrize('mode, words', [
    ('raise', 'no such city'), ('hang', 'no answer within'), ('nan', 'not finite'),
    ('short', 'it returned')])
def test_a_reward_that_fails_stops_a_run_that_can_go_on(mode, words, folder, parent, capsys):
    """After the function is repaired, or with such records as 0; what was sampled is kept."""
    workdir = folder / 'run'
    values = dict(method='grpo', train__num_steps=8, rewards__mine__timeout_s=20.0)
    (folder / 'mode').write_text(f'{mode} {workdir / "rollouts" / "000000.jsonl"}')
    if mode == 'hang':
        values['rewards__mine__timeout_s'] = 0.5
    error = said(capsys, argv(folder, parent, **values), 3)
    for part in (words, "reward 'mine'", 'prompt', 'start the same command again', 'on_error'):
        assert part in error
    failed = runs.records(workdir, file='rewards/reward_failures.jsonl')
    assert len(failed) == 16 and all('response' in line for line in failed)
    assert list(rollouts(workdir)) == ['000000.jsonl'] and not (workdir / 'done.json').exists()
    if mode == 'raise':
        values |= dict(rewards__mine__on_error='zero_and_count', rewards__mine__timeout_s=10.0)
    else:
        (folder / 'mode').write_text('')
    assert runs.run_here(argv(folder, parent, **values)) == 0
    _, *again = runs.records(workdir, file='rollouts/000001.jsonl')
    assert [line['response'] for line in again] == [line['response'] for line in failed]
    assert (mode == 'raise') == all(line['scores']['mine'] == 0 for line in again)
    error = said(capsys, argv(folder, parent, **values | dict(rewards__mine__weight=2.0)), 2)
    assert 'rewards.mine.weight' in error and 'another config' in error


def test_an_alarm_stops_the_run_which_can_go_on(folder, parent, capsys):
    values = dict(method='grpo', train__num_steps=8, optim__lr=0.3, alarms__warmup=1,
                  alarms__kl_max=1e-6, alarms__recent=1)
    error = said(capsys, argv(folder, parent, alarms__stop=True, **values), 3)
    for part in ('rollout 1: KL', 'nats per sequence', 'alarms.stop=False'):
        assert part in error
    stopped = rollouts(folder / 'run')
    assert len(stopped) == 2        # also the one that gave the alarm, to be looked at
    assert runs.run_here(argv(folder, parent, alarms__stop=False, **values)) == 0
    assert rollouts(folder / 'run') == stopped


def test_prompts_that_are_too_long_are_named_or_counted(folder, parent, capsys):
    write_prompts(folder, 'x' * 200)
    error = said(capsys, argv(folder, parent), 2)
    advice = '--config.data.max_reject_share=0.04'
    for part in ("source 'mine'", '1 of 25 records rejected', '(data.max_reject_share=0)', advice):
        assert part in error
    rejected = (folder / 'run' / 'data' / 'rejects-mine.jsonl').read_text()
    assert 'too long' in rejected and 'max_prompt_tokens' in rejected, rejected
    assert runs.run_here([*argv(folder, parent, method='grpo', train__num_steps=4,
                                train__eval_every=4), advice]) == 0
    (row,) = json.loads((folder / 'run' / 'data' / 'prompts.json').read_text())
    assert row['prompts'] + row['held_out'] == 24


@pytest.mark.parametrize('values, parts', [
    (dict(train__save_every=6), ['train.save_every=6', 'multiple of 4']),
    (dict(train__eval_every=2), ['train.eval_every=2', 'multiple of 4']),
    (dict(train__num_steps=10), ['train.num_steps=10', 'multiple of 4']),
    (dict(train__batch_size=24), ['gives 16 examples', 'train.batch_size=24', 'use a divisor']),
    (dict(rollout__samples=1, method='grpo'), ['rollout.samples=1', 'at least 2']),
    (dict(init_from=''), ['init_from is empty']),
    (dict(rewards__mine__path='stage_reward.none'), ['no function', 'score']),
], ids=str)
def test_settings_that_cannot_be(values, parts, folder, parent, capsys):
    error = said(capsys, argv(folder, parent, **values), 2)
    assert all(part in error for part in parts), error


@pytest.mark.parametrize('method', [name for name in OBJECTIVES if name != 'ppo'])
def test_settings_of_every_method_fit_together(method, folder, parent):
    config = load_file(f'{runs.ROOT}/experiments/grpo.py:method={method},'
                       f'data={folder / "prompts.jsonl"}')
    config.init_from = str(parent)
    rl.make_trainer(config, rl.prepare(config))


def test_a_policy_of_another_world(monkeypatch, tmp_path):
    (tmp_path / 'lineage.json').write_text('{"world": "another"}')
    parents = types.SimpleNamespace(policy=types.SimpleNamespace(path=tmp_path))
    monkeypatch.setattr(rl.rl_models, 'open_parents', lambda *args: parents)
    with pytest.raises(InputError, match='config.init_from: .* has learned the world another'):
        rl.prepare(load_file(f'{runs.ROOT}/experiments/grpo.py'))


def test_a_reward_model_of_another_tokenizer(parent):
    template = chat.load_template('plain')
    byte, char = tokenizer.byte_tokenizer(), tokenizer.char_tokenizer(['abc def'], 300)
    base = type('Base', (), {'path': parent})
    found = reward_model.RewardModel(base, None, 1.0, 0.0, template, byte, {})
    found.check(byte, template)
    with pytest.raises(InputError, match='another tokenizer'):
        found.check(char, template)
