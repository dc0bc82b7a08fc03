"""What the models of a comparison know and do: the suites of an evaluation, one run for each."""

import json
import pathlib

import jax
import ml_collections

from jaxllm.config import to_json, to_plain, write_atomic
from jaxllm.evals import ladder
from jaxllm.stages import evaluate
from jaxllm.stages.evaluate_config import evaluate_config
from jaxllm.train.progress import stage as say

FOLDER, MARK = 'suites', 'asked.txt'


def configs_of(config, entries):
    """{name of a model: the config of its evaluation}; a best of several is no model of its own.

    Raises:
      InputError: see `evaluate.prepare`; e.g. a model file, which no suite can ask.
    """
    if not config.suites:
        return {}
    found = {}
    for name, entry in entries.items():
        if entry.best_of == 1:
            own = evaluate_config()
            own.seed, own.run, own.checkpoint = config.seed, str(entry.path), entry.checkpoint
            own.suites, own.settings = config.suites, ml_collections.ConfigDict(
                to_plain(config.settings))
            evaluate.prepare(own)
            found[name] = own
    return found


def run(configs, opened, workdir):
    """Runs what has not been run of these very weights with the measures of now. Returns {name:
    (results, rows of items.jsonl)}.

    Args:
      opened: {name: Base} of the models.
    """
    found, columns = {}, ' '.join(sorted({measure.column for measure in ladder.MEASURES}))
    for name, config in configs.items():
        folder, base = workdir / FOLDER / name, opened[name]
        mine, mark = f'{to_json(config)}{base.fingerprint}@{base.step}\n{columns}\n', folder / MARK
        if not (mark.exists() and mark.read_text() == mine):
            say(f'{name}: {", ".join(config.suites)} ...')
            folder.mkdir(parents=True, exist_ok=True)
            evaluate.run(config, folder)
            if jax.process_index() == 0:
                write_atomic(folder / 'config.json', to_json(config))
                write_atomic(mark, mine)  # last: with it the folder counts as evaluated
        if jax.process_index() == 0:
            found[name] = (json.loads((folder / 'results.json').read_text()), [
                json.loads(line) for line in (folder / 'items.jsonl').read_text().splitlines()])
    return found


def before(opened, reference, names):
    """{model: the model among these whose weights it began with, else the reference; '' of one that
    began with none, unless it is the fine-tuning of random weights}."""
    where = {base.path.resolve(): name for name, base in opened.items() if name in names}
    found = {}
    for name in names:
        file = opened[name].path / 'config.json'
        config = json.loads(file.read_text()) if file.exists() else {}
        parent = _start(config, where, reference)
        found[name] = parent if parent != name else ''
    return found


def _start(config, where, reference):
    if 'init_from' not in config or not config['init_from']:
        return ''
    if 'fresh_weights' in config and config['fresh_weights']:
        return reference
    path = pathlib.Path(config['init_from']).resolve()
    return where[path] if path in where else reference


def summary(found, scores, parents, *, draws, seed):
    """The part of results.json: {'metrics': {model: {name: cell}}, 'differences': rows}.

    Args:
      found: see `run`. scores: {model: float [prompts]} of one judge. parents: see `before`.
    """
    kept = {measure.name for measure in ladder.MEASURES}
    return {'metrics': {name: {key: cell for key, cell in results['metrics'].items()
                               if key in kept or key.removesuffix('/chance') in kept}
                        for name, (results, _) in found.items()},
            'before': parents,
            'differences': ladder.differences({name: rows for name, (_, rows) in found.items()},
                                              parents, draws=draws, seed=seed)
            + ladder.wins(scores, parents, draws=draws, seed=seed)}


def items(found, outcomes, ended):
    """Rows of items.jsonl of a comparison: those of all suites, who wins, and which answers end by
    themselves, each with its model.

    Args:
      outcomes: [(judge, model, {prompt id: 1, 0.5 or 0})], against the reference.
      ended: {model: {prompt id: bool}}.
    """
    for name, (_, rows) in found.items():
        for row in rows:
            yield {**row, 'id': f'{name}/{row["id"]}', 'artefact': name}
    for judge, name, won in outcomes:
        for id, value in won.items():
            yield {'id': f'{name}/{judge}/{id}', 'suite': 'wins', 'subject': id, 'artefact': name,
                   'judge': judge, 'won': value}
    for name, rows in ended.items():
        for id, value in rows.items():
            yield {'id': f'{name}/{id}', 'suite': 'ends', 'subject': id, 'artefact': name,
                   'ended': int(value)}
