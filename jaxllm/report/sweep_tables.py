"""The sections of a sweep's page: each a pure function to HTML, '' where there is nothing to say.

An interval is that of Student's t over the seeds, unless it says otherwise.
"""

import collections
import math
import os

import numpy as np

from jaxllm.evals import statistics
from jaxllm.report import page
from jaxllm.report.figure_rows import Row, compared
from jaxllm.report.figures import Point, Series, points
from jaxllm.report.plots import Line, chart

COLUMNS = 6      # Up to so many arms stand side by side; more are rows.
CHARTS = 12
ENTITY = 'subject'
# Suites in which `correct` says that an answer is right. Elsewhere it says that two answers agree,
# that a text is extracted, ...
GRADED = ('recall', 'answers', 'choice', 'instructions', 'safety', 'citations', 'languages',
          'harness')


def verdict(judged):
    """The claim, what the seeds say, and the rules that were fixed beforehand."""
    if not judged:
        return ''
    head = (f'<div class="tiles">{page.tile("Verdict", judged["verdict"])}</div>'
            f'<p>{page.escape(judged["claim"])}</p>')
    if judged['changed']:
        head += f'<div class="card notes">{page.escape(judged["changed"])}</div>'
    rows = [{'rule': rule['rule'], 'claim': rule['claim'], 'verdict': rule['verdict'],
             'effect': interval(rule['effect'], rule['low'], rule['high'], signed=True),
             'at least': rule['delta'],
             'why': (f'{rule["so_far"]} so far: ' if 'so_far' in rule else '')
             + rule['reason'].partition(': ')[2]} for rule in judged['rules']]
    charts = ''.join(_effect(rule) for rule in judged['rules'])
    note = ''
    if judged['missing'] and judged['seeds']:
        note = f'<p class="quiet">Judged on the seeds {judged["seeds"]} alone.</p>'
    return (head + (page.table(rows) if rows else '') + note
            + (f'<div class="charts">{charts}</div>' if charts else ''))


def _effect(rule):
    """A figure of one rule: its effect, that of each seed, the null and what was fixed."""
    number = lambda x: math.nan if x is None else x
    row = Row(rule['verdict'], number(rule['effect']), number(rule['low']), number(rule['high']),
              tuple(map(number, rule['effects_by_seed'].values())))
    return compared(rule['rule'], '', [row], null=rule['null'], delta=rule['delta'] or None)


def missing(sweep, keys, problem):
    """What is not done, and what is wrong."""
    items = [f'{arm}, seed {seed}: {", ".join(sweep.undone((arm, seed)))}' for arm, seed in keys]
    items += [problem] if problem else []
    lines = ''.join(f'<li>{page.escape(item)}</li>' for item in items)
    return f'<div class="card notes"><ul>{lines}</ul></div>' if items else ''


def means(sweep):
    """Every metric of every arm: the mean over the seeds, with its interval."""
    cells = {}
    for metric in sweep.units:
        for arm in sweep.arms:
            values = _values(sweep, metric, arm)
            if values:
                cells[metric, arm] = (over_seeds(list(values.values()))
                                      + _of_all(values, sweep.seeds))
    return _grid(cells, list(sweep.arms), sweep.units) + _quiet(
        "Mean over the seeds [95 % interval of Student's t, the seed as the unit]; one seed has no "
        'interval.', cells)


def differences(sweep, reference):
    """Every metric of the other arms minus the reference, seed by seed."""
    cells = {}
    others = [arm for arm in sweep.arms if arm != reference]
    for metric in sweep.units:
        base = _values(sweep, metric, reference)
        for arm in others:
            values = _values(sweep, metric, arm)
            shared = [values[seed] - base[seed] for seed in values if seed in base]
            if shared:
                cells[metric, arm] = (over_seeds(shared, signed=True)
                                      + _of_all(shared, sweep.seeds))
    return _grid(cells, others, sweep.units) + _quiet(
        f'Arm minus {reference}, paired by seed: the mean of the differences and its interval.',
        cells)


def paired_items(sweep, reference):
    """Right answers of the other arms minus the reference on the items that both were asked.

    A pair is left out where one of the arms lacks the item or has no grade for it.
    """
    cells, seeds = {}, sorted({seed for _, seed in sweep.items})
    others = [arm for arm in sweep.arms if arm != reference]
    for arm in others:
        by_suite, dropped = {}, collections.Counter()
        for seed in seeds:
            if (arm, seed) in sweep.items and (reference, seed) in sweep.items:
                pairs, alone = _pairs(sweep, arm, reference, seed)
                dropped.update(alone)
                for suite, rows in pairs.items():
                    by_suite.setdefault(suite, []).extend(rows)
        for suite, rows in by_suite.items():
            values, clusters, of_seed = zip(*rows, strict=True)
            num = len(set(of_seed))
            found = statistics.hierarchical(
                values, seeds=of_seed, clusters=np.array(clusters), resample_seeds=num >= 5,
                signed=True)
            cells[suite, arm] = interval(found.value, found.low, found.high, signed=True) + (
                f' ({len(rows):,} pairs, {dropped[suite]:,} dropped)')
        cells |= {(suite, arm): f'– (0 pairs, {num:,} dropped)' for suite, num in dropped.items()
                  if suite not in by_suite}
    return _grid(cells, others, {}) + _quiet(
        f'Share of right answers, arm minus {reference}, on the same items of the same seed; '
        f'bootstrap over {ENTITY}s within the seeds (and over the seeds, from five on). Dropped: '
        'items that one of the two lacks, or has no grade for.', cells)


