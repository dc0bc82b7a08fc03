"""Reward runs: learning an order, scale and scoring, exact resume, adapters, bad input."""

import json
import signal

import jax
import numpy as np
import pytest
import runs

from jaxllm.data import chat, tokenizer
from jaxllm.errors import InputError
from jaxllm.sharding import make_mesh
from jaxllm.stages import base as bases
from jaxllm.stages.reward_model import features, open_reward, score

REWARD = runs.ROOT / 'experiments' / 'reward.py'


def write_rankings(path, count=48):
    """The more often a response says `good`, the better it is."""
    with open(path, 'w', encoding='utf-8') as file:
        for i in range(count):
            shift = i % 3
            texts = [('good ' * k + 'bad ' * (2 - k)).strip() for k in range(3)]
            file.write(json.dumps({
                'prompt': f'number {i} please', 'responses': texts[shift:] + texts[:shift],
                'ranks': [3 - (k + shift) % 3 for k in range(3)], 'rater': 'ab'[i % 2],
                'id': f'r{i}'}) + '\n')
    return path


def argv(workdir, parent, data, *, arg='', **values):
    defaults = dict(init_from=parent, train__num_steps=6, train__log_every=1, train__eval_every=2,
                    train__save_every=2, train__patience=0, train__batch_size=8,
                    data__seq_len=96, optim__warmup_steps=1, data__holdout_share=0.2,
                    reference__prompts=4, reference__max_new_tokens=4, metrics__tensorboard=False)
    config = f'{REWARD}:data={data}' + (f',{arg}' if arg else '')
    return ['run', f'--config={config}', f'--workdir={workdir}',
            *runs.overrides(**defaults | values)]


@pytest.fixture(scope='module')
def parent(tmp_path_factory, shared_cache, text):
    workdir = tmp_path_factory.mktemp('parent') / 'base'
    runs.run(runs.argv(workdir, text, train__num_steps=4, train__save_every=2), devices=8,
             JAXLLM_CACHE=str(shared_cache))
    return workdir


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_rankings(tmp_path_factory.mktemp('data') / 'rankings.jsonl')


@pytest.fixture(scope='module')
def trained(tmp_path_factory, shared_cache, parent, data):
    """A run to its end, long enough to learn."""
    workdir = tmp_path_factory.mktemp('trained') / 'reward'
    runs.run(argv(workdir, parent, data, train__num_steps=40, train__eval_every=20,
                  train__save_every=20, optim__lr=5e-3), devices=8,
             JAXLLM_CACHE=str(shared_cache))
    return workdir


def test_it_learns_an_order_and_says_how_well(trained):
    evals = runs.records(trained, 'eval')
    assert evals[-1]['val/pair_accuracy'] > 0.95
    assert evals[0]['val/loss'] > 0.5 and evals[-1]['val/loss'] < 0.2
    quality = json.loads((trained / 'quality.json').read_text())
    assert quality['accuracy']['value'] > 0.9 and quality['pairs'] == 3 * quality['comparisons']
    best = min(evals, key=lambda line: line['val/loss'])
    np.testing.assert_allclose(quality['accuracy']['value'], best['val/pair_accuracy'])
    report = (trained / 'report.html').read_text()
    for words in ('Quality of the reward', 'Expected and observed win rates', 'Reward and length'):
        assert words in report
    held = runs.records(trained, file='held_out.jsonl')
    assert {row['rater'] for row in held} == {'a', 'b'}


def test_the_scale_and_what_is_scored(trained):
    """Rewards of reference samples have mean 0 and std 1; training's score is scoring's score."""
    found = open_reward(trained)
    record = json.loads((trained / 'reward.json').read_text())
    np.testing.assert_allclose([found.gain * record['mean'] + found.bias,
                                found.gain * record['std']], [0, 1], atol=1e-6)
    assert record['samples'] == 4 and found.base.step == record['step']
    mesh = make_mesh()
    params = found.load(mesh)
    held = runs.records(trained, file='held_out.jsonl')
    rows = [found.encode([{'role': 'user', 'content': row['prompt']}], text)
            for row in held for text in row['responses']]
    rewards = found.normalise(score(params, found.model, rows, mesh=mesh))
    np.testing.assert_allclose(rewards, [x for row in held for x in row['rewards']], rtol=1e-4,
                               atol=1e-4)
    # What the head reads is what a score is made of.
    hidden = features(params, found.model, rows, mesh=mesh)
    kernel, bias = (np.asarray(params['head'][name]) for name in ('kernel', 'bias'))
    np.testing.assert_allclose(found.normalise(hidden @ kernel + bias), rewards, atol=1e-4)
    alone = found.normalise(score(params, found.model, rows[:1], batch_size=8, mesh=mesh))
    np.testing.assert_allclose(alone, rewards[:1], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match='no token'):
        score(params, found.model, [[1], []], mesh=mesh)


