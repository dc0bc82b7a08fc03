"""Methods of reinforcement learning on a tiny model: the first step, padding, batches, numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm.models import heads, transformer
from jaxllm.objectives import (grpo, online_dpo, policy, ppo, reinforce, rejection, rloo)
from jaxllm.train.step import loss_and_grads

pytestmark = pytest.mark.usefixtures('mesh')

CFG = toy_models.config('llama', num_layers=1, attention__num_kv_heads=4)
N, G, T, PROMPT = 8, 2, 5, 6
L = PROMPT + T
HEADS = {'kernel': np.linspace(-1, 1, CFG.d_model, dtype=np.float32), 'bias': np.float32(0.2)}
PPO = dict(kl_coef=0.1, kl_target=0.0, kl_horizon=100.0, gamma=1.0, lam=0.95, clip=0.2,
           value_clip=0.2, value_coef=0.5, entropy_coef=0.01, whiten_rewards=False)
METHODS = {
    'ppo': ppo.algorithm(ppo.Settings(**PPO)),
    'grpo': grpo.algorithm(grpo.Settings(0.05, 0.2, 0.2, True, 'sequence', False)),
    'dapo': grpo.algorithm(grpo.Settings(0.0, 0.2, 0.28, True, 'token', True)),
    'dr_grpo': grpo.algorithm(grpo.Settings(0.0, 0.2, 0.2, False, 'constant', False)),
    'rloo': rloo.algorithm(rloo.Settings(0.05, 0.2, False)),
    'reinforce': reinforce.algorithm(reinforce.Settings(0.05, 0.2, False)),
    'online_dpo': online_dpo.algorithm(online_dpo.Settings(0.1)),
    'rejection': rejection.algorithm(rejection.Settings()),
}
TEMPERATURE = 0.7
MODELS = policy.Models(CFG, lambda t, f: t['policy'], CFG, lambda t, f: t['value'], TEMPERATURE)


@pytest.fixture(scope='module')
def trainable():
    return {'policy': toy_models.params(CFG),
            'value': {'model': toy_models.params(CFG, seed=1), 'head': HEADS}}


def make_rollout(trainable, room=T, pad=0):
    """A rollout by `trainable`, whose reference is itself."""
    rng = np.random.default_rng(5)
    prompts, counts = rng.integers(2, PROMPT + 1, N), rng.integers(1, T + 1, N)
    out = {'tokens_BL': np.full((N, PROMPT + room), pad, np.int32),
           'completions_BT': np.full((N, room), pad, np.int32),
           'mask_BT': (np.arange(room)[None] < counts[:, None]).astype(np.float32),
           'lengths_B': (prompts + counts).astype(np.int32),
           'starts_B': (prompts - 1).astype(np.int32),
           'rewards_B': rng.normal(size=N).astype(np.float32),
           'finished_B': (np.arange(N) % 3 > 0).astype(np.float32)}
    for row in range(N):
        ids = rng.integers(0, CFG.vocab_size, PROMPT + T)[:prompts[row] + counts[row]]
        out['tokens_BL'][row, :len(ids)] = ids
        out['completions_BT'][row, :counts[row]] = ids[prompts[row]:]
    logprobs_BT, _ = policy.policy_logprobs(MODELS, trainable, {}, out)
    values_BT = policy.policy_values(MODELS, trainable, {}, out)
    return out | {'logprobs_BT': logprobs_BT, 'ref_logprobs_BT': logprobs_BT,
                  'values_BT': values_BT}


def batch_of(name, trainable, **options):
    method = METHODS[name]
    aux = {key: jnp.float32(x) for key, x in method.aux.items()}
    return method.examples(make_rollout(trainable, **options), G, aux)


def run(name, trainable, batch, accum=1):
    loss, metrics, terms, grads = loss_and_grads(METHODS[name].objective(MODELS), trainable, {},
                                                 batch, jax.random.key(0), accum)
    return loss, {key: a / jnp.maximum(b, 1e-9) for key, (a, b) in metrics.items()}, grads


RUN = jax.jit(run, static_argnums=(0, 3))


@pytest.mark.parametrize('name', METHODS)
def test_the_first_step_is_where_the_rollout_was(name, trainable):
    loss, metrics, grads = RUN(name, trainable, batch_of(name, trainable))
    assert np.isfinite(loss) and float(metrics['ratio_off']) < 1e-5
    assert float(metrics['clip_fraction']) == 0 and abs(float(metrics['approx_kl'])) < 1e-6
    assert any(np.any(np.asarray(g)) for g in jax.tree.leaves(grads['policy']))
    moved = any(np.any(np.asarray(g)) for g in jax.tree.leaves(grads['value']))
    assert moved == METHODS[name].uses_values
    if name == 'online_dpo':
        np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)


@pytest.mark.parametrize('name', ['ppo', 'dr_grpo', 'online_dpo'])
def test_micro_batches_add_up(name, trainable):
    batch = batch_of(name, trainable)
    accum = 2 if name in ('online_dpo', 'rejection') else 4
    # Where the policy is still the reference, every margin is 0, and its sign is rounding.
    moved = jax.tree.map(lambda x: 1.05 * x, trainable)
    whole, cut = RUN(name, moved, batch, 1), RUN(name, moved, batch, accum)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), whole, cut)


@pytest.mark.parametrize('name', ['ppo', 'rloo'])
def test_padding_and_room_change_nothing(name, trainable):
    first = RUN(name, trainable, batch_of(name, trainable))
    second = RUN(name, trainable, batch_of(name, trainable, room=T + 3, pad=7))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), first, second)


def test_log_probs_and_entropy_are_those_of_the_sampled_distribution(trainable):
    rollout = make_rollout(trainable)
    found_BT, entropy_BT = policy.policy_logprobs(MODELS, trainable, {}, rollout)
    logits = transformer.apply(trainable['policy'], CFG, rollout['tokens_BL'],
                               segment_ids_BL=policy.segment_ids(rollout)) / TEMPERATURE
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    for row in (0, 3, 7):
        for t in range(int(rollout['mask_BT'][row].sum())):
            at = logprobs[row, rollout['starts_B'][row] + t]
            np.testing.assert_allclose(found_BT[row, t], at[rollout['completions_BT'][row, t]],
                                       rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(entropy_BT[row, t], -np.sum(np.exp(at) * at), rtol=1e-4)


def test_values_stand_before_the_token_they_judge(trainable):
    rollout = make_rollout(trainable)
    values_BL = heads.values(trainable['value'], CFG, rollout['tokens_BL'],
                             segment_ids_BL=policy.segment_ids(rollout))
    row, start = 4, rollout['starts_B'][4]
    np.testing.assert_allclose(rollout['values_BT'][row, 0], values_BL[row, start], rtol=1e-6)


def test_the_clipped_surrogate_by_hand():
    old, new = jnp.zeros(4), jnp.log(jnp.array([1.5, 1.5, 0.5, 0.5]))
    advantages = jnp.array([1.0, -1.0, 1.0, -1.0])
    losses, clipped = policy.clipped_surrogate(new, old, advantages, 0.2, 0.3)
    np.testing.assert_allclose(losses, [-1.3, 1.5, -0.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(clipped, [1, 0, 0, 1])


def test_the_clipped_value_loss_by_hand():
    batch = {'returns_BT': jnp.array([[1.0, 1.0]]), 'values_BT': jnp.array([[0.0, 0.0]])}
    np.testing.assert_allclose(ppo.value_losses(jnp.array([[0.9, -0.5]]), batch, 0.2),
                               [[0.5 * 0.8 ** 2, 0.5 * 1.5 ** 2]], rtol=1e-5)
    np.testing.assert_allclose(ppo.value_losses(jnp.array([[0.9, -0.5]]), batch, 0.0),
                               [[0.5 * 0.1 ** 2, 0.5 * 1.5 ** 2]], rtol=1e-4)


def test_reductions_of_grpo():
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    losses = jnp.array([[2.0, 4.0, 99.0], [6.0, 99.0, 99.0]])
    mean = lambda name: float((losses * grpo.token_weights(mask, name)[0]).sum()
                              / grpo.token_weights(mask, name)[1])
    assert mean('sequence') == pytest.approx((3 + 6) / 2)
    assert mean('token') == pytest.approx(12 / 3)
    assert mean('constant') == pytest.approx(12 / 6)


def test_the_kl_coefficient_follows_its_target():
    settings = ppo.Settings(**PPO | dict(kl_target=6.0))
    for kl, factor in ((12.0, 1 + 0.2 * 0.1), (6.6, 1 + 0.1 * 0.1), (0.0, 1 - 0.2 * 0.1)):
        np.testing.assert_allclose(ppo.adapted_kl_coef(0.15, kl, 10, settings), 0.15 * factor,
                                   rtol=1e-5)
    method = ppo.algorithm(settings)
    aux = method.update_aux({'kl_coef': 0.15, 'guard': 1}, {'rollout/kl': 12.0, 'examples': 10.0})
    assert aux['guard'] == 1 and float(aux['kl_coef']) == pytest.approx(0.153)
    assert METHODS['ppo'].update_aux is None
