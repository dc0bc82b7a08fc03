"""Effects that ablations share: statistics of item rows that are cheap to resample.

A statistic is a function of sums over rows (a mean is one sum over another), so a bootstrap of
10,000 resamples is one product of matrices: counts [draws, entities] @ sums [entities, K].
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxllm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Moments:
    """What a statistic sums over rows, and what it makes of the sums.

    rows: float [rows, K].
    value: function (sums [..., K]) -> [...]; NaN where it is undefined (no rows).
    """
    rows: np.ndarray
    value: Callable

    @property
    def total(self):
        return self.value(self.rows.sum(axis=0))


@dataclasses.dataclass(frozen=True)
class Effect:
    """A number made of statistics of arms; called with {arm: columns} of one seed.

    parts: ((arm, statistic), ...); a statistic is a function (columns) -> Moments.
    combine: function (value of each part, ...) -> effect, elementwise.
    """
    parts: tuple
    combine: Callable

    def moments(self, arms):
        """[(arm, Moments)] of each part.

        Raises:
            InputError: there is no such arm.
        """
        for arm, _ in self.parts:
            if arm not in arms:
                raise InputError(f'no arm {arm!r}; the arms are {", ".join(map(repr, arms))}')
        return [(arm, statistic(arms[arm])) for arm, statistic in self.parts]

    def __call__(self, arms):
        return float(self.combine(*(moments.total for _, moments in self.moments(arms))))


def column(table, name):
    """A column of a table.

    Raises:
        InputError: there is none of that name.
    """
    if name not in table:
        raise InputError(f'no column {name!r}; the items have {", ".join(sorted(table))}')
    return np.asarray(table[name])


def select(table, where):
    """The rows where every condition holds: bool [rows].

    Args:
        table: columns.
        where: {column: value, tuple of values, or function (column) -> bool array}.
    """
    kept = np.ones(len(next(iter(table.values()))), dtype=bool)
    for name, wanted in where.items():
        values = column(table, name)
        kept &= np.asarray(wanted(values) if callable(wanted) else np.isin(
            values, wanted if isinstance(wanted, (tuple, list, set)) else [wanted]), dtype=bool)
    return kept


def mean(name='correct', /, **where):
    """The mean of a column over the rows where the conditions hold."""
    def statistic(table):
        kept = select(table, where).astype(float)
        return Moments(np.stack([_numbers(table, name, kept), kept], axis=1),
                       lambda sums: _ratio(sums[..., 0], sums[..., 1]))
    return statistic


def slope(name='correct', exposures='exposures', /, **where):
    """The gain of a column per doubling of the exposures: least squares on log2(f), f >= 1.

    (n Sxy - Sx Sy) / (n Sxx - Sx^2) over item rows, x = log2(f).
    """
    def statistic(table):
        times = column(table, exposures).astype(float)
        kept = (select(table, where) & (times >= 1)).astype(float)
        x = np.log2(np.maximum(times, 1)) * kept
        y = _numbers(table, name, kept)

        def value(sums):
            n, sx, sy, sxx, sxy = np.moveaxis(sums, -1, 0)
            spread = n * sxx - sx * sx
            return _ratio(n * sxy - sx * sy, np.where(spread > 1e-9 * n * sxx, spread, 0))
        return Moments(np.stack([kept, x, y, x * x, x * y], axis=1), value)
    return statistic


def rank_correlation(name='correct', by='exposures', /, **where):
    """Spearman's correlation between the values of `by` and the mean of a column at each.

    Ties share their mean rank. Undefined where all means are equal, or a value has no row left.
    """
    def statistic(table):
        kept = select(table, where)
        keys = column(table, by)
        bins = np.unique(keys[kept])
        inside = ((keys[:, None] == bins[None]) & kept[:, None]).astype(float)
        y = _numbers(table, name, kept.astype(float))

        def value(sums):
            means = _ratio(sums[..., :len(bins)], sums[..., len(bins):])
            y_ranks = ranks(means) - (len(bins) + 1) / 2
            x_ranks = np.arange(len(bins)) - (len(bins) - 1) / 2
            norm = np.sqrt((y_ranks ** 2).sum(-1) * (x_ranks ** 2).sum())
            return _ratio(y_ranks @ x_ranks, norm) + 0 * means.sum(-1)  # NaN where a mean is
        return Moments(np.concatenate([inside * y[:, None], inside], axis=1), value)
    return statistic


def ranks(values):
    """Ranks 1..n over the last axis; ties share their mean rank."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return below + (equal + 1) / 2


def of(arm, statistic):
    """A statistic of one arm."""
    return Effect(((arm, statistic),), lambda value: value)


def difference(treated, control, statistic, other=None):
    """The statistic in arm `treated` minus that in arm `control` (there: `other`, if given).

    The arms share their items: judged together, each resample draws the same entities in both.
    `treated` and `control` may be the same arm, with two statistics.
    """
    return Effect(((treated, statistic), (control, other or statistic)), lambda a, b: a - b)


@dataclasses.dataclass(frozen=True)
class OnTreated(Effect):
    """The mean of a column in `control` minus that in `treated`, over the same items.

    The entities are those with `treated` true in the arm `treated` (in `control` nobody is); their
    items are those where the conditions hold in `control`, since a treatment may change what they
    look at.
    """
    name: str = 'correct'
    entity: str = 'subject'
    where: tuple = ()

    def moments(self, arms):
        (control, _), (treated, _) = self.parts
        for arm in (control, treated):
            if arm not in arms:
                raise InputError(f'no arm {arm!r}; the arms are {", ".join(map(repr, arms))}')
        marked = column(arms[treated], 'treated').astype(float)  # None becomes NaN
        entities = np.unique(column(arms[treated], self.entity)[np.nan_to_num(marked) > 0])
        kept = select(arms[control], dict(self.where)) & np.isin(
            column(arms[control], self.entity), entities)
        chosen = column(arms[control], 'id')[kept]
        lacking = np.setdiff1d(chosen, column(arms[treated], 'id'))
        if len(lacking):
            raise InputError(f'the arm {treated!r} lacks {len(lacking)} of the {len(chosen)} items '
                             f'of {control!r} ({str(lacking[0])!r}); evaluate both on the same '
                             'items')
        statistic = mean(self.name, id=lambda values: np.isin(values, chosen))
        return [(arm, statistic(arms[arm])) for arm in (control, treated)]


def on_treated(control, treated, name='correct', /, *, entity='subject', **where):
    """What the treated entities lose by a treatment: control minus treated (see OnTreated)."""
    return OnTreated(((control, None), (treated, None)), lambda a, b: a - b, name, entity,
                     tuple(where.items()))


def _numbers(table, name, kept):
    """A column as floats, 0 in the rows that do not count (whatever stands there)."""
    values = column(table, name)
    if values.dtype == object:
        values = np.where(kept > 0, values, 0)
    return np.where(kept > 0, values.astype(float), 0.)


def _ratio(top, bottom):
    """top / bottom, NaN where the bottom is 0."""
    top, bottom = np.asarray(top, dtype=float), np.asarray(bottom, dtype=float)
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan),
                     where=np.abs(bottom) > 1e-12)
