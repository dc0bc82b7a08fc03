"""REINFORCE with a leave-one-out baseline: a completion is one action, and needs no value network.

    R_i = score_i - kl_coef * sum_t kl_t;  A_i = R_i - mean of the other R of its group
    L = mean over completions of L_clip(A_i), rho of the whole completion

Ref: Ahmadian et al. 2024 (arXiv 2402.14740). The clip keeps steps after the
first of a rollout near it.
"""

import dataclasses

import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.objectives import advantage, policy
from jaxllm.objectives.base import LossSums, Term


@dataclasses.dataclass(frozen=True)
class Settings:
    kl_coef: float
    clip: float
    whiten: bool    # scale the advantages of the rollout to mean 0 and variance 1

    def __post_init__(self):
        if self.kl_coef < 0 or not 0 < self.clip < 1:
            raise InputError(f'objective: got {self}; expected kl_coef >= 0 and 0 < clip < 1')


def algorithm(settings):
    """See `policy`."""
    return policy.Algorithm(
        lambda rollout, group_size, aux: _examples(settings, rollout, group_size),
        lambda models: _objective(settings, models), min_group=2, keeps_groups=True)


def _examples(settings, rollout, group_size):
    mask_BT = rollout['mask_BT']
    kl_BT = policy.k1(rollout['logprobs_BT'], rollout['ref_logprobs_BT'])
    rewards_B = rollout['rewards_B'] - settings.kl_coef * policy.sequence_sum(kl_BT, mask_BT)
    advantages_B = advantage.leave_one_out(rewards_B, group_size)
    if settings.whiten:
        advantages_B = advantage.whiten(advantages_B, jnp.ones_like(advantages_B))
    return policy.model_inputs(rollout) | {'advantages_B': advantages_B}


def _objective(settings, models):
    def objective(trainable, frozen, batch, rng):
        del rng
        mask_BT = batch['mask_BT']
        logprobs_BT, entropy_BT = policy.policy_logprobs(models, trainable, frozen, batch)
        losses_B, clipped_B = policy.clipped_surrogate(
            policy.sequence_sum(logprobs_BT, mask_BT),
            policy.sequence_sum(batch['logprobs_BT'], mask_BT), batch['advantages_B'],
            settings.clip, settings.clip)
        clipped_BT = clipped_B[:, None] * mask_BT
        weight = jnp.float32(losses_B.shape[0])
        return LossSums({'policy': Term(losses_B.sum(), weight)},
                        policy.step_metrics(logprobs_BT, entropy_BT, clipped_BT, batch))
    return objective
