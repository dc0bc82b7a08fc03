"""Do raters agree more than by chance? Krippendorff's alpha and Cohen's kappa."""

import collections
import itertools
import math


def krippendorff(units, level='nominal'):
    """Krippendorff's alpha = 1 - D_o / D_e: 1 is perfect agreement, 0 is chance, less is worse.

    D_o = sum_ck o_ck d2_ck / n and D_e = sum_ck n_c n_k d2_ck / (n (n - 1)), where o_ck counts the
    pairs of values within units, weighted 1 / (m_u - 1), n_c = sum_k o_ck and n = sum_c n_c.
    nominal: d2_ck = [c != k]; ordinal: d2_ck = (sum of n_g from c to k - (n_c + n_k) / 2)^2.

    Args:
        units: lists of the values that raters gave one thing; those with fewer than two say
            nothing and are left out. Values may be anything that sorts.
        level: 'nominal' or 'ordinal'.

    Returns: alpha, or NaN where all values are the same or no unit has two.

    Ref: Krippendorff (2011), Computing Krippendorff's alpha-reliability.
    """
    if level not in ('nominal', 'ordinal'):
        raise ValueError(f'level={level!r}; expected nominal or ordinal')
    together = collections.Counter()
    for values in units:
        for one, other in itertools.permutations(values, 2):
            together[one, other] += 1 / (len(values) - 1)
    totals = collections.Counter()
    for (value, _), count in together.items():
        totals[value] += count
    order, n = sorted(totals), sum(totals.values())
    below = {value: sum(totals[v] for v in order[:i]) for i, value in enumerate(order)}

    def distance(c, k):
        if level == 'nominal':
            return float(c != k)
        low, high = min(c, k), max(c, k)
        between = below[high] + totals[high] - below[low]
        return (between - (totals[low] + totals[high]) / 2) ** 2 if c != k else 0.0
    expected = sum(totals[c] * totals[k] * distance(c, k) for c in order for k in order)
    if not expected:
        return math.nan
    observed = sum(count * distance(c, k) for (c, k), count in together.items())
    return 1 - (n - 1) * observed / expected


def cohen(first, second):
    """Cohen's kappa = (p_o - p_e) / (1 - p_e) of two raters' values of the same things.

    p_o is the share of equal values and p_e = sum_c p_c q_c that of two who guess by their own
    frequencies. NaN where both say the same thing always, or there is nothing.

    Ref: Cohen (1960), A coefficient of agreement for nominal scales.
    """
    if len(first) != len(second):
        raise ValueError(f'{len(first)} values and {len(second)}; expected as many of both')
    n = len(first)
    if not n:
        return math.nan
    ours, theirs = collections.Counter(first), collections.Counter(second)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(ours[value] * theirs[value] for value in ours) / n ** 2
    return (agreed - chance) / (1 - chance) if chance < 1 else math.nan
