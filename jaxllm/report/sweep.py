"""The page that compares the arms of a sweep, and the verdict on the claim that it tests.

Besides get_config and get_sweep, the config file of an ablation has
  get_rules() -> [verdict.Rule], judged on {seed: {arm: columns of items.jsonl}};
  CLAIM, a text; REFERENCE, the arm that the others are compared to (default: the first);
  get_figures(rows) -> [HTML of a figure], optional, of the same rows.
"""

import hashlib
import json
import os
import pathlib

from jaxllm.config import load_module, write_atomic
from jaxllm.errors import InputError
from jaxllm.evals import verdict
from jaxllm.report import page, sweep_files, sweep_tables
from jaxllm.report.page import Section

UNFINISHED, PRELIMINARY = 'UNFINISHED', 'PRELIMINARY'


def write_report(workdir):
    """Writes report.html of a sweep, finished or not, and verdict.json where its file has rules.

    Returns:
        The path of the report.

    Raises:
        InputError: no sweep in the directory, a broken file, or rules that do not fit the items.
    """
    workdir = pathlib.Path(workdir)
    sweep = sweep_files.read_sweep(workdir)
    module, problem = _module(sweep)
    judged, figures = {}, []
    if module:
        rows = sweep_files.rows_by_seed(sweep)
        if hasattr(module, 'get_rules') or (sweep.began and sweep.began['rules']):
            judged = judge(sweep, module, rows)
            write_atomic(workdir / 'verdict.json', json.dumps(judged, indent=1) + '\n')
        if hasattr(module, 'get_figures') and rows:
            figures = module.get_figures(rows)
    reference = _reference(sweep, module)
    missing = [key for key in sweep.folders if sweep.undone(key)]
    text = page.page(
        f'sweep: {sweep.name}', _subtitle(sweep),
        [Section('Verdict', sweep_tables.verdict(judged)),
         Section('Not done', sweep_tables.missing(sweep, missing, problem)),
         Section('Figures', f'<div class="charts">{"".join(figures)}</div>' if figures else ''),
         Section('Arms', sweep_tables.means(sweep)),
         Section(f'Against {reference}', sweep_tables.differences(sweep, reference)),
         Section('On the same items', sweep_tables.paired_items(sweep, reference)),
         Section('By metric', sweep_tables.by_metric(sweep)),
         Section('Curves', sweep_tables.curves(sweep)),
         Section('Settings', sweep_tables.settings(sweep)),
         Section('Runs', sweep_tables.runs(sweep, workdir))],
        footer='Made by jaxllm from the files of the sweep.')
    return page.write(workdir / 'report.html', text)


def judge(sweep, module, rows):
    """The verdict on a sweep's claim, as JSON. It is PRELIMINARY while a line is not done."""
    rules = module.get_rules() if hasattr(module, 'get_rules') else []
    missing = [f'{arm}, seed {seed}' for arm, seed in sweep.folders
               if sweep.undone((arm, seed))]
    out = {'claim': getattr(module, 'CLAIM', ''), 'verdict': UNFINISHED,
           'seeds': sorted(rows), 'missing': missing, 'rules': [],
           'changed': changed(sweep, rules)}
    if rows and rules:
        verdicts = [verdict.judge(rule, rows) for rule in rules]
        found = [one.as_dict() for one in verdicts]
        if missing:
            found = [one | {'verdict': PRELIMINARY, 'so_far': one['verdict']} for one in found]
        out |= {'verdict': PRELIMINARY if missing else verdict.overall(verdicts), 'rules': found}
    return out


def stated(path):
    """What a config file states before the runs, for sweep.json: its rules, and its hash."""
    module = load_module(path)
    rules = [rule.stated() for rule in module.get_rules()] if hasattr(module, 'get_rules') else []
    return {'rules': rules, 'sha256': _sha256(path)}


def changed(sweep, rules):
    """How the rules differ from those that the sweep began with; '' if they do not."""
    if not sweep.began:
        return 'the rules were not written down when the sweep began'
    old = {rule['name']: rule for rule in sweep.began['rules']}
    new = {rule.name: rule.stated() for rule in rules}
    parts = [f'{name} is {"new" if name in new else "gone"}' for name in old.keys() ^ new.keys()]
    parts += [f'{key} of {name} was {old[name][key]}, is {new[name][key]}'
              for name in old.keys() & new.keys() for key in new[name]
              if old[name][key] != new[name][key]]
    if parts:
        return f'rules changed after the sweep began: {"; ".join(sorted(parts))}'
    path = sweep.config.partition(':')[0]
    if _sha256(path) != sweep.began['sha256']:
        return (f'rules changed after the sweep began, or something else in {path}: the file is '
                'not the same, though names, claims, nulls and thresholds are')
    return ''


def _sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def verdict_text(workdir):
    """The verdict of the last report as lines for a terminal; '' where there is none."""
    path = pathlib.Path(workdir) / 'verdict.json'
    if not path.exists():
        return ''
    found = json.loads(path.read_text(encoding='utf-8'))
    lines = [f'{found["verdict"]}: {found["claim"]}']
    lines += [f'  {rule["verdict"]:<14} {rule["reason"]}' for rule in found['rules']]
    lines += [f'  {found["changed"]}'] if found['changed'] else []
    if found['missing']:
        what = f'judged on the seeds {found["seeds"]} alone' if found['seeds'] else 'not judged'
        lines.append(f'  {what}: {len(found["missing"])} arms with a seed are not done')
    return '\n'.join(lines)


def _module(sweep):
    """(the config file of the sweep or None, what is wrong with it)."""
    path = sweep.config.partition(':')[0]
    try:
        return load_module(path), ''
    except InputError as error:
        return None, f'The file of the sweep cannot be read, so that no claim is judged: {error}'


def _reference(sweep, module):
    name = getattr(module, 'REFERENCE', '') or next(iter(sweep.arms))
    if name not in sweep.arms:
        raise InputError(f'REFERENCE = {name!r} in {sweep.config} is no arm; the arms are '
                         f'{", ".join(sweep.arms)}')
    return name


def _subtitle(sweep):
    done = sweep.jobs()
    return (f'{len(sweep.arms)} arms, {len(sweep.seeds)} seeds, {sum(done.values())} of '
            f'{len(done)} runs done · {os.path.basename(sweep.config)}')
