"""Odds ratio preference optimisation: fine-tuning on the better answer, a contrast, no reference.

    L = NLL_w - lam log sigmoid(logit(P_w) - logit(P_l))
    log P = mean log-prob of the answer's tokens

Ref: Hong et al. 2024 (arXiv 2403.07691), equations 6 and 7.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.objectives.preference import Method


@dataclasses.dataclass(frozen=True)
class Settings:
    lam: float

    def __post_init__(self):
        if self.lam < 0:
            raise InputError(f'objective.lam={self.lam} must not be negative, e.g. 0.1')


def log_odds(log_p):
    """log(p / (1 - p)) of log p < 0, without losing digits near p = 0 or p = 1."""
    log_p = jnp.minimum(log_p, -1e-6)
    near_one = log_p > -0.6931472
    # Each branch gets a harmless number where it is not used, since NaN * 0 = NaN in a gradient.
    of_one = jnp.log(-jnp.expm1(jnp.where(near_one, log_p, -1.0)))
    of_zero = jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, log_p)))
    return log_p - jnp.where(near_one, of_one, of_zero)


def method(settings):
    """See `preference`."""
    def losses(pairs, batch):
        del batch
        odds = log_odds(pairs.mean_logprobs)
        return (-pairs.mean_logprobs[:, 0]
                - settings.lam * jax.nn.log_sigmoid(odds[:, 0] - odds[:, 1]))
    return Method(losses, needs_reference=False)
