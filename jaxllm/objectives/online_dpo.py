"""Online DPO: the best and the worst of a prompt's completions by their rewards are a pair.

    L = -log sigmoid(beta (s_best - s_worst)),  s = sum_t log pi - log ref

A prompt whose completions all have the same reward gives no pair.

Ref: Guo et al. 2024 (arXiv 2402.04792); Rafailov et al. 2023 (arXiv 2305.18290) for the loss.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.objectives import policy
from jaxllm.objectives.base import LossSums, Term


@dataclasses.dataclass(frozen=True)
class Settings:
    beta: float

    def __post_init__(self):
        if not self.beta > 0:
            raise InputError(f'objective.beta={self.beta} must be positive, e.g. 0.1')


def algorithm(settings):
    """See `policy`."""
    return policy.Algorithm(lambda rollout, group_size, aux: _examples(rollout, group_size),
                            lambda models: _objective(settings, models), min_group=2,
                            needs_logprobs=False)


def _examples(rollout, group_size):
    """Arrays [P, 2, ...], the best first; pair_weights_B is 0 where there is no pair."""
    rewards_PS = rollout['rewards_B'].reshape(-1, group_size)
    first_P = jnp.arange(rewards_PS.shape[0]) * group_size
    rows_P2 = jnp.stack([first_P + rewards_PS.argmax(axis=1),
                         first_P + rewards_PS.argmin(axis=1)], axis=1)
    inputs = policy.model_inputs(rollout) | {'ref_logprobs_BT': rollout['ref_logprobs_BT']}
    return {name: x[rows_P2] for name, x in inputs.items()} | {
        'pair_weights_B': (jnp.ptp(rewards_PS, axis=1) > 1e-8).astype(jnp.float32)}


def _objective(settings, models):
    def objective(trainable, frozen, batch, rng):
        del rng
        weights_B = batch['pair_weights_B']
        # Pairs as rows: [2 B, ...], best and worst by turns.
        rows = {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items() if x.ndim > 1}
        logprobs_BT, entropy_BT = policy.policy_logprobs(models, trainable, frozen, rows)
        s_B2 = policy.sequence_sum(logprobs_BT - rows['ref_logprobs_BT'],
                                   rows['mask_BT']).reshape(-1, 2)
        margin_B = settings.beta * (s_B2[:, 0] - s_B2[:, 1])
        loss = -jnp.sum(weights_B * jax.nn.log_sigmoid(margin_B))
        token_weights_BT = rows['mask_BT'] * jnp.repeat(weights_B, 2)[:, None]
        metrics = policy.step_metrics(logprobs_BT, entropy_BT, jnp.zeros_like(logprobs_BT), rows,
                                      token_weights_BT)
        count = weights_B.sum()
        metrics |= {'accuracy': (jnp.sum(weights_B * (margin_B > 0)), count),
                    'margin': jax.lax.stop_gradient((jnp.sum(weights_B * margin_B), count)),
                    'pairs': (count, jnp.float32(weights_B.size))}
        return LossSums({'dpo': Term(loss, count)}, metrics)
    return objective
