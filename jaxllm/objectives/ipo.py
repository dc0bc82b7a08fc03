"""Identity preference optimisation: a bounded target for the margin, and no saturation.

    L = (d - 1 / (2 beta))^2,  d = s_w - s_l

`per_token` takes the mean of log pi / ref over an answer's tokens for s, so that the target does
not depend on length; False is the paper's sum.

Ref: Azar et al. 2023 (arXiv 2310.12036), equation 17.
"""

import dataclasses

import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.objectives.preference import Method


@dataclasses.dataclass(frozen=True)
class Settings:
    beta: float
    per_token: bool

    def __post_init__(self):
        if not self.beta > 0:
            raise InputError(f'objective.beta={self.beta} must be positive, e.g. 0.1')


def method(settings):
    """See `preference`."""
    def losses(pairs, batch):
        del batch
        s = pairs.ratios / pairs.tokens if settings.per_token else pairs.ratios
        return jnp.square(s[:, 0] - s[:, 1] - 1 / (2 * settings.beta))
    return Method(losses)
