"""Proximal policy optimisation on a learned reward, as InstructGPT does it, with a value network.

    r_t = -beta kl_t (+ score at the last token);  A, R by GAE;  A whitened over the global rollout
    L = L_clip(A) + value_coef * L_v - entropy_coef * H  [+ ptx_coef * pre-training loss]
    L_v = 0.5 max((V - R)^2, (clip(V, V_old - eps_v, V_old + eps_v) - R)^2)

beta is fixed, or follows the sequence KL towards a target.

Ref: Ouyang et al. 2022 (arXiv 2203.02155), 3.5 and C.4; Ziegler et al. 2019 (arXiv 1909.08593) for
the adaptive beta; Huang et al. 2024 (arXiv 2403.17031) for the details.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.objectives import advantage, policy
from jaxllm.objectives.base import LossSums, Term


@dataclasses.dataclass(frozen=True)
class Settings:
    kl_coef: float         # beta, of the KL to the reference inside the reward
    kl_target: float       # nats per sequence that beta is steered towards; 0 = beta stays
    kl_horizon: float      # completions after which a deviation of 1 has changed beta by about e
    gamma: float
    lam: float
    clip: float            # of the policy ratio
    value_clip: float      # of a value's change; 0 = off
    value_coef: float
    entropy_coef: float
    whiten_rewards: bool   # scale rewards to variance 1, without moving their mean

    def __post_init__(self):
        positive = {'kl_horizon': self.kl_horizon, 'clip': self.clip}
        for name, value in positive.items():
            if not value > 0:
                raise InputError(f'objective.{name}={value} must be positive')
        for name in ('kl_coef', 'kl_target', 'value_clip', 'value_coef', 'entropy_coef'):
            if getattr(self, name) < 0:
                raise InputError(f'objective.{name}={getattr(self, name)} must not be negative')
        for name in ('gamma', 'lam'):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f'objective.{name}={getattr(self, name)} must be from 0 to 1')


def algorithm(settings):
    """See `policy`."""
    update = None
    if settings.kl_target:
        update = lambda aux, metrics: aux | {'kl_coef': adapted_kl_coef(
            aux['kl_coef'], metrics['rollout/kl'], metrics['examples'], settings)}
    return policy.Algorithm(
        lambda rollout, group_size, aux: _examples(settings, rollout, aux),
        lambda models: _objective(settings, models), uses_values=True, keeps_groups=True,
        aux={'kl_coef': settings.kl_coef}, update_aux=update)


def adapted_kl_coef(kl_coef, kl, num_examples, settings):
    """beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon). Ref: Ziegler et al. 2019, 2.2."""
    error = jnp.clip(kl / settings.kl_target - 1, -0.2, 0.2)
    return kl_coef * (1 + error * num_examples / settings.kl_horizon)


def _examples(settings, rollout, aux):
    mask_BT, values_BT = rollout['mask_BT'], rollout['values_BT']
    kl_BT = policy.k1(rollout['logprobs_BT'], rollout['ref_logprobs_BT'])
    rewards_BT = advantage.token_rewards(rollout['rewards_B'], kl_BT, mask_BT, aux['kl_coef'])
    if settings.whiten_rewards:
        rewards_BT = advantage.whiten(rewards_BT, mask_BT, shift_mean=False)
    advantages_BT, returns_BT = advantage.gae(rewards_BT, values_BT, mask_BT, gamma=settings.gamma,
                                              lam=settings.lam)
    return policy.model_inputs(rollout) | {
        'advantages_BT': advantage.whiten(advantages_BT, mask_BT), 'returns_BT': returns_BT,
        'values_BT': values_BT}


def _objective(settings, models):
    def objective(trainable, frozen, batch, rng):
        del rng
        mask_BT = batch['mask_BT']
        logprobs_BT, entropy_BT = policy.policy_logprobs(models, trainable, frozen, batch)
        losses_BT, clipped_BT = policy.clipped_surrogate(
            logprobs_BT, batch['logprobs_BT'], batch['advantages_BT'], settings.clip, settings.clip)
        values_BT = policy.policy_values(models, trainable, frozen, batch)
        weight = mask_BT.sum()
        terms = {'policy': Term(policy.masked_sum(losses_BT, mask_BT), weight),
                 'value': Term(policy.masked_sum(
                     value_losses(values_BT, batch, settings.value_clip), mask_BT), weight,
                     settings.value_coef)}
        if settings.entropy_coef:
            terms['entropy'] = Term(policy.masked_sum(entropy_BT, mask_BT), weight,
                                    -settings.entropy_coef)
        metrics = policy.step_metrics(logprobs_BT, entropy_BT, clipped_BT, batch)
        error_BT = jnp.square(values_BT - batch['returns_BT'])
        metrics['value_error'] = jax.lax.stop_gradient(
            (policy.masked_sum(error_BT, mask_BT), weight))
        return LossSums(terms, metrics)
    return objective


def value_losses(values_BT, batch, clip):
    """0.5 max((V - R)^2, (V_clipped - R)^2), per token."""
    returns_BT, old_BT = batch['returns_BT'], batch['values_BT']
    plain_BT = jnp.square(values_BT - returns_BT)
    if not clip:
        return 0.5 * plain_BT
    near_BT = jnp.clip(values_BT, old_BT - clip, old_BT + clip)
    return 0.5 * jnp.maximum(plain_BT, jnp.square(near_BT - returns_BT))
