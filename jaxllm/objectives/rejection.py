"""Rejection sampling: the best of a prompt's completions is learned like an example (RAFT).

    L = sum over tokens of the best completions of -log pi / number of those tokens

A prompt whose completions all have the same reward teaches nothing.

Ref: Dong et al. 2023 (arXiv 2304.06767); Touvron et al. 2023 (arXiv 2307.09288), 3.2.3.
"""

import dataclasses

import jax.numpy as jnp

from jaxllm.objectives import policy
from jaxllm.objectives.base import LossSums, Term


@dataclasses.dataclass(frozen=True)
class Settings:
    """None: how many completions there are to choose from is `rollout.samples`."""


def algorithm(settings):
    """See `policy`."""
    del settings
    return policy.Algorithm(lambda rollout, group_size, aux: _examples(rollout, group_size),
                            _objective, min_group=2, needs_logprobs=False)


def _examples(rollout, group_size):
    rewards_PS = rollout['rewards_B'].reshape(-1, group_size)
    best_P = jnp.arange(rewards_PS.shape[0]) * group_size + rewards_PS.argmax(axis=1)
    differ_P = (jnp.ptp(rewards_PS, axis=1) > 1e-8).astype(jnp.float32)
    examples = {name: x[best_P] for name, x in policy.model_inputs(rollout).items()}
    return examples | {'mask_BT': examples['mask_BT'] * differ_P[:, None]}


def _objective(models):
    def objective(trainable, frozen, batch, rng):
        del rng
        mask_BT = batch['mask_BT']
        logprobs_BT, entropy_BT = policy.policy_logprobs(models, trainable, frozen, batch)
        metrics = policy.step_metrics(logprobs_BT, entropy_BT, jnp.zeros_like(logprobs_BT), batch)
        return LossSums({'nll': Term(policy.masked_sum(-logprobs_BT, mask_BT), mask_BT.sum())},
                        metrics)
    return objective
