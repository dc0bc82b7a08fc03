"""Reward models: a scalar head learns a person's order of several responses to one prompt.

    L = sum_b loss(r_b, ranks_b) / sum_b decisions_b + eta * mean_b (2 mean(r_b))^2
"""

import dataclasses

import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.models import heads
from jaxllm.objectives import ranking
from jaxllm.objectives.base import LossSums, Term

LOSSES = ('plackett_luce', 'bradley_terry', 'all_pairs')
MARGINS = ('none', 'small', 'large', 'own')


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    kind: str          # LOSSES
    margin: str        # MARGINS, of Bradley-Terry, see `margin_of`
    centering: float   # eta, weight of (2 mean(r))^2; 0 = off

    def __post_init__(self):
        if self.kind not in LOSSES:
            raise InputError(f'loss.kind={self.kind!r} is unknown; use one of {", ".join(LOSSES)}')
        if self.margin not in MARGINS:
            raise InputError(f'loss.margin={self.margin!r} is unknown; use one of '
                             f'{", ".join(MARGINS)}')
        if self.margin != 'none' and self.kind != 'bradley_terry':
            raise InputError(f'loss.margin={self.margin!r} with loss.kind={self.kind!r}: margins '
                             'belong to pairs; use loss.kind=bradley_terry, or margin=none')
        if self.centering < 0:
            raise InputError(f'loss.centering={self.centering} must not be negative; 0 = off')


def margin_of(kind, grades):
    """The margin m of -log sigmoid(r_w - r_l - m) from the grades of records.

    'small' is grade / 3 (0, 1/3, 2/3, 1), 'large' and 'own' the grade itself, 'none' 0; the grades
    of Llama 2 are 0 (negligibly better) to 3 (significantly better), 'own' takes any number.

    Ref: Touvron et al. 2023 (arXiv 2307.09288), table 27.
    """
    return {'none': jnp.zeros_like(grades), 'small': grades / 3, 'large': grades,
            'own': grades}[kind]


def reward(model, config):
    """The objective of a ModelConfig and a RewardConfig.

    Parameters are those of `models/heads.py`. The batch has tokens [B, S, L] int32, lengths and
    ranks [B, S] int32 (0 = an absent response) and margins [B] float32, grades.
    """
    def objective(params, frozen, batch, rng):
        del frozen, rng
        ranks_BS, margins_B = batch['ranks'], batch['margins']
        rewards_BS = rewards(params, model, batch)
        if config.kind == 'bradley_terry':
            loss_B = ranking.bradley_terry(rewards_BS, ranks_BS,
                                           margin_of(config.margin, margins_B))
        else:
            loss_B = getattr(ranking, config.kind)(rewards_BS, ranks_BS)
        decisions_B = ranking.decisions(ranks_BS)
        weight_B = decisions_B if config.kind == 'plackett_luce' else jnp.minimum(decisions_B, 1.0)
        terms = {config.kind: Term(loss_B.sum(), weight_B.sum())}
        present_BS = (ranks_BS > 0).astype(jnp.float32)
        if config.centering:
            any_B = jnp.any(ranks_BS > 0, axis=1).astype(jnp.float32)
            terms['centering'] = Term((any_B * ranking.centering(rewards_BS, ranks_BS)).sum(),
                                      any_B.sum(), config.centering)
        count = present_BS.sum()
        metrics = {'accuracy': ranking.correct_pairs(rewards_BS, ranks_BS),
                   'nll': (loss_B.sum(), weight_B.sum()),
                   'reward': ((present_BS * rewards_BS).sum(), count),
                   'reward_squared': ((present_BS * rewards_BS ** 2).sum(), count)}
        return LossSums(terms, metrics)
    return objective


def rewards(params, model, batch):
    """[B, S] float32 of a batch; those of absent responses mean nothing."""
    B, S, L = batch['tokens'].shape
    scores = heads.scores(params, model, batch['tokens'].reshape(B * S, L),
                          batch['lengths'].reshape(B * S))
    return scores.reshape(B, S)
