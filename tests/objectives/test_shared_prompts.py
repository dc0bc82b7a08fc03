"""A prompt read once for all its completions: the same log-probs, values and gradients as rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm.models import transformer
from jaxllm.objectives import grpo, policy, ppo
from jaxllm.sharding import ShardingConfig, batch_shardings, make_mesh, shardings
from jaxllm.train.step import loss_and_grads

pytestmark = pytest.mark.usefixtures('mesh')

PROMPTS, SAMPLES, ROOM, T = 3, 4, 9, 6
N = PROMPTS * SAMPLES
PPO = dict(kl_coef=0.1, kl_target=0.0, kl_horizon=100.0, gamma=1.0, lam=0.95, clip=0.2,
           value_clip=0.2, value_coef=0.5, entropy_coef=0.01, whiten_rewards=False)
# Gemma 2 has windows shorter than a prompt, soft caps and layers outside the scan.
MODELS = {'llama': dict(num_layers=2), 'gemma2': dict(num_layers=3, attention__window=4),
          'gpt2': dict(num_layers=1), 'chunked': dict(num_layers=2, attention__impl='chunked')}


def models_of(name, group_size):
    cfg = toy_models.config('llama' if name == 'chunked' else name, **MODELS[name])
    return policy.Models(cfg, lambda t, f: t['policy'], cfg, lambda t, f: t['value'], 0.8,
                         group_size=group_size)


def trainable_of(cfg):
    head = {'kernel': np.linspace(-1, 1, cfg.d_model, dtype=np.float32), 'bias': np.float32(0.2)}
    return jax.tree.map(jnp.asarray, {
        'policy': toy_models.params(cfg),
        'value': {'model': toy_models.params(cfg, seed=1), 'head': head}})


def make_rollout(cfg):
    rng = np.random.default_rng(3)
    sizes, counts = rng.integers(2, ROOM + 1, PROMPTS), rng.integers(1, T + 1, N)
    sizes[0], counts[:2] = ROOM, (T, 1)
    draw = lambda size: rng.integers(0, cfg.vocab_size, size)
    prompts = [draw(size) for size in sizes]
    tokens, completions = draw((N, ROOM + T)), draw((N, T))  # padding may be any token
    for row, count in enumerate(counts):
        prompt = prompts[row // SAMPLES]
        tokens[row, :len(prompt) + count] = [*prompt, *completions[row, :count]]
    starts = np.repeat(sizes, SAMPLES) - 1
    mask = (np.arange(T)[None] < counts[:, None]).astype(np.float32)
    old = rng.normal(-3, 1, (4, N, T)).astype(np.float32)
    return {'tokens_BL': tokens.astype(np.int32), 'completions_BT': completions.astype(np.int32),
            'lengths_B': (starts + 1 + counts).astype(np.int32), 'mask_BT': mask,
            'starts_B': starts.astype(np.int32), 'rewards_B': rng.normal(size=N).astype(np.float32),
            'finished_B': np.ones(N, np.float32), 'logprobs_BT': old[0], 'ref_logprobs_BT': old[1],
            'sampler_logprobs_BT': old[2], 'values_BT': old[3]}


@pytest.mark.parametrize('name', MODELS)
def test_log_probs_values_and_gradients_are_those_of_whole_rows(name):
    cfg = models_of(name, 1).model
    trainable, rollout = trainable_of(cfg), make_rollout(cfg)
    method = ppo.algorithm(ppo.Settings(**PPO))
    batch = method.examples(rollout, SAMPLES, {'kl_coef': 0.1})

    def run(group_size):
        models = models_of(name, group_size)
        seen = (*policy.policy_logprobs(models, trainable, {}, batch),
                policy.policy_values(models, trainable, {}, batch))
        loss, _, _, grads = loss_and_grads(method.objective(models), trainable, {}, batch,
                                           jax.random.key(0))
        return [jnp.where(batch['mask_BT'] > 0, x, 0) for x in seen], loss, grads

    run = jax.jit(run, static_argnums=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
                 run(1), run(SAMPLES))


def test_micro_batches_hold_parts_of_groups():
    cfg = models_of('llama', 1).model
    trainable = trainable_of(cfg)
    method = grpo.algorithm(grpo.Settings(0.05, 0.2, 0.2, True, 'sequence', False))
    batch = method.examples(make_rollout(cfg), SAMPLES, {})

    def run(group_size, accum):
        objective = method.objective(models_of('llama', group_size))
        loss, _, _, grads = loss_and_grads(objective, trainable, {}, batch, jax.random.key(0),
                                           accum)
        return loss, grads

    run = jax.jit(run, static_argnums=(0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
                 run(1, 1), run(SAMPLES // 2, 2))


def test_a_prompt_is_computed_once():
    cfg = models_of('llama', 1).model
    params, batch = toy_models.params(cfg), make_rollout(cfg)
    flops = {size: jax.jit(lambda p, size=size: policy.completion_hidden(
        p, cfg, batch, size)).lower(params).compile().cost_analysis()['flops']
        for size in (1, SAMPLES)}
    tokens = {1: N * (ROOM + T), SAMPLES: PROMPTS * ROOM + N * T}
    assert flops[SAMPLES] / flops[1] < 1.1 * tokens[SAMPLES] / tokens[1]


def test_without_old_log_probs_the_only_step_has_its_own():
    cfg = models_of('llama', 1).model
    trainable, models = trainable_of(cfg), models_of('llama', SAMPLES)
    method = grpo.algorithm(grpo.Settings(0.05, 0.2, 0.2, True, 'sequence', False))
    rollout = make_rollout(cfg)
    rollout['logprobs_BT'] = policy.policy_logprobs(models, trainable, {}, rollout)[0]
    rollout['sampler_logprobs_BT'] = rollout['logprobs_BT'] + 0.25
    rollout['sampler_logprobs_BT'] = rollout['sampler_logprobs_BT'].at[0, 0].add(0.5)

    def run(rollout):
        batch = method.examples(rollout, SAMPLES, {})
        loss, metrics, _, grads = loss_and_grads(method.objective(models), trainable, {}, batch,
                                                 jax.random.key(0))
        return loss, grads, {name: a / b for name, (a, b) in metrics.items()}

    loss, grads, metrics = jax.jit(run)(rollout)
    del rollout['logprobs_BT']
    again, grads_again, own = jax.jit(run)(rollout)
    np.testing.assert_allclose(again, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 grads_again, grads)
    assert 'rollout/sampler_gap' not in metrics and own['ratio_off'] == 0
    count = rollout['mask_BT'].sum()
    np.testing.assert_allclose(own['rollout/sampler_gap'], 0.25 + 0.5 / count, rtol=1e-5)
    np.testing.assert_allclose(own['rollout/sampler_gap_max'], 0.75, rtol=1e-5)


def test_a_prefix_is_left_padded_and_rows_count_on_from_it():
    cfg = models_of('llama', 1).model
    params, rng = toy_models.params(cfg), np.random.default_rng(0)
    tokens_BL = rng.integers(0, cfg.vocab_size, (2, 11)).astype(np.int32)
    tokens_BL[1, :7] = tokens_BL[0, :7]
    whole_BLD = transformer.apply_hidden(params, cfg, tokens_BL)
    padded_PL = np.concatenate([[[3, 1, 4]], tokens_BL[:1, :7]], axis=1)
    hidden_PLD, prefix = transformer.read_prefix(params, cfg, padded_PL,
                                                 np.array([[0] * 3 + [1] * 7], np.int32))
    np.testing.assert_allclose(hidden_PLD[0, 3:], whole_BLD[0, :7], atol=1e-5)
    rest_BLD = transformer.apply_hidden(params, cfg, tokens_BL[:, 7:], prefix=prefix)
    np.testing.assert_allclose(rest_BLD, whole_BLD[:, 7:], atol=1e-5)


@pytest.mark.parametrize('preset, count', [('dp', 3), ('tp', 2)])
def test_devices_share_prompts_as_one_does(preset, count):
    cfg = toy_models.config('gemma2', vocab_size=42, **MODELS['gemma2'])  # 42 divides over 2
    params, batch = jax.tree.map(jnp.asarray, toy_models.params(cfg)), make_rollout(cfg)
    run = jax.jit(lambda params, batch: jnp.where(batch['mask_BT'] > 0, policy.completion_logprobs(
        params, cfg, batch, temperature=0.8, group_size=SAMPLES)[0], 0))
    want_BT = run(params, batch)
    mesh = make_mesh(ShardingConfig(preset=preset), jax.devices()[:count])
    with jax.set_mesh(mesh):
        found_BT = run(jax.device_put(params, shardings(transformer.param_axes(params), params,
                                                        mesh)),
                       jax.device_put(batch, batch_shardings(batch, mesh)))
    np.testing.assert_allclose(found_BT, want_BT, atol=2e-5)
