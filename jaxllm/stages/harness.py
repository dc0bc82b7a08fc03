"""Evaluation of a run by EleutherAI's lm-evaluation-harness: tasks from files, or its own."""

import importlib.metadata
import json
import pathlib

import jax

from jaxllm.config import check_keys, to_json, write_atomic
from jaxllm.errors import InputError
from jaxllm.evals import harness
from jaxllm.models import transformer
from jaxllm.report import evaluation
from jaxllm.report.run import write_report
from jaxllm.stages import artifact, lineage
from jaxllm.train.progress import stage as say

OUTPUTS = 'results.json', 'items.jsonl'


_SETTINGS = ('tasks', 'limit', 'num_fewshot', 'batch_size', 'max_length', 'seed')


def prepare(config):
    """Checks the config and that there is a run to evaluate. Returns HarnessConfig."""
    check_keys(config, ('stage', 'run', 'checkpoint', *_SETTINGS))
    artifact.check_checkpoint(config.checkpoint)
    harness.check_installed()
    file = pathlib.Path(config.run) / 'config.json'
    if not config.run or not file.exists():
        raise InputError(f'config.run={config.run!r} is no run directory; give the --workdir of a '
                         'run, e.g. --config.run=runs/base')
    settings = {name: config[name] for name in _SETTINGS}
    if not config.max_length:
        trained = json.loads(file.read_text())
        if 'seq_len' not in trained.get('data', {}):
            raise InputError(f'{config.run} does not say how long its texts were; give '
                             '--config.max_length=256, or how much the model may see at once')
        settings['max_length'] = trained['data']['seq_len']
    return harness.HarnessConfig(**settings)


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    prepare(config)
    return to_json(config)


def run(config, workdir):
    """Writes results.json (metrics with limits), results.txt, items.jsonl and report.html."""
    settings = prepare(config)
    model = artifact.load(config.run, config.checkpoint)
    say(f'{config.run}, step {model.step:,}: {", ".join(settings.names)} ...')
    with jax.set_mesh(model.mesh):
        found = harness.evaluate(model.params, model.model, model.tokenizer, settings)
    if jax.process_index():
        return
    results = {'run': str(config.run), 'step': model.step, 'stage': model.config['stage'],
               'num_params': transformer.num_params(model.params), 'world': None,
               'suites': sorted(found.versions), 'notes': [], 'metrics': found.metrics,
               'slices': {}, 'plots': {}}
    write_atomic(workdir / 'items.jsonl', ''.join(
        json.dumps(item, ensure_ascii=False) + '\n' for item in found.items))
    write_atomic(workdir / 'results.txt', evaluation.text(results))
    write_atomic(workdir / 'results.json', json.dumps(results, indent=1, ensure_ascii=False) + '\n')
    lineage.write_lineage(workdir, config, tasks=found.versions,
                          lm_eval=importlib.metadata.version('lm_eval'),
                          roles={'run': model.base.role})
    print(evaluation.text(results), end='')
    say(f'report: {write_report(workdir)}')
