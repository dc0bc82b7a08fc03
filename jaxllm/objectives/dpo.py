"""Direct preference optimisation.

    h = beta (s_w - s_l),  s = sum over the answer of log pi - log ref
    L = -(1 - e) log sigmoid(h) - e log sigmoid(-h)                    label smoothing e
    L = (-(1 - e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2 e)      robust

log 2 where the policy is the reference.

Ref: Rafailov et al. 2023 (arXiv 2305.18290), equation 7; smoothing: Mitchell 2023 (cDPO); robust:
Chowdhury et al. 2024 (arXiv 2403.00409).
"""

import dataclasses

import jax

from jaxllm.errors import InputError
from jaxllm.objectives.preference import Method


@dataclasses.dataclass(frozen=True)
class Settings:
    beta: float
    label_smoothing: float   # share of labels taken to be flipped
    robust: bool             # unbiased under such flips, in place of smoothed

    def __post_init__(self):
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5:
            raise InputError(f'objective: got {self}; expected beta > 0 and 0 <= label_smoothing '
                             '< 0.5')
        if self.robust and not self.label_smoothing:
            raise InputError('objective.robust=True corrects for flipped labels, and '
                             'objective.label_smoothing=0 says that there are none; use e.g. 0.1')


def method(settings):
    """See `preference`."""
    e = settings.label_smoothing

    def losses(pairs, batch):
        del batch
        h_P = settings.beta * (pairs.ratios[:, 0] - pairs.ratios[:, 1])
        right_P, wrong_P = -jax.nn.log_sigmoid(h_P), -jax.nn.log_sigmoid(-h_P)
        if settings.robust:
            return ((1 - e) * right_P - e * wrong_P) / (1 - 2 * e)
        return (1 - e) * right_P + e * wrong_P
    return Method(losses)
