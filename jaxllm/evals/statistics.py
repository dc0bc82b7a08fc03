"""Intervals of what was measured: items in clusters, arms that share their items, several seeds."""

import dataclasses
import math

import numpy as np
from scipy import special

from jaxllm.errors import InputError

LEVEL = 0.95
FEW = 10  # Fewer successes or failures than this, and the bootstrap's tails cannot be trusted.
CHUNK = 2 ** 20  # Resampled numbers held in memory at once.


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value between its limits; NaN limits say that the data give none.

    `n` counts items (seeds, where seeds are the unit); `method` says how the limits were found.
    """
    value: float
    low: float
    high: float
    n: int
    method: str = ''

    def excludes(self, null=0.):
        """Whether the null lies outside; never without limits."""
        return self.low > null or self.high < null

    def as_dict(self):
        """For JSON: None where there is no limit."""
        return {name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in dataclasses.asdict(self).items()}


def counts(num, draws, seed):
    """How often each of `num` units is drawn, in chunks: floats [chunk, num], rows sum to num.

    Args:
        num: units, drawn with replacement.
        draws: resamples in total.
        seed: int or sequence of ints; equal seeds give equal counts.
    """
    generator = np.random.default_rng(seed)
    size = max(CHUNK // num, 1)
    for start in range(0, draws, size):
        rows = min(size, draws - start)
        picks = generator.integers(num, size=(rows, num), dtype=np.int32)
        picks += np.arange(0, rows * num, num, dtype=np.int32)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * num).reshape(rows, num).astype(float)


def group(clusters, num_rows):
    """Number the clusters.

    Returns:
        (index [num_rows] of each row's cluster, how many clusters). None = each row is its own.
    """
    if clusters is None:
        return np.arange(num_rows), num_rows
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(index) != num_rows:
        raise InputError(f'{len(index)} clusters for {num_rows} values; give one cluster per value')
    return index, len(names)


def limits(draws, num, level=LEVEL):
    """Percentile limits of resampled values, widened for few units as Student's t is.

    The bootstrap's spread is too small by sqrt((n - 1) / n), and a normal tail takes the place of
    a t tail; the percentiles are moved outwards to make up for both (no difference for large n).
    Ref: Hesterberg, What Teachers Should Know About the Bootstrap (2015), section 'Expanded
    percentile interval'.

    Args:
        draws: float [draws].
        num: independent units that were resampled.
        level: of the interval.
    """
    if num < 2:
        return math.nan, math.nan
    tail = special.ndtr(special.stdtrit(num - 1, (1 - level) / 2) * math.sqrt(num / (num - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def proportion(successes, n, level=LEVEL):
    """Wilson's interval of a proportion: has a width even at 0 of n and at n of n.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    `successes` need not be whole (a mean over clusters times their number).
    Ref: Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    if not 0 <= successes <= n or n < 1:
        raise InputError(f'{successes} successes of {n}; expected 0 <= successes <= n, n >= 1')
    p, z = successes / n, float(special.ndtri((1 + level) / 2))
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return Interval(p, 0. if successes == 0 else (centre - half) / scale,
                    1. if successes == n else (centre + half) / scale, n, 'Wilson')


def bootstrap(values, *, clusters=None, statistic=None, draws=10_000, seed=0, level=LEVEL):
    """Percentile bootstrap of a mean, or of any statistic of weighted rows.

    A mean of 0s and 1s of which one is rare (in fewer than FEW clusters) gets Wilson's interval
    with as many trials as there are clusters: resampling what was never seen gives no width.

    Args:
        values: float or bool [N].
        clusters: names [N]; rows of one cluster (questions on one person) are drawn together.
        statistic: function (weights [draws, N]) -> [draws]; None = the weighted mean of `values`.
        draws: resamples.
        seed: of the resampling.
        level: of the interval.

    Raises:
        InputError: no values, or values that are not finite.
    """
    values = _checked(values)
    index, num = group(clusters, len(values))
    units = f'bootstrap of {num} {"items" if clusters is None else "clusters"}'
    if statistic is None:
        if np.isin(values, (0, 1)).all() and _rare(values, index) < FEW:
            wilson = proportion(values.mean() * num, num, level)
            return dataclasses.replace(wilson, value=float(values.mean()), n=len(values),
                                       method=f'Wilson, {num} trials')
        sums = np.stack([np.bincount(index, values), np.bincount(index)], axis=1)
        total = sums.sum(axis=0)
        value = total[0] / total[1]
        drawn = [chunk @ sums for chunk in counts(num, draws, seed)]
        drawn = np.concatenate([s[:, 0] / s[:, 1] for s in drawn])
    else:
        value = statistic(np.ones((1, len(values))))[0]
        drawn = np.concatenate([statistic(chunk[:, index]) for chunk in counts(num, draws, seed)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = limits(drawn, num, level) if len(drawn) else (math.nan, math.nan)
    return Interval(float(value), low, high, len(values), units)


def match(ids_a, ids_b):
    """Where each id of a stands in b.

    Raises:
        InputError: an id repeats, or is on one side only.
    """
    ids_a, ids_b = np.asarray(ids_a), np.asarray(ids_b)
    for side, ids in (('first', ids_a), ('second', ids_b)):
        names, times = np.unique(ids, return_counts=True)
        if len(names) < len(ids):
            raise InputError(f'item {str(names[times > 1][0])!r} appears {times.max()} times in '
                             f'the {side} arm; pairs need ids that are unique')
    for side, more in (('first', np.setdiff1d(ids_a, ids_b)),
                       ('second', np.setdiff1d(ids_b, ids_a))):
        if len(more):
            shown = ', '.join(repr(str(name)) for name in more[:3])
            raise InputError(
                f'the arms were measured on different items: {len(more)} only in the {side} '
                f'({shown}{", ..." if len(more) > 3 else ""}); evaluate both on the same items')
    order = np.argsort(ids_b)
    return order[np.searchsorted(ids_b, ids_a, sorter=order)]


def hierarchical(values, *, seeds, clusters=None, resample_seeds=True, signed=False,
                 draws=10_000, seed=0, level=LEVEL):
    """Bootstrap of the mean over seeds of each seed's mean: seeds, then clusters within each.

    Resampling fewer than 5 seeds gives intervals that are too narrow; without `resample_seeds`
    the interval speaks of these seeds alone, whatever their number.

    Args:
        values: float or bool [N].
        seeds: [N], the seed of each row.
        clusters: names [N]; those of one seed are drawn whole. None = each row is its own.
        resample_seeds: draw the seeds too.
        signed: the values are differences between arms, for which 0 is no edge.
    """
    values, seeds = _checked(values), np.asarray(seeds)
    names = np.unique(seeds)
    value, drawn, num, rare = 0., [], 0, np.zeros(2, dtype=int)
    for number, name in enumerate(names):
        rows = seeds == name
        index, clusters_here = group(None if clusters is None else np.asarray(clusters)[rows],
                                     rows.sum())
        sums = np.stack([np.bincount(index, values[rows]), np.bincount(index)], axis=1)
        value += sums[:, 0].sum() / sums[:, 1].sum() / len(names)
        chunks = (chunk @ sums for chunk in counts(clusters_here, draws, [seed, number]))
        drawn.append(np.concatenate([s[:, 0] / s[:, 1] for s in chunks]))
        num += clusters_here
        rare += [len(np.unique(index[other])) for other in (values[rows] != 0, values[rows] != 1)]
    means = over_seeds(np.stack(drawn), resample_seeds, [seed, len(names)])
    low, high = limits(means, len(names) if resample_seeds else num, level)
    what = 'seeds, then items' if resample_seeds else 'items within seeds'
    method = f'bootstrap of {what}, {len(names)} seeds'
    if signed and np.isin(values, (-1, 0, 1)).all() and rare[0] < FEW:
        share = num / len(values)
        edges = _tango(share * np.sum(values > 0), share * np.sum(values < 0), num, level)
        low, high, method = min(low, edges[0]), max(high, edges[1]), f'Tango and {method}'
    elif not signed and np.isin(values, (0, 1)).all() and rare.min() < FEW:
        wilson = proportion(min(value, 1.) * num, num, level)
        low, high, method = min(low, wilson.low), max(high, wilson.high), f'Wilson and {method}'
    return Interval(float(value), low, high, len(values), method)


def over_seeds(drawn_SD, resample, seed):
    """Means over seeds of resampled values [seeds, draws]; the seeds resampled too, or not.

    A seed that is drawn twice counts with two different resamples of its items.
    """
    if not resample:
        return drawn_SD.mean(axis=0)
    generator, (num, draws) = np.random.default_rng(seed), drawn_SD.shape
    total = np.zeros(draws)
    for _ in range(num):
        total += drawn_SD[generator.integers(num, size=draws), generator.permutation(draws)]
    return total / num


def across_seeds(effects, level=LEVEL):
    """Student's t interval of the mean over seeds: the seed is the unit.

    mean +- t(n - 1) * s / sqrt(n), which takes the seeds' effects as normal. One seed has no
    limits.

    Args:
        effects: float [seeds].
    """
    effects = _checked(effects)
    num = len(effects)
    mean, half = float(effects.mean()), math.nan
    if num > 1:
        half = float(-special.stdtrit(num - 1, (1 - level) / 2)
                     * effects.std(ddof=1) / math.sqrt(num))
    return Interval(mean, mean - half, mean + half, num, f"Student's t over {num} seeds")


def _rare(values, index):
    """In how many clusters the rarer of 0 and 1 occurs."""
    return min(len(np.unique(index[values == value])) for value in (0, 1))


def _tango(wins, losses, n, level):
    """Limits of the paired difference: where the score test of delta reaches z (by bisection).

    Ref: Tango (1998), Equivalence test and confidence interval for the difference in proportions
    for the paired-sample design.
    """
    z, value = float(special.ndtri((1 + level) / 2)), (wins - losses) / n

    def score(delta):
        b = (2 * n - wins + losses) * delta - wins - losses
        root = math.sqrt(max(b * b + 8 * n * losses * delta * (1 - delta), 0.))
        variance = n * ((root - b) / (2 * n) + delta * (1 - delta))
        return abs(wins - losses - n * delta) / math.sqrt(variance) if variance > 0 else math.inf
    ends = []
    for outside in (-1., 1.):
        inside = value
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if score(middle) < z else (inside, middle)
        ends.append(inside)
    return tuple(ends)


def _checked(values):
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f'got values of shape {values.shape} with {np.isnan(values).sum()} NaN; '
                         'expected at least one finite number in one dimension')
    return values
