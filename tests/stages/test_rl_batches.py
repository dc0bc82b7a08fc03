"""What rollouts share and leave out, by method, batch size, micro-batches and devices."""

import dataclasses
import types

import jax
import pytest

from jaxllm.objectives import grpo, online_dpo, ppo
from jaxllm.rl.rollout import RolloutConfig
from jaxllm.sharding import make_mesh
from jaxllm.stages import rl_batches
from jaxllm.stages.rl_config import OBJECTIVES

ROLLOUT = RolloutConfig(prompts=8, samples=4, epochs=1, max_new_tokens=6, temperature=1.0,
                        batch_size=0, refill=True, share_prompts=True, score_batch_size=8,
                        unfinished='reward', unfinished_value=0.0, standardise=False)
METHODS = {module.__name__.split('.')[-1]: module for module in (grpo, online_dpo, ppo)}


def plan(name='grpo', devices=1, batch_size=32, accum=1, **rollout):
    module = METHODS[name]
    train = dict(num_steps=48, eval_every=16, save_every=16, sample_every=0)
    config = types.SimpleNamespace(train=type('Train', (dict,), dict(
        batch_size=batch_size, accum=accum))(train))
    return rl_batches.plan(config, module.algorithm(module.Settings(**OBJECTIVES[name])),
                           dataclasses.replace(ROLLOUT, **rollout), 16,
                           make_mesh(devices=jax.devices()[:devices]))


@pytest.mark.parametrize('options, want', [
    (dict(), (32, 4, 4, False)),
    (dict(devices=8), (32, 4, 4, False)),
    (dict(batch_size=16), (32, 4, 4, True)),
    (dict(batch_size=16, devices=8), (32, 4, 1, True)),   # 4 prompts do not fill 8 devices
    (dict(batch_size=2), (32, 4, 1, True)),              # half a group
    (dict(accum=2), (32, 4, 2, True)),
    (dict(accum=8), (32, 4, 1, True)),
    (dict(epochs=2), (32, 4, 4, True)),
    (dict(prompts=4, batch_size=16, devices=8), (16, 1, 1, False)),
    (dict(share_prompts=False), (32, 1, 1, False)),
    (dict(name='ppo'), (32, 4, 4, True)),                 # its rewards hold the KL
    (dict(name='online_dpo', batch_size=8), (8, 4, 1, False)),
])
def test_what_is_shared_and_left_out(options, want):
    assert dataclasses.astuple(plan(**options)) == want


def test_the_prompts_of_a_step_are_counted_once():
    shared, apart = plan().computed_share(16, 6), plan(share_prompts=False).computed_share(16, 6)
    assert shared == (10 + 4 * 6) / (4 * 16) and apart == 1


@pytest.mark.parametrize('recompute', [False, True])
def test_the_examples_of_a_rollout_have_the_log_probs_there_are(recompute):
    method = grpo.algorithm(grpo.Settings(**OBJECTIVES['grpo']))
    names = rl_batches.example_shapes(method, ROLLOUT, 16, recompute=recompute)
    assert ('logprobs_BT' in names) == recompute != ('sampler_logprobs_BT' in names)
    assert names['tokens_BL'].shape == (32, 16) and names['mask_BT'].shape == (32, 6)
