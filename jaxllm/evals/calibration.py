"""Does a model know what it knows: confidences against right and wrong answers."""

import dataclasses

import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals import statistics


@dataclasses.dataclass(frozen=True)
class Bin:
    """Answers of similar confidence: bounds, mean confidence, accuracy with Wilson's limits, n."""
    lower: float
    upper: float
    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


def edges(confidence, bins=10, equal='mass'):
    """Bounds of the bins, [bins + 1] or fewer: of equal width on [0, 1], or of equal mass.

    Equal confidences share a bin, so bins of equal mass are only about equal where there are ties.
    """
    if bins < 1:
        raise InputError(f'bins={bins}; expected at least 1')
    if equal == 'width':
        return np.linspace(0, 1, bins + 1)
    if equal != 'mass':
        raise InputError(f"equal={equal!r}; expected 'mass' or 'width'")
    inner = np.sort(confidence)[np.arange(1, bins) * len(confidence) // bins]
    return np.concatenate([[0.], np.unique(inner[inner > 0]), [1.]])


def reliability(confidence, correct, *, bins=10, equal='mass'):
    """The reliability table: a tuple of Bins, empty ones left out.

    Args:
        confidence: float [N] in [0, 1], the probability the model gave its answer.
        correct: bool [N].
        bins: how many.
        equal: 'mass' (as many answers in each) or 'width'.
    """
    confidence, correct = _checked(confidence, correct)
    bounds = edges(confidence, bins, equal)
    place = _place(confidence, bounds)
    table = []
    for number, (lower, upper) in enumerate(zip(bounds[:-1], bounds[1:])):
        inside = place == number
        if inside.any():
            accuracy = statistics.proportion(int(correct[inside].sum()), int(inside.sum()))
            table.append(Bin(float(lower), float(upper), float(confidence[inside].mean()),
                             accuracy.value, accuracy.low, accuracy.high, accuracy.n))
    return tuple(table)


def ece(confidence, correct, *, bins=10, equal='mass'):
    """Expected calibration error: sum over bins of n_b / N |accuracy_b - confidence_b|.

    Args: as of `reliability`. It is never below 0, so noise alone raises it: compare models on
    the same number of items, or look at `ece_interval`.
    Ref: Naeini et al. (2015); equal mass: Nguyen and O'Connor (2015), arXiv:1508.05154.
    """
    confidence, correct = _checked(confidence, correct)
    gaps = _gaps(confidence, correct, edges(confidence, bins, equal))
    return float(np.abs(gaps.sum(axis=0)).sum() / len(confidence))


def ece_interval(confidence, correct, *, bins=10, equal='mass', clusters=None, draws=10_000,
                 seed=0):
    """Bootstrap interval of the expected calibration error over fixed bins, bias corrected.

    The error is a sum of absolute values: a sample's is too high by what sampling adds, and a
    resample's by as much again. With m the mean excess of the resamples, the lower percentile is
    moved down by 2 m and the upper one by m (not below the value); and the lower limit is 0
    unless the error is beyond the 97.5 % quantile of resamples whose bins are calibrated (each
    gap less its bin's mean).
    """
    confidence, correct = _checked(confidence, correct)
    gaps = _gaps(confidence, correct, edges(confidence, bins, equal))
    inside = _gaps(confidence, confidence + 1, edges(confidence, bins, equal))
    centred = gaps - inside * (gaps.sum(axis=0) / np.maximum(inside.sum(axis=0), 1))[None]
    index, num = statistics.group(clusters, len(correct))
    sums = np.zeros((num, 2 * gaps.shape[1] + 1))
    np.add.at(sums, index, np.concatenate([gaps, centred, np.ones((len(correct), 1))], axis=1))
    chunks = [chunk @ sums for chunk in statistics.counts(num, draws, seed)]
    errors, noise = (np.concatenate([np.abs(chunk[:, part]).sum(axis=1) / chunk[:, -1]
                                     for chunk in chunks])
                     for part in (slice(gaps.shape[1]), slice(gaps.shape[1], -1)))
    value = ece(confidence, correct, bins=bins, equal=equal)
    low, high = statistics.limits(errors, num)
    excess = max(float(errors.mean()) - value, 0.)
    calibrated = value <= statistics.limits(noise, num)[1]
    low, high = 0. if calibrated else max(low - 2 * excess, 0.), max(high - excess, value)
    return statistics.Interval(value, low, high, len(correct),
                               f'bias-corrected bootstrap of {num} '
                               f'{"items" if clusters is None else "clusters"}')


def brier(confidence, correct):
    """Mean squared error of the confidences, mean((p - y)^2); 0 is best, always 1/2 gives 1/4."""
    confidence, correct = _checked(confidence, correct)
    return float(np.mean((confidence - correct) ** 2))


def auroc(confidence, correct):
    """The probability that a right answer is more confident than a wrong one; ties count half.

    NaN where all answers are right, or all wrong.
    """
    confidence, correct = _checked(confidence, correct)
    right, wrong = np.sort(confidence[correct > 0]), np.sort(confidence[correct == 0])
    if not len(right) or not len(wrong):
        return float('nan')
    below, upto = (np.searchsorted(wrong, right, side) for side in ('left', 'right'))
    return float((below + upto).mean() / 2 / len(wrong))


def risk_coverage(confidence, correct):
    """How accurate the model is if it answers only above a threshold.

    Answers of equal confidence are given or withheld together.

    Returns:
        (coverage, accuracy), float arrays from the most confident answers alone to all answers.
    """
    confidence, correct = _checked(confidence, correct)
    order = np.argsort(-confidence, kind='stable')
    answered = np.arange(1, len(order) + 1)
    last = np.append(np.diff(confidence[order]) != 0, True)
    return (answered / len(order))[last], (np.cumsum(correct[order]) / answered)[last]


def _place(confidence, bounds):
    """The bin of each confidence: lower <= confidence < upper, the last bin closed."""
    return np.minimum(np.searchsorted(bounds, confidence, 'right') - 1, len(bounds) - 2)


def _gaps(confidence, correct, bounds):
    """correct - confidence in the column of its bin: float [N, bins]."""
    gaps = np.zeros((len(confidence), len(bounds) - 1))
    gaps[np.arange(len(confidence)), _place(confidence, bounds)] = correct - confidence
    return gaps


def _checked(confidence, correct):
    confidence, correct = (np.asarray(x, dtype=float) for x in (confidence, correct))
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(correct):
        raise InputError(f'confidences {confidence.shape} and answers {correct.shape}; expected '
                         'as many of each, at least one')
    if not ((confidence >= 0) & (confidence <= 1)).all() or not np.isin(correct, (0, 1)).all():
        raise InputError(f'confidences from {confidence.min():g} to {confidence.max():g}; expected '
                         'probabilities in [0, 1] and answers that are right (1) or wrong (0)')
    return confidence, correct
