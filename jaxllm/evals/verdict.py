"""The verdict on a claim: a rule stated before the runs, judged over seeds."""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals import effects, statistics

UNDERPOWERED, REVERSED, NULL = 'UNDERPOWERED', 'REVERSED', 'NULL'
DIRECTION_ONLY, REPLICATED = 'DIRECTION_ONLY', 'REPLICATED'
WEAKEST_FIRST = (UNDERPOWERED, REVERSED, NULL, DIRECTION_ONLY, REPLICATED)
MIN_SEEDS, REPLICATION_SEEDS = 3, 5
PLAIN_DRAWS = 2000  # A plain function is called once per draw and seed.
UNDEFINED = 0.05  # The largest share of resamples in which an effect may be undefined.


@dataclasses.dataclass(frozen=True)
class Rule:
    """What must hold for a claim, fixed before the runs.

    name: of the effect ('slope per doubling').
    claim: the sentence that is tested.
    effect: function {arm: columns} -> float of one seed; above `null` = as claimed.
    null: the effect if the claim is empty.
    delta: the smallest distance from the null that counts.
    where: {column: value} of the rows that it reads, of every arm; see effects.select.
    """
    name: str
    claim: str
    effect: Callable
    null: float = 0.
    delta: float = 0.
    where: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not (self.delta >= 0 and math.isfinite(self.delta) and math.isfinite(self.null)):
            raise InputError(f'rule {self.name!r}: delta={self.delta}, null={self.null}; expected '
                             'a finite null and delta >= 0 (the effect is positive as claimed)')

    def stated(self):
        """What can be written down of it before the runs, for JSON."""
        return {'name': self.name, 'claim': self.claim, 'null': self.null, 'delta': self.delta,
                'where': {name: wanted.__qualname__ if callable(wanted) else repr(wanted)
                          for name, wanted in self.where.items()}}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the seeds say about a rule.

    effects_by_seed: {seed: effect}; NaN where it is undefined.
    effect: their mean.
    items: Interval, entities resampled within the seeds: what more items would change.
    seeds: Interval, Student's t over the seeds: what other seeds would change.
    verdict: one of WEAKEST_FIRST.
    reason: one sentence.
    """
    rule: Rule
    effects_by_seed: dict
    effect: float
    items: statistics.Interval
    seeds: statistics.Interval
    verdict: str
    reason: str

    @property
    def interval(self):
        """The interval to show: over the seeds once they are enough for one, else over items."""
        enough = len(self.effects_by_seed) >= REPLICATION_SEEDS
        return self.seeds if enough else self.items

    @property
    def low(self):
        return self.interval.low

    @property
    def high(self):
        return self.interval.high

    def as_dict(self):
        """For JSON."""
        finite = lambda value: value if math.isfinite(value) else None
        return {
            'rule': self.rule.name, 'claim': self.rule.claim, 'null': self.rule.null,
            'delta': self.rule.delta, 'verdict': self.verdict, 'reason': self.reason,
            'effect': finite(self.effect), 'low': finite(self.low), 'high': finite(self.high),
            'method': self.interval.method,
            'effects_by_seed': {str(s): finite(v) for s, v in self.effects_by_seed.items()},
            'items': self.items.as_dict(), 'seeds': self.seeds.as_dict()}


def judge(rule, rows, *, entity='subject', draws=10_000, seed=0):
    """Judge a rule over the seeds.

    The gate passes when every seed's effect lies on the same side of the null, AND the interval
    of the mean effect with entities resampled within seeds excludes the null, AND the mean
    effect is at least delta away from it; with 5 seeds or more Student's t interval over the
    seeds must exclude the null too. As claimed, it is DIRECTION_ONLY with 3 or 4 seeds and
    REPLICATED with 5 or more; the other way round REVERSED; not passed NULL. Fewer than 3 seeds,
    or an effect that is undefined in a seed or in over 5 % of the resamples: UNDERPOWERED.

    Args:
        rule: Rule.
        rows: {seed: {arm: {field: array [rows]}}}; the arms of a seed have the same entities,
            and the same items where they have a column 'id', in the rows that the rule reads.
        entity: the column that names what is resampled whole, in all arms at once.
        draws: resamples (at most PLAIN_DRAWS if the effect is a plain function).
        seed: of the resampling.

    Raises:
        InputError: no seeds; arms with different items or entities; a column that is missing.
    """
    if not rows:
        raise InputError(f'rule {rule.name!r}: no seeds to judge; run the sweep first')
    by_seed, drawn, entities = {}, [], 0
    draws = draws if isinstance(rule.effect, effects.Effect) else min(draws, PLAIN_DRAWS)
    for number, (name, arms) in enumerate(sorted(rows.items())):
        try:
            arms, index, num = _aligned(_read(rule, arms), entity)
            by_seed[name] = float(rule.effect(arms))
            drawn.append(_resampled(rule.effect, arms, index, num, draws, [seed, number]))
        except InputError as error:
            raise InputError(f'rule {rule.name!r}, seed {name}: {error}') from error
        entities += num
    values = np.array(list(by_seed.values()))
    means = np.mean(drawn, axis=0)
    undefined = float(np.isnan(means).mean())
    mean = float(values.mean())
    method = f'bootstrap of {entities:,} entities within {len(values)} seeds'
    items = statistics.Interval(mean, math.nan, math.nan, len(values), method)
    seeds = dataclasses.replace(items, method='undefined')
    if np.isfinite(values).all():
        seeds = statistics.across_seeds(values)
        if undefined <= UNDEFINED:
            low, high = statistics.limits(means[np.isfinite(means)], entities)
            items = dataclasses.replace(items, low=low, high=high)
    verdict, why = _decide(rule, values, items, seeds, undefined)
    result = Verdict(rule, by_seed, mean, items, seeds, verdict, reason='')
    text = (f'{rule.name} {_signed(mean)} [{_signed(result.low)}, {_signed(result.high)}] over '
            f'{len(values)} seed{"s" * (len(values) > 1)}: {why}')
    return dataclasses.replace(result, reason=text)


def overall(verdicts):
    """The verdict on a claim with several rules: all must pass, so the weakest one counts.

    From weak to strong: UNDERPOWERED, REVERSED, NULL, DIRECTION_ONLY, REPLICATED.
    """
    names = {getattr(verdict, 'verdict', verdict) for verdict in verdicts}
    if not names or names - set(WEAKEST_FIRST):
        raise InputError(f'verdicts {sorted(names)}; expected one or more of {WEAKEST_FIRST}')
    return min(names, key=WEAKEST_FIRST.index)


def _decide(rule, values, items, seeds, undefined):
    """(verdict, why)."""
    num, shift = len(values), values - rule.null
    sides = f'above {rule.null:g}' if items.value > rule.null else f'below {rule.null:g}'
    if not np.isfinite(values).all():
        return UNDERPOWERED, (f'the effect is undefined in {np.isnan(values).sum()} of them, '
                              'where its conditions hold for no item or do not vary')
    if num < MIN_SEEDS:
        return UNDERPOWERED, f'fewer than {MIN_SEEDS} seeds decide nothing'
    if undefined > UNDEFINED:
        return UNDERPOWERED, (f'the effect is undefined in {undefined:.0%} of the resamples, so '
                              'its conditions hold for too few entities')
    if not ((shift > 0).all() or (shift < 0).all()):
        return NULL, f'the seeds disagree ({(shift > 0).sum()} of {num} above {rule.null:g})'
    if not items.excludes(rule.null):
        return NULL, f'the interval over the items includes {rule.null:g}'
    if num >= REPLICATION_SEEDS and not seeds.excludes(rule.null):
        return NULL, (f"Student's t interval over the seeds [{_signed(seeds.low)}, "
                      f'{_signed(seeds.high)}] includes {rule.null:g}')
    # Accuracies are ratios of counts: a difference of .3 may be stored as .29999999999999993.
    if abs(shift.mean()) < rule.delta - 1e-9:
        return NULL, f'all seeds {sides}, but by less than the {rule.delta:g} fixed beforehand'
    passed = f'all seeds {sides}, by at least the {rule.delta:g} fixed beforehand'
    if shift.mean() < 0:
        return REVERSED, f'{passed}, against the claim'
    if num < REPLICATION_SEEDS:
        return DIRECTION_ONLY, f'{passed}; {num} seeds can show no more than the direction'
    return REPLICATED, passed


def _read(rule, arms):
    """The arms that the effect reads (all of them, for a plain function), and of them the rows."""
    effect, result = rule.effect, {}
    for arm in [name for name, _ in effect.parts] if isinstance(effect, effects.Effect) else arms:
        if arm not in arms:
            raise InputError(f'no arm {arm!r}; the arms are {", ".join(map(repr, arms))}')
        try:
            kept = effects.select(arms[arm], rule.where)
        except InputError as error:
            raise InputError(f'arm {arm!r}: {error}') from error
        if not kept.any():
            raise InputError(f'arm {arm!r} has no rows with {rule.stated()["where"]}; give the '
                             'rule a `where` that holds for some')
        result[arm] = {name: np.asarray(values)[kept] for name, values in arms[arm].items()}
    return result


def _aligned(arms, entity):
    """The arms with their rows in one order, where rows have ids; entities numbered alike.

    Returns:
        ({arm: columns}, {arm: index [rows] of each row's entity}, number of entities).
    """
    if not arms:
        raise InputError('no arms; expected {arm: columns}')
    first, *others = arms
    result = {first: arms[first]}
    names = np.unique(effects.column(arms[first], entity))
    for arm in others:
        table = arms[arm]
        try:
            if 'id' in arms[first] and 'id' in table:
                order = statistics.match(arms[first]['id'], table['id'])
                table = {name: np.asarray(values)[order] for name, values in table.items()}
            if not np.array_equal(np.unique(effects.column(table, entity)), names):
                raise InputError(f'the column {entity!r} names different entities; evaluate both '
                                 'on the same items')
        except InputError as error:
            raise InputError(f'arms {first!r} and {arm!r}: {error}') from error
        result[arm] = table
    index = {arm: np.searchsorted(names, effects.column(table, entity))
             for arm, table in result.items()}
    return result, index, len(names)


def _resampled(effect, arms, index, num, draws, seed):
    """The effect of each resample of the entities: float [draws]."""
    chunks = statistics.counts(num, draws, seed)
    if not isinstance(effect, effects.Effect):
        draw_rows = {arm: functools.partial(_rows, *_sorted(index[arm], num)) for arm in arms}
        return np.array([effect({
            arm: {name: np.asarray(values)[picked] for name, values in table.items()}
            for arm, table in arms.items() for picked in [draw_rows[arm](times)]})
            for chunk in chunks for times in chunk.astype(int)], dtype=float)
    parts = []
    for arm, moments in effect.moments(arms):
        sums = np.zeros((num, moments.rows.shape[1]))
        np.add.at(sums, index[arm], moments.rows)
        parts.append((sums, moments.value))
    return np.concatenate([effect.combine(*(value(chunk @ sums) for sums, value in parts))
                           for chunk in chunks])


def _sorted(index, num):
    """(rows in the order of their entities, [first row of each entity ..., number of rows])."""
    return np.argsort(index, kind='stable'), np.searchsorted(np.sort(index), np.arange(num + 1))


def _rows(order, edges, times):
    """The rows of entities that were drawn `times` [entities]."""
    entities = np.repeat(np.arange(len(times)), times)
    return np.concatenate([order[edges[e]:edges[e + 1]] for e in entities])


def _signed(value):
    return f'{value:+.3g}' if math.isfinite(value) else '?'
