"""Simple preference optimisation: the mean log-prob is the reward, no reference.

    L = -log sigmoid(beta (p_w - p_l) - gamma),  p = mean log-prob of the answer's tokens

Ref: Meng et al. 2024 (arXiv 2405.14734), equation 6; gamma is the paper's target margin.
"""

import dataclasses

import jax

from jaxllm.errors import InputError
from jaxllm.objectives.preference import Method


@dataclasses.dataclass(frozen=True)
class Settings:
    beta: float
    gamma: float

    def __post_init__(self):
        if not self.beta > 0 or self.gamma < 0:
            raise InputError(f'objective: got {self}; expected beta > 0 and gamma >= 0')


def method(settings):
    """See `preference`."""
    def losses(pairs, batch):
        del batch
        p = pairs.mean_logprobs
        return -jax.nn.log_sigmoid(settings.beta * (p[:, 0] - p[:, 1]) - settings.gamma)
    return Method(losses, needs_reference=False)