def _pairs(sweep, arm, reference, seed):
    """{suite: [(difference, entity, seed)]} of the items of both arms, {suite: items of one}."""
    ours, base = (_graded(sweep.items[key]) for key in ((arm, seed), (reference, seed)))
    found, dropped = {}, collections.Counter()
    for key, row in (base | ours).items():
        other = base.get(key)
        if key in ours and other and None not in (row['correct'], other['correct']):
            found.setdefault(row['suite'], []).append(
                (float(row['correct']) - float(other['correct']),
                 str(row.get(ENTITY, row['id'])), seed))
        else:
            dropped[row['suite']] += 1
    return found, dropped


def _graded(rows):
    """{id: row} of the rows whose `correct` says that an answer is right."""
    return {row['id']: row for row in rows if 'correct' in row and 'suite' in row
            and row['suite'].partition('/')[0] in GRADED}


def by_metric(sweep):
    """A figure per metric: the mean of every arm with its interval, and each seed's value."""
    if len(sweep.arms) < 2:
        return ''
    charts = []
    for metric in sweep.units:
        values = {arm: _values(sweep, metric, arm) for arm in sweep.arms}
        mean = Series('mean over seeds', tuple(
            Point.of(arm, statistics.across_seeds(list(found.values())))
            for arm, found in values.items() if found), joined=False)
        seeds = [Series(f'seed {seed}', tuple(
            Point(arm, found[seed]) for arm, found in values.items() if seed in found),
            number, joined=False) for number, seed in enumerate(sweep.seeds, 1)]
        charts.append(points(metric, sweep.units[metric], [mean, *seeds]))
    if not charts:
        return ''
    more = ''.join(charts[CHARTS:])
    return (f'<div class="charts">{"".join(charts[:CHARTS])}</div>'
            + (f'<details><summary>{len(charts) - CHARTS} more metrics</summary>'
               f'<div class="charts">{more}</div></details>' if more else ''))


def curves(sweep):
    """The validation loss along training: per training step of the chain, a line per arm."""
    steps = dict.fromkeys(step for found in sweep.curves.values() for step, curve in found.items()
                          if curve)
    charts = []
    for step in steps:
        lines = []
        for number, arm in enumerate(sweep.arms):
            found = [dict(sweep.curves[arm, seed].get(step, ())) for seed in sweep.seeds
                     if (arm, seed) in sweep.curves]
            found = [curve for curve in found if curve]
            shared = set.intersection(*map(set, found)) if found else set()
            lines.append(Line(arm, tuple((at, sum(curve[at] for curve in found) / len(found))
                                         for at in sorted(shared)), number))
        charts.append(chart(f'{step}: validation loss', 'nats/token, mean over seeds', lines))
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ''


def settings(sweep):
    """What each arm sets."""
    rows = [{'arm': name, **{key: page.literal(value) for key, value in values.items()}}
            for name, values in sweep.arms.items()]
    return page.table(rows) + page.pairs(
        {'file': sweep.config, **{f'override {number}': text for number, text
                                  in enumerate(sweep.overrides, 1)}})


def runs(sweep, workdir):
    """Links to the report and the log of every run."""
    steps = list(dict.fromkeys(step for folders in sweep.folders.values() for step in folders))
    head = ''.join(f'<th>{page.escape(name)}</th>' for name in ('arm', 'seed', *steps))
    lines = []
    for (arm, seed), folders in sweep.folders.items():
        cells = [page.escape(arm), str(seed)]
        for step in steps:
            folder = folders.get(step)
            links = [] if folder is None else [
                f'<a href="{page.escape(os.path.relpath(folder / file, workdir))}">{text}</a>'
                for file, text in (('report.html', 'report'), ('log.txt', 'log'))
                if (folder / file).exists()]
            state = '' if folder is None else (
                'done' if folder in sweep.done else 'not done')
            cells.append(' '.join([state, *links]))
        lines.append('<tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>\n')
    return (f'<div class="card wide"><table><tr>{head}</tr>\n{"".join(lines)}</table></div>')


def _of_all(values, seeds):
    """' (2 of 3 seeds)' where a cell is not of all of them."""
    return '' if len(values) == len(seeds) else f' ({len(values)} of {len(seeds)} seeds)'


def over_seeds(values, signed=False):
    """'0.53 [0.49, 0.57]' of the values of several seeds."""
    found = statistics.across_seeds(values)
    return interval(found.value, found.low, found.high, signed)


def interval(value, low, high, signed=False):
    """'0.53 [0.49, 0.57]'; limits that are None or NaN are left out."""
    number = lambda x: f'{x:{"+" if signed else ""}.3g}'
    finite = lambda x: x is not None and math.isfinite(x)
    if not finite(value):
        return '–'
    if not (finite(low) and finite(high)):
        return number(value)
    return f'{number(value)} [{number(low)}, {number(high)}]'


def _values(sweep, metric, arm):
    """{seed: value}."""
    return {seed: sweep.values[arm, seed][metric] for seed in sweep.seeds
            if metric in sweep.values.get((arm, seed), {})}


def _grid(cells, arms, units):
    """A table of {(metric, arm): text}: a column per arm, or a row per arm where there are many."""
    metrics = list(dict.fromkeys(metric for metric, _ in cells))
    if not metrics:
        return ''
    name = lambda metric: f'{metric} ({units[metric]})' if units.get(metric) else metric
    if len(arms) <= COLUMNS:
        rows = [{'metric': name(metric)} | {arm: cells.get((metric, arm)) for arm in arms}
                for metric in metrics]
    else:
        rows = [{'arm': arm} | {name(metric): cells.get((metric, arm)) for metric in metrics}
                for arm in arms]
    return page.table(rows)


def _quiet(text, cells):
    return f'<p class="quiet">{page.escape(text)}</p>' if cells else ''
