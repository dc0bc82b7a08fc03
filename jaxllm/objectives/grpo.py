"""Group relative policy optimisation, and its relatives Dr. GRPO and DAPO by their settings.

    A_i = (r_i - mean of its group) [/ (std + 1e-4)], the same for all tokens of completion i
    L = L_clip(A; 1 - clip_low, 1 + clip_high) + kl_coef * k3(pi, ref)

`reduction` says how tokens are averaged: 'sequence' (GRPO: mean of each completion, then of
completions), 'token' (DAPO: all tokens of the global batch alike), 'constant' (Dr. GRPO: sum of
tokens over rows times the most tokens there can be, so that length does not weigh).

Ref: Shao et al. 2024 (arXiv 2402.03300); Liu et al. 2025 (arXiv 2503.20783); Yu et al. 2025 (DAPO,
arXiv 2503.14476).
"""

import dataclasses

import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.objectives import advantage, policy
from jaxllm.objectives.base import LossSums, Term

REDUCTIONS = 'sequence', 'token', 'constant'


@dataclasses.dataclass(frozen=True)
class Settings:
    kl_coef: float         # of k3 in the loss; 0 = no reference needed for it
    clip_low: float
    clip_high: float       # DAPO: above clip_low, so that rare tokens can grow
    divide_by_std: bool    # Dr. GRPO: False
    reduction: str
    mask_unfinished: bool  # DAPO: completions cut by length teach nothing

    def __post_init__(self):
        if self.reduction not in REDUCTIONS:
            raise InputError(f'objective.reduction={self.reduction!r} is unknown; use one of '
                             f'{", ".join(REDUCTIONS)}')
        if self.kl_coef < 0:
            raise InputError(f'objective.kl_coef={self.kl_coef} must not be negative')
        if not (0 < self.clip_low < 1 and self.clip_high > 0):
            raise InputError(f'objective.clip_low={self.clip_low}, clip_high={self.clip_high}: '
                             'expected 0 < clip_low < 1 and clip_high > 0, e.g. 0.2 and 0.2')


def algorithm(settings):
    """See `policy`."""
    return policy.Algorithm(
        lambda rollout, group_size, aux: _examples(settings, rollout, group_size),
        lambda models: _objective(settings, models), min_group=2, needs_logprobs=False,
        keeps_groups=True)


def _examples(settings, rollout, group_size):
    mask_BT = rollout['mask_BT']
    advantages_B = advantage.group_relative(rollout['rewards_B'], group_size,
                                            divide_by_std=settings.divide_by_std)
    if settings.mask_unfinished:
        mask_BT = mask_BT * rollout['finished_B'][:, None]
    return policy.model_inputs(rollout) | {
        'mask_BT': mask_BT, 'ref_logprobs_BT': rollout['ref_logprobs_BT'],
        'advantages_BT': advantages_B[:, None] * mask_BT}


def token_weights(mask_BT, reduction):
    """(weights_BT, their total as the loss divides by it), see above."""
    if reduction == 'sequence':
        length_B1 = jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1.0)
        return mask_BT / length_B1, jnp.sum(mask_BT.max(axis=1))
    if reduction == 'token':
        return mask_BT, mask_BT.sum()
    return mask_BT, jnp.float32(mask_BT.size)


def _objective(settings, models):
    def objective(trainable, frozen, batch, rng):
        del rng
        weights_BT, total = token_weights(batch['mask_BT'], settings.reduction)
        logprobs_BT, entropy_BT = policy.policy_logprobs(models, trainable, frozen, batch)
        losses_BT, clipped_BT = policy.clipped_surrogate(
            logprobs_BT, policy.old_logprobs(logprobs_BT, batch), batch['advantages_BT'],
            settings.clip_low, settings.clip_high)
        terms = {'policy': Term(policy.masked_sum(losses_BT, weights_BT), total)}
        if settings.kl_coef:
            k3_BT = policy.k3(logprobs_BT, batch['ref_logprobs_BT'])
            terms['kl'] = Term(policy.masked_sum(k3_BT, weights_BT), total, settings.kl_coef)
        return LossSums(terms, policy.step_metrics(logprobs_BT, entropy_BT, clipped_BT, batch))
    return objective
