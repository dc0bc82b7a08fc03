"""REINFORCE++: token rewards with the KL inside, returns as advantages, no value network.

    r_t = -kl_coef kl_t (+ score at the last token)
    A_t = sum_{k >= t} r_k, whitened over the rollout
    L = token mean of L_clip(A)

Ref: Hu et al. 2025 (arXiv 2501.03262). With `group_baseline` the mean score of a prompt's
completions is taken off first, as in the paper's variant with a baseline.
"""

import dataclasses

from jaxllm.errors import InputError
from jaxllm.objectives import advantage, policy
from jaxllm.objectives.base import LossSums, Term


@dataclasses.dataclass(frozen=True)
class Settings:
    kl_coef: float
    clip: float
    group_baseline: bool

    def __post_init__(self):
        if self.kl_coef < 0 or not 0 < self.clip < 1:
            raise InputError(f'objective: got {self}; expected kl_coef >= 0 and 0 < clip < 1')


def algorithm(settings):
    """See `policy`."""
    return policy.Algorithm(
        lambda rollout, group_size, aux: _examples(settings, rollout, group_size),
        lambda models: _objective(settings, models), min_group=2 if settings.group_baseline else 1,
        keeps_groups=True)


def _examples(settings, rollout, group_size):
    mask_BT, scores_B = rollout['mask_BT'], rollout['rewards_B']
    if settings.group_baseline:
        scores_B = advantage.group_relative(scores_B, group_size, divide_by_std=False)
    kl_BT = policy.k1(rollout['logprobs_BT'], rollout['ref_logprobs_BT'])
    rewards_BT = advantage.token_rewards(scores_B, kl_BT, mask_BT, settings.kl_coef)
    return policy.model_inputs(rollout) | {
        'advantages_BT': advantage.whiten(advantage.returns(rewards_BT, mask_BT), mask_BT)}


def _objective(settings, models):
    def objective(trainable, frozen, batch, rng):
        del rng
        mask_BT = batch['mask_BT']
        logprobs_BT, entropy_BT = policy.policy_logprobs(models, trainable, frozen, batch)
        losses_BT, clipped_BT = policy.clipped_surrogate(
            logprobs_BT, batch['logprobs_BT'], batch['advantages_BT'], settings.clip, settings.clip)
        return LossSums({'policy': Term(policy.masked_sum(losses_BT, mask_BT), mask_BT.sum())},
                        policy.step_metrics(logprobs_BT, entropy_BT, clipped_BT, batch))
    return objective
