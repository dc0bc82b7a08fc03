"""Kahneman-Tversky optimisation: answers are good or bad by themselves, against a common zero.

    L = lambda_w (1 - sigmoid(beta (s_w - z))) + lambda_l (1 - sigmoid(beta (z - s_l)))
    z = max(0, mean over the global batch of s of prompts with the answers to others)

No gradient flows through z, an estimate of KL(pi || ref).

Ref: Ethayarajh et al. 2024 (arXiv 2402.01306), equation 8. Both answers of a pair count,
each by itself.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.objectives.preference import Method


@dataclasses.dataclass(frozen=True)
class Settings:
    beta: float
    good_weight: float
    bad_weight: float

    def __post_init__(self):
        if not self.beta > 0 or not min(self.good_weight, self.bad_weight) > 0:
            raise InputError(f'objective: got {self}; expected positive numbers')


def method(settings):
    """See `preference`."""
    def prepare(pairs, batch):
        weights_P = batch['pair_weights']
        z = jnp.sum(weights_P * pairs.ratios[:, 2]) / jnp.maximum(weights_P.sum(), 1.0)
        return {'z': jnp.broadcast_to(jnp.maximum(z, 0.0), weights_P.shape)}

    def losses(pairs, batch):
        z_P = batch['z']
        good_P = jax.nn.sigmoid(settings.beta * (z_P - pairs.ratios[:, 0]))
        bad_P = jax.nn.sigmoid(settings.beta * (pairs.ratios[:, 1] - z_P))
        return settings.good_weight * good_P + settings.bad_weight * bad_P
    return Method(losses, mismatched=True, prepare=prepare, unpaired=True)
