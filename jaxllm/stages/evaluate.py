"""Evaluation: a run's model is asked, and results.json, items.jsonl and a report say what it knows."""

import json
import pathlib

import jax

from jaxllm.config import check_keys, section, to_json, write_atomic
from jaxllm.data.records import Rejects, SourceSpec, read_source
from jaxllm.data.store import TokenStore
from jaxllm.errors import InputError
from jaxllm.evals import catalogue, items, perplexity, suites, world_items
from jaxllm.models import transformer
from jaxllm.report import evaluation
from jaxllm.report.run import write_report
from jaxllm.stages import artifact, lineage
from jaxllm.train.checkpoint import has_checkpoint
from jaxllm.train.progress import stage as say


def prepare(config):
    """Checks all that needs no model. Returns (Settings, names of suites, items, world section)."""
    check_keys(config, ('stage', 'seed', 'run', 'suites', 'items_file', 'text', 'settings'))
    settings = section(suites.Settings, config.settings, 'settings')
    run = _checked_run(config.run)
    world = world_of(run)
    asked = items.read_items(config.items_file) if config.items_file else []
    names = catalogue.chosen(tuple(config.suites), has_world=world is not None,
                             has_items=bool(asked), run=config.run)
    if config.text:
        next(iter(read_source(SourceSpec('text', config.text), Rejects())))
    return settings, names, asked, world


def _checked_run(run):
    """The run directory as a path, whole enough to be evaluated."""
    if not run:
        raise InputError('config.run is empty; give the run directory to evaluate, e.g. '
                         '--config.run=runs/base')
    path = pathlib.Path(run)
    for file, what in (('config.json', 'is no run directory'), ('lineage.json', 'has not begun')):
        if not (path / file).exists():
            raise InputError(f'config.run={run} {what} (no {file} there); give the --workdir of a '
                             'run that trained a model')
    config = json.loads((path / 'config.json').read_text())
    if 'model' not in config:
        raise InputError(f'config.run={run} is a run of {config["stage"]}, which makes no model; '
                         'give one that does, such as jaxllm.stages.pretrain')
    if not has_checkpoint(path / 'checkpoints'):
        raise InputError(f'config.run={run} has no checkpoint; let that run save one first')
    if not (path / 'tokenizer' / 'tokenizer.json').exists():
        raise InputError(f'config.run={run} has no tokenizer (no tokenizer/tokenizer.json there); '
                         'bring the folder back from a copy')
    return path


def world_of(run):
    """The world section of a run's config, or of the run that its weights come from; or None."""
    seen = set()
    while run not in seen and (run / 'config.json').exists():
        seen.add(run)
        config = json.loads((run / 'config.json').read_text())
        if config.get('world'):
            return config['world']
        parent = lineage.read_lineage(run)['parents'].get('init_from')
        if not parent:
            return None
        run = pathlib.Path(parent['run'])
    return None


def describe(config):
    """What an evaluation would do, as text (`--dry_run`)."""
    _, names, asked, world = prepare(config)
    return '\n'.join([to_json(config), f'run               {config.run}',
                      f'suites            {", ".join(names)}', f'items             {len(asked)}',
                      f'world             {json.dumps(world)}'])


def run(config, workdir):
    """Evaluates the best checkpoint of `config.run`; writes into `workdir`."""
    settings, names, asked, section_ = prepare(config)
    model = artifact.load(config.run)
    world = section_ and _world(section_)
    subject = suites.Subject(
        model.params, model.model, model.tokenizer, settings=settings, world=world, items=asked,
        seq_len=model.config['data']['seq_len'], run=pathlib.Path(config.run),
        documents=_documents(config, settings, model.tokenizer, world, names), seed=config.seed)
    metrics, slices, plots, rows, notes = {}, {}, {}, [], []
    with jax.set_mesh(model.mesh):
        for name in names:
            say(f'{name} ...')
            result = catalogue.SUITES[name](subject)
            metrics |= result.metrics
            slices |= result.slices
            plots |= result.plots
            rows += result.rows
            notes += [f'{name}: {note}' for note in result.notes]
    if jax.process_index():
        return
    for note in notes:
        say(f'note: {note}')
    results = {'run': config.run, 'step': model.step, 'stage': model.config['stage'],
               'num_params': transformer.num_params(model.params), 'world': section_ or None,
               'suites': list(names), 'notes': notes, 'metrics': metrics, 'slices': slices,
               'plots': plots}
    write_atomic(workdir / 'items.jsonl', ''.join(
        json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
    write_atomic(workdir / 'results.txt', evaluation.text(results))
    write_atomic(workdir / 'results.json', json.dumps(results, indent=1, ensure_ascii=False) + '\n')
    lineage.write_lineage(workdir, config, roles={'run': (config.run, model.step)},
                          num_params=results['num_params'])
    print(evaluation.text(results), end='')
    say(f'report: {write_report(workdir)}')


def _world(section_):
    from jaxllm.world.atlas import atlas
    from jaxllm.world.spec import Intervention
    return atlas(section_['seed'], section_['scale'], Intervention(**section_['intervention']))


def _documents(config, settings, tokenizer, world, names):
    """What bits per byte are measured on: the world's held-out wordings, or else the validation
    splits of the run's own stores; and the text that the config names."""
    if 'perplexity' not in names:
        return []
    most, documents = settings.max_documents, []
    if world:
        documents = perplexity.documents(tokenizer, world_items.held_out_texts(world), most)
    else:
        stores = pathlib.Path(config.run) / 'data' / 'stores'
        for folder in sorted(path for path in stores.glob('*') if path.is_dir()):
            split = TokenStore.open(folder).validation
            documents += perplexity.stored_documents(split, folder.name, most)
    if config.text:
        found = read_source(SourceSpec('text', config.text), Rejects())
        documents += perplexity.documents(
            tokenizer, [(document.id, 'text', document.text) for document in found], most)
    return documents
