"""Reads a sweep: its table, and what its runs measured, as far as they are done."""

import collections
import dataclasses
import json
import math
import pathlib

import numpy as np

from jaxllm.errors import InputError
from jaxllm.report import done as marks
from jaxllm.report import files
from jaxllm.train import metrics


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep's directory says. Keys are (arm, seed)."""
    name: str
    config: str        # 'FILE.py:arg'
    overrides: tuple
    arms: dict         # {name: what it sets}
    seeds: tuple
    began: dict        # rules and hash of the config file as of the first start; may be empty
    folders: dict      # {key: {step: folder}}
    done: frozenset    # of folders
    values: dict       # {key: {metric: float}}
    units: dict        # {metric: unit or ''}
    items: dict        # {key: rows of all items.jsonl}; only where all steps are done
    curves: dict       # {key: {step: ((train step, validation loss), ...)}}

    def undone(self, key):
        """The steps of a line that are not done."""
        return [step for step, folder in self.folders[key].items() if folder not in self.done]

    def jobs(self):
        """{folder: whether it is done} of all runs."""
        return {folder: folder in self.done for steps in self.folders.values()
                for folder in steps.values()}


def read_sweep(workdir):
    """The Sweep in a directory, finished or not.

    Raises:
      InputError: no sweep there, or a broken file.
    """
    workdir = pathlib.Path(workdir)
    table = files.read_json(workdir / 'sweep.json', None)
    if table is None:
        raise InputError(f'{workdir} holds no sweep (no sweep.json); give the --workdir of a sweep')
    folders = {(run['arm'], run['seed']): {step: workdir / place
                                           for step, place in run['steps'].items()}
               for run in table['runs']}
    values, units, items, curves = {}, {}, {}, {}
    every = {folder for steps in folders.values() for folder in steps.values()}
    done = frozenset(filter(marks.is_done, every))
    measured = {folder: _measured(folder, folder in done) for folder in every}
    # A metric is called by its step where several steps have it.
    has = {(name, step) for steps in folders.values() for step, folder in steps.items()
           for name in measured[folder].values}
    steps_with = collections.Counter(name for name, _ in has)
    for key, steps in folders.items():
        values[key], rows = {}, []
        for step, folder in steps.items():
            found = measured[folder]
            for name, (value, unit) in found.values.items():
                full = name if steps_with[name] == 1 else f'{step}: {name}'
                values[key][full], units[full] = value, unit
            rows += [{'step': step, **row, 'id': f'{step}:{row.get("suite", "")}:{row["id"]}'}
                     for row in found.items]
        curves[key] = {step: measured[folder].curve for step, folder in steps.items()}
        if rows and done.issuperset(steps.values()):
            items[key] = rows
    return Sweep(workdir.resolve().name, table['config'], tuple(table['overrides']),
                 {arm['name']: arm['set'] for arm in table['arms']}, tuple(table['seeds']),
                 table['began'] if 'began' in table else {}, folders, done,
                 values, {name: units[name] for name in sorted(units, key=_interest)}, items,
                 curves)


def _interest(metric):
    """Sorts metrics: what models were asked, bits per byte, losses while they trained, constants;
    within each as they come, headlines before their parts."""
    late = ('bits_per_byte' in metric) + 2 * metric.rpartition(': ')[2].startswith('val/')
    return 4 if metric.endswith('/chance') else late, metric.count('/') > 1


@dataclasses.dataclass(frozen=True)
class _Measured:
    values: dict   # {metric: (value, unit)}
    items: tuple
    curve: tuple


def _measured(folder, done):
    """What one run says. An unfinished one has a curve, and no values."""
    records = metrics.read_jsonl(folder / 'metrics.jsonl')
    evals = [record for record in records if record['kind'] == 'eval']
    curve = files.series(evals, 'val/loss')
    if not done:
        return _Measured({}, (), curve)
    values = {name: (metrics.as_number(value), '') for name, value in (evals or [{}])[-1].items()
              if name.startswith('val/') and metrics.as_number(value) is not None}
    results = files.read_json(folder / 'results.json', {}).get('metrics', {})
    values |= {name: (float(result['value']), result.get('unit') or '')
               for name, result in results.items() if result.get('value') is not None}
    path = folder / 'items.jsonl'
    rows = tuple(map(json.loads, path.read_text(encoding='utf-8').splitlines())
                 ) if path.exists() else ()
    finite = {name: pair for name, pair in values.items() if math.isfinite(pair[0])}
    return _Measured(finite, rows, curve)


def columns(rows):
    """{field: array} of rows whose fields may differ: what is missing is '' or NaN, or None."""
    table = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {bool, int, float}:
            lacking = math.nan
        elif kinds == {str}:
            lacking = ''
        else:
            table[name] = np.empty(len(values), dtype=object)
            table[name][:] = values
            continue
        table[name] = np.array([lacking if value is None else value for value in values])
    return table


def rows_by_seed(sweep):
    """{seed: {arm: columns}} of the seeds whose arms are all done: what rules are judged on."""
    return {seed: {arm: columns(sweep.items[arm, seed]) for arm in sweep.arms}
            for seed in sweep.seeds if all((arm, seed) in sweep.items for arm in sweep.arms)}