def test_a_policy_of_another_tokenizer_or_template_is_refused(trained, tmp_path):
    found = open_reward(trained)
    open_reward(trained, found.tokenizer, found.template)
    other = tokenizer.char_tokenizer(['abc def'], 300)
    with pytest.raises(InputError, match='another tokenizer'):
        open_reward(trained, other, found.template)
    for template in (None, chat.load_template('plain')):
        with pytest.raises(InputError, match='template'):
            open_reward(trained, found.tokenizer, template)
    with pytest.raises(InputError, match='no reward.json'):
        open_reward(tmp_path)


def test_a_reward_model_is_no_policy(trained):
    with pytest.raises(InputError, match='reward model'):
        bases.load_plain(bases.open_base(trained), make_mesh())


def test_an_adapter_with_its_head(tmp_path, parent, data):
    workdir = tmp_path / 'run'
    assert runs.run_here(argv(workdir, parent, data, arg='lora', lora__rank=3)) == 0
    found = open_reward(workdir)
    names = set(runs.checkpoint(workdir, found.base.step)[0])
    saved = [name for name in names if name.startswith("['params']")]
    assert any("['head']['kernel']" in name for name in saved)
    assert all('lora_' in name or "['head']" in name for name in saved)
    params = found.load(make_mesh())
    whole = bases.load_plain(bases.open_base(parent), make_mesh())
    np.testing.assert_array_equal(params['model']['embed']['tokens'], whole['embed']['tokens'])
    assert 'lora_a' in params['model']['layers']['layer_0']['attention']['q']


@pytest.mark.kill
def test_killed_and_resumed_is_the_same_run(tmp_path, parent, data, shared_cache):
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    cache = dict(JAXLLM_CACHE=str(shared_cache))
    runs.run(argv(whole, parent, data, train__num_steps=8), **cache)
    command = argv(cut, parent, data, train__num_steps=8)
    process = runs.start(command, **cache)
    assert runs.wait_for(lambda: runs.last_step(cut) >= 4, process)
    process.send_signal(signal.SIGKILL)
    assert runs.finish(process)[0] == -signal.SIGKILL
    assert not (cut / 'done.json').exists()
    runs.run(command, **cache)
    runs.assert_same_run(cut, whole, 8)
    for name in ('quality.json', 'reward.json'):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def _pairs(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def test_bad_input_is_told_before_training(tmp_path, parent, data, capsys):
    pair = lambda i: {'prompt': f'p{i}', 'chosen': 'yes it is', 'rejected': 'no'}
    long = _pairs(tmp_path / 'long.jsonl', [pair(i) | {'chosen': 'x' * 300} for i in range(9)])
    same = _pairs(tmp_path / 'same.jsonl', [pair(0) for _ in range(9)])
    for arguments, words in (
            (argv(tmp_path / 'a', parent, data, arg='loss=bradley_terry'), 'plackett_luce'),
            (argv(tmp_path / 'b', parent, data, arg='loss=elo'), 'unknown'),
            (argv(tmp_path / 'c', parent, long), 'too long'),
            (argv(tmp_path / 'd', parent, same), '1 different prompt'),
            (argv(tmp_path / 'e', '', data), 'init_from is empty'),
            (argv(tmp_path / 'f', parent, tmp_path / 'none.jsonl'), 'none.jsonl'),
            (argv(tmp_path / 'g', parent, data, reference__temperature=0.0), 'temperature')):
        assert runs.run_here(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and 'Traceback' not in error
    assert jax.device_count() == 8
