"""The preference oracle: raters as weight vectors over features, and a hidden judge of win rates.

A rater's utility is U = w . phi, the choice P(y1 > y2) = sigmoid((U1 - U2) / tau), a ranking of K
responses is Plackett-Luce: it takes the best of what is left with probability softmax(U / tau).
Ref: Bradley and Terry 1952; Plackett 1975; ties as in Rao and Kupper 1967; margins in four levels
as in Touvron et al. 2023 (Llama 2), section 3.2.1.
"""

from dataclasses import dataclass

import numpy as np

from jaxllm.errors import InputError
from jaxllm.world.features import FEATURES

CRITERIA = ('overall', 'helpful', 'safe')
MARGINS = ('negligibly better', 'slightly better', 'better', 'significantly better')
AGREEMENT = 0.77                    # how often two experts agree on the reference pairs
# Means of `calibrate` and `margin_cuts` over the nano worlds of seeds 0 to 7, of the expert's
# U1 - U2 on all `preferences.pairs`: 0.768; 0.4, 1.753, 3.419. The cuts lie between the steps of
# 0.05 that most utilities have. Constants, so that no pair's label depends on what the others are.
# tests/world/test_oracle.py measures them.
TAU = 0.77
MARGIN_CUTS = (0.425, 1.775, 3.425)
IDEAL_LENGTH = 0.35                 # of the hidden judge, in units of the feature `length`


def _vector(**weights):
    unknown = set(weights) - set(FEATURES)
    if unknown:
        raise InputError(f'unknown features {sorted(unknown)}; expected some of {FEATURES}')
    return np.array([weights.get(name, 0.0) for name in FEATURES])


_STYLE = dict(specific=0.6, clear=0.5, organised=0.4)
_EXPERT = dict(_STYLE, correct=2.0, confident=0.3, cite_supported=0.5, safe=4.0, over_refusal=-1.5)
# Who has not verified an answer judges it by how sure and how well made it looks.
_AT_A_GLANCE = dict(specific=0.8, clear=0.8, organised=0.7, confident=2.5, cites=0.5, length=0.6,
                    safe=4.0, over_refusal=-1.5)
_WEIGHTS = {                        # kind: (weights if verified, weights if not, P(verify))
    'expert': (_EXPERT, _EXPERT, 1.0),
    'typical': (dict(_AT_A_GLANCE, correct=2.0, cite_supported=0.5), _AT_A_GLANCE, 0.2),
    'helpful_only': (dict(_EXPERT, safe=0.0),) * 2 + (1.0,),
    'safety_only': (dict(safe=4.0),) * 2 + (1.0,),
    'biased': (dict(_EXPERT, mentions_group_A=0.5),) * 2 + (1.0,),
    'sycophantic': (dict(_EXPERT, correct=0.5, agrees_with_user=3.0),) * 2 + (1.0,),
    'random': ({},) * 2 + (1.0,),
}
RATERS = tuple(_WEIGHTS)


@dataclass(frozen=True)
class Rater:
    """A kind of rater: it verifies a comparison with probability `q`, else judges at a glance."""

    kind: str
    verified: np.ndarray            # float [F]
    at_a_glance: np.ndarray         # float [F]
    q: float

    def weights(self, verifies):
        """verifies: bool [...] -> float [..., F]"""
        return np.where(np.asarray(verifies)[..., None], self.verified, self.at_a_glance)

    def reward(self, phi):
        """The expected utility, what a policy that is trained on this rater maximises: [..., F] ->
        [...]"""
        return phi @ (self.q * self.verified + (1 - self.q) * self.at_a_glance)

    def probability(self, phi_1, phi_2, tau=TAU):
        """P(y1 > y2), over whether it verifies: [..., F] twice -> [...]"""
        difference = phi_1 - phi_2
        return (self.q * sigmoid(difference @ self.verified / tau)
                + (1 - self.q) * sigmoid(difference @ self.at_a_glance / tau))


def rater(kind, criterion='overall', q=None):
    """The rater of a kind, asked for a criterion.

    Asked for 'helpful', nobody counts `safe`; asked for 'safe', a rater counts `safe` alone, and
    a tenth of the rest to break ties. `q` overrides the probability to verify.

    Raises: InputError on an unknown kind or criterion, or a q outside [0, 1].
    """
    if kind not in _WEIGHTS:
        raise InputError(f'rater kind {kind!r} is unknown; expected one of {RATERS}')
    if criterion not in CRITERIA:
        raise InputError(f'criterion {criterion!r} is unknown; expected one of {CRITERIA}')
    verified, at_a_glance, default_q = _WEIGHTS[kind]
    q = default_q if q is None else q
    if not 0 <= q <= 1:
        raise InputError(f'q={q} is no probability to verify an answer; expected 0 <= q <= 1')
    mask = np.ones(len(FEATURES))
    if criterion != 'overall':
        is_safety = np.array([name == 'safe' for name in FEATURES])
        mask = np.where(is_safety, 0.0, 1.0) if criterion == 'helpful' \
            else np.where(is_safety, 1.0, 0.1)
    return Rater(kind, _vector(**verified) * mask, _vector(**at_a_glance) * mask, float(q))


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


