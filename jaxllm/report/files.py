"""Reads the files of a run directory that a report is made of. Any of them may be missing."""

import dataclasses
import json
import pathlib

from jaxllm.errors import InputError
from jaxllm.train import metrics


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory says. A missing file is an empty dict or tuple."""
    name: str
    config: dict
    lineage: dict
    train: tuple      # records of metrics.jsonl and perf.jsonl by kind
    evals: tuple
    notes: tuple
    perf: tuple
    samples: tuple
    fertility: tuple  # rows of tokenizer/fertility.json
    data: tuple       # rows of data/summary.json, one per source


def read_json(path, empty):
    """The content of a JSON file, or `empty` where there is none."""
    if not path.exists():
        return empty
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise InputError(f'{path} is not valid JSON ({error}). Restore it from a copy, or remove '
                         'it: the report is then written without it.') from error


def rows_of(content, path):
    """Rows from a list of dicts, from {name: dict}, or from either under the key 'sources'."""
    content = content['sources'] if isinstance(content, dict) and 'sources' in content else content
    if isinstance(content, dict) and all(isinstance(row, dict) for row in content.values()):
        content = [{'source': name, **row} for name, row in content.items()]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(f'{path} holds no rows: expected a list of objects, or an object of '
                         'objects by name. Remove it, or write it again with the stage that '
                         'made it.')
    return tuple(content)


def read_run(workdir):
    """Reads a run, finished or still going on.

    Args:
        workdir: the run's directory.

    Returns:
        A Run.

    Raises:
        InputError: no such directory, nothing of a run in it, or a broken file.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise InputError(f'{workdir} is no directory; expected the workdir of a run, e.g. '
                         '`jaxllm report runs/my_run`.')
    names = {'config': 'config.json', 'lineage': 'lineage.json',
             'fertility': 'tokenizer/fertility.json', 'data': 'data/summary.json',
             **metrics.FILES}
    paths = {name: workdir / file for name, file in names.items()}
    if not any(path.exists() for path in paths.values()):
        raise InputError(f'{workdir} has none of the files of a run ({", ".join(names.values())}). '
                         'Give the workdir of a run that has started.')
    records = metrics.read_jsonl(paths['metrics']) + metrics.read_jsonl(paths['perf'])
    kinds = {kind: tuple(r for r in records if r['kind'] == kind)
             for kind in ('train', 'eval', 'note', 'perf')}
    return Run(
        name=workdir.resolve().name,
        config=read_json(paths['config'], {}), lineage=read_json(paths['lineage'], {}),
        train=kinds['train'], evals=kinds['eval'], notes=kinds['note'], perf=kinds['perf'],
        samples=tuple(metrics.read_jsonl(paths['samples'])),
        fertility=rows_of(read_json(paths['fertility'], []), paths['fertility']),
        data=rows_of(read_json(paths['data'], []), paths['data']))


def series(records, key):
    """The points (step, value) of the records that have the key; 'nan', 'inf', '-inf' as floats."""
    return tuple((record['step'], metrics.as_number(record[key])) for record in records
                 if metrics.as_number(record.get(key)) is not None)


def lookup(tree, path):
    """The value at 'a.b.c' in nested dicts, or None."""
    for key in path.split('.'):
        if not isinstance(tree, dict) or key not in tree:
            return None
        tree = tree[key]
    return tree


def find(tree, name):
    """The first value called `name` anywhere in nested dicts, or None."""
    if not isinstance(tree, dict):
        return None
    if name in tree:
        return tree[name]
    found = (find(value, name) for value in tree.values())
    return next((value for value in found if value is not None), None)
