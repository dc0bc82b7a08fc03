"""Win rates of a model against another on the same prompts, and as if lengths were equal."""

import math

import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals import statistics
from jaxllm.evals.statistics import Interval

TIE = 1e-9       # Scores that are this close are equal.
SLOPE_PRIOR = 1.0       # 1 / variance: of the slope per standard deviation of length,
INTERCEPT_PRIOR = 1e-3  # and of the intercept, which is finite even if one side wins always.
_STEPS = 50


def outcomes(scores, other):
    """1 where `scores` is higher, 0 where `other` is, 0.5 where they are equal: float [N]."""
    scores, other = np.asarray(scores, float), np.asarray(other, float)
    if scores.shape != other.shape or scores.ndim != 1:
        raise InputError(f'got scores of shapes {scores.shape} and {other.shape}; expected one per '
                         'prompt on both sides')
    if not np.isfinite(scores).all() or not np.isfinite(other).all():
        raise InputError('a judge gave a score that is not finite; no one wins by it')
    return np.where(np.abs(scores - other) <= TIE, 0.5, scores > other)


def win_rate(results, *, clusters=None, draws=10_000, seed=0, level=statistics.LEVEL):
    """Share of comparisons won, a tie counting half to each side.

    The limits are a bootstrap over clusters. It has no width where nothing varies: without ties
    Wilson's limits are used where one side wins rarely, with them Tango's where few are not ties.

    Args:
      results: 1, 0.5 or 0 [N]. clusters: names [N], of the prompts; default: each its own.

    Raises:
      InputError: none, or other numbers.
    """
    results = _checked(results)
    options = dict(clusters=clusters, draws=draws, seed=seed, level=level)
    if (results != 0.5).all():
        return statistics.bootstrap(results, **options)
    found = statistics.hierarchical(2 * results - 1, seeds=np.zeros(len(results)),
                                    resample_seeds=False, signed=True, **options)
    to_rate = lambda difference: (difference + 1) / 2
    return Interval(to_rate(found.value), to_rate(found.low), to_rate(found.high), found.n,
                    found.method.replace(' of items within seeds, 1 seeds', ''))


def length_controlled(results, differences, *, clusters=None, draws=2000, seed=0,
                      level=statistics.LEVEL):
    """The win rate that is expected where both answers have the same length.

    The outcome is regressed on the difference of lengths d in units of its standard deviation s,

        P(win) = sigmoid(a + b d / s),

    and what is reported is sigmoid(a): what is left at d = 0. Ties are outcomes of one half. The
    slope has a weak prior N(0, 1), so that a judge that sees nothing but length has one too. This
    is the method of AlpacaEval 2 without its terms for the difficulty of a prompt. It takes the
    effect of length as linear in the log-odds, and cannot tell length from what comes with it.

    Args:
      results: 1, 0.5 or 0 [N]. differences: length of the answer minus that of the other one [N].
      clusters: names [N], as in `win_rate`.

    Returns:
      An Interval; the value is NaN where all differences are the same but not 0, and the limits are
      where nearly all outcomes are the same, so that resampling them would give no width.

    Ref: Dubois et al. 2024 (arXiv 2404.04475).
    """
    results, differences = _checked(results), np.asarray(differences, float)
    if differences.shape != results.shape or not np.isfinite(differences).all():
        raise InputError(f'got {len(results)} outcomes and differences of length of shape '
                         f'{differences.shape}; expected a finite one for each')
    if not differences.any():
        return win_rate(results, clusters=clusters, draws=draws, seed=seed, level=level)
    spread = differences.std()
    if spread == 0:
        return Interval(math.nan, math.nan, math.nan, len(results), 'all differ by one length')
    found = statistics.bootstrap(
        results, clusters=clusters, draws=draws, seed=seed, level=level,
        statistic=lambda weights: _sigmoid(fit(results, differences / spread, weights)[:, 0]))
    _, times = np.unique(results, return_counts=True)
    if len(results) - times.max() < statistics.FEW:
        return Interval(found.value, math.nan, math.nan, found.n,
                        f'fewer than {statistics.FEW} outcomes differ from the others')
    return found


def fit(results, x, weights):
    """(a, b) of P(win) = sigmoid(a + b x) with the priors above, by Newton's method.

    Args:
      results, x: [N]. weights: [draws, N], one fit for each row.

    Returns:
      float [draws, 2].
    """
    features = np.stack([np.ones_like(x), x], axis=1)  # [N, 2]
    products = features[:, :, None] * features[:, None, :]
    prior = np.array([INTERCEPT_PRIOR, SLOPE_PRIOR])
    found = np.zeros((len(weights), 2))
    for _ in range(_STEPS):
        chance = _sigmoid(found @ features.T)
        gradient = (weights * (results - chance)) @ features - prior * found
        curvature = np.einsum('dn,nij->dij', weights * chance * (1 - chance), products)
        step = np.linalg.solve(curvature + np.diag(prior), gradient[:, :, None])[:, :, 0]
        step /= np.maximum(np.abs(step).max(axis=1, keepdims=True), 1.0)  # far steps overshoot
        found += step
        if np.abs(step).max() < 1e-10:
            break
    return found


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


def _checked(results):
    results = np.asarray(results, float)
    if results.ndim != 1 or not len(results) or not np.isin(results, (0, 0.5, 1)).all():
        raise InputError(f'got outcomes of shape {results.shape}; expected 1 (won), 0.5 (tie) or 0 '
                         'for each prompt, and one prompt at least')
    return results