def agreement(differences, tau):
    """P(two independent raters of one kind choose alike): mean of p^2 + (1 - p)^2.

    Args:
        differences: float [N] of U1 - U2.
    """
    p = sigmoid(np.asarray(differences) / tau)
    return float(np.mean(p ** 2 + (1 - p) ** 2))


def calibrate(differences, target=AGREEMENT):
    """The tau at which two raters agree on a share `target` of the pairs, by bisection.

    Raises: InputError if no tau gives it (equal utilities always agree half of the time).
    """
    low, high = 1e-3, 1e3
    if not agreement(differences, high) < target < agreement(differences, low):
        raise InputError(f'no temperature makes raters agree on {target} of these pairs; possible '
                         f'are {agreement(differences, high):.3f} to '
                         f'{agreement(differences, low):.3f}')
    while high / low > 1 + 1e-9:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if agreement(differences, middle) > target else (low, middle)
    return float(np.sqrt(low * high))


def compare(who, phi_1, phi_2, draws, tau=TAU):
    """One rater's choice for each pair.

    Args:
        phi_1, phi_2: float [N, F]. draws: uniform float [N, 2], whether it verifies and chooses.

    Returns: (bool [N] the first is chosen, float [N] U1 - U2 as this rater saw it)
    """
    verifies, chooses = draws.T
    difference = np.sum((phi_1 - phi_2) * who.weights(verifies < who.q), axis=-1)
    return chooses < sigmoid(difference / tau), difference


def rank(utilities_NS, gumbel_NS, tau=TAU, tie=0.0):
    """Plackett-Luce rankings with ties; 1 is the best and equal ranks are ties.

    Sorting U / tau + Gumbel noise draws from Plackett-Luce exactly. Neighbours whose noisy
    utilities differ by less than `tie` (in units of tau) tie, so that for two responses
    P(1 before 2) = sigmoid((U1 - U2) / tau - tie), the model of Rao and Kupper.

    Returns: int [N, S]
    """
    noisy = utilities_NS / tau + gumbel_NS
    order = np.argsort(-noisy, axis=-1)
    ordered = np.take_along_axis(noisy, order, -1)
    below = ordered[:, :-1] - ordered[:, 1:] >= tie
    dense = np.cumsum(np.concatenate([np.ones((len(noisy), 1), int), below], -1), -1)
    ranks = np.empty_like(dense)
    np.put_along_axis(ranks, order, dense, -1)
    return ranks


def margin_cuts(differences):
    """The quartiles of |dU|: what MARGIN_CUTS are means of."""
    return np.quantile(np.abs(differences), [0.25, 0.5, 0.75])


def margin_grade(differences, cuts=MARGIN_CUTS):
    """0 to 3, see MARGINS: how many cuts are below |dU|; int [N]."""
    return np.searchsorted(cuts, np.abs(differences), side='left')


# The hidden judge's eyes: the same facts, other weights, and terms that no rater has.
_HIDDEN = _vector(correct=1.6, specific=0.3, clear=0.9, organised=0.1, cite_supported=0.9, safe=2.5,
                  over_refusal=-2.0)
_CONFIDENT_WRONG, _LENGTH_OFF, _CATEGORY = -1.5, -1.2, 0.4


def hidden_utility(phi):
    """w' . phi - 1.5 confident [wrong] - 1.2 |length - 0.35| + 0.4 [a category]: [..., F] -> [...]

    It punishes confidence only where the answer is wrong, wants a certain length instead of more,
    and likes an honest category. No dataset is labelled by it.
    """
    column = {name: phi[..., i] for i, name in enumerate(FEATURES)}
    return (phi @ _HIDDEN
            + _CONFIDENT_WRONG * column['confident'] * (column['correct'] < 0)
            + _LENGTH_OFF * np.abs(column['length'] - IDEAL_LENGTH)
            + _CATEGORY * (column['specific'] == 0.5))


@dataclass(frozen=True)
class Judge:
    """Scores responses against each other; by default with the hidden utility.

    Args:
        reader: features.Reader of the world.
        utility: phi [..., F] -> [...]; `rater('expert').reward` judges as the experts do.
    """

    reader: object
    utility: object = hidden_utility

    def scores(self, asked, responses):
        """float [N], one per (asked, response)."""
        return self.utility(self.reader.many(asked, responses))

    def wins(self, asked, ours, theirs):
        """float [N]: 1 where ours is better, 0.5 where equal, 0 where worse."""
        difference = self.scores(asked, ours) - self.scores(asked, theirs)
        return np.where(np.abs(difference) < 1e-9, 0.5, (difference > 0).astype(float))

    def win_rate(self, asked, ours, theirs):
        """The mean of `wins`."""
        return float(np.mean(self.wins(asked, ours, theirs)))
