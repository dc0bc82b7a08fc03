"""Evaluation of a run: its model is asked, and results.json, items.jsonl, a report say the rest."""

import collections
import json
import pathlib

import jax

from jaxllm.config import check_keys, section, to_json, write_atomic
from jaxllm.data.records import Rejects, SourceSpec, read_source
from jaxllm.errors import InputError
from jaxllm.evals import (catalogue, items, overlap, perplexity, suites, suites_world,
                          world_items)
from jaxllm.models import transformer
from jaxllm.report import evaluation
from jaxllm.report.run import write_report
from jaxllm.stages import artifact, lineage
from jaxllm.stages import base as bases
from jaxllm.train.checkpoint import has_checkpoint
from jaxllm.train.progress import stage as say
from jaxllm.world import spec
from jaxllm.world.atlas import atlas

OUTPUTS = 'results.json', 'items.jsonl'


def prepare(config):
    """Checks all that needs no model. Returns (Settings, names of suites, items, world section)."""
    check_keys(config, ('stage', 'seed', 'run', 'checkpoint', 'suites', 'items_file', 'text',
                        'settings'))
    artifact.check_checkpoint(config.checkpoint)
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
    bases.model_section(path, _object(path / 'config.json', ('stage',)))
    if not has_checkpoint(path / 'checkpoints'):
        raise InputError(f'config.run={run} has no checkpoint; let that run save one first')
    if not (path / 'tokenizer' / 'tokenizer.json').exists():
        raise InputError(f'config.run={run} has no tokenizer (no tokenizer/tokenizer.json there); '
                         'bring the folder back from a copy')
    return path


def _object(path, keys):
    """The object in a JSON file of a run, which has these keys."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read ({error}); bring it back from a copy of the '
                         'run') from error
    lacking = [key for key in keys if key not in found] if isinstance(found, dict) else keys
    if lacking or not isinstance(found, dict):
        raise InputError(f'{path} has no {", ".join(lacking) or "keys"}; bring it back from a copy '
                         'of the run')
    return found


def world_of(run):
    """The world section of a run's config, or of the run that its weights come from; or None."""
    seen = set()
    while run not in seen:
        seen.add(run)
        config = _object(run / 'config.json', ('stage',))
        record = _object(run / 'lineage.json', ('parents', 'git'))
        if 'world' in config:
            _check_world(run, config['world'], record)
            return config['world']
        if 'init_from' not in record['parents']:
            return None
        child, run = run, pathlib.Path(record['parents']['init_from']['run'])
        if run.exists() and not (run / 'lineage.json').exists():
            return None  # a model file
        if not run.exists():
            raise InputError(f'the weights of {child} come from {run}, which is not there, so that '
                             'its world is unknown; move that run back, or put a link there')
    return None


def _check_world(run, section_, record):
    """Raises InputError if this code would generate another world than the run has learned."""
    now = spec.WorldSpec(section_['seed'], section_['scale'],
                         spec.Intervention(**section_['intervention'])).fingerprint
    if 'world' not in record:
        raise InputError(f'{run / "lineage.json"} does not say which world the run has learned; '
                         'let a run save its world with this version of jaxllm')
    if record['world'] != now:
        raise InputError(f'{run} has learned the world {record["world"]}, and this version of '
                         f'jaxllm generates {now} from the same settings; evaluate it with the '
                         f'version that made it ({record["git"] or "see its lineage.json"})')


def describe(config):
    """What an evaluation would do, as text (`--dry_run`)."""
    _, names, asked, world = prepare(config)
    return '\n'.join([to_json(config), f'run               {config.run}',
                      f'suites            {", ".join(names)}', f'items             {len(asked)}',
                      f'world             {json.dumps(world)}'])


def run(config, workdir):
    """Evaluates the checkpoint of `config.run` that the config names; writes into `workdir`.

    The best one has the lowest validation loss: of a run in a world, on new tellings of facts that
    it was trained on.
    """
    settings, names, asked, section_ = prepare(config)
    model = artifact.load(config.run, config.checkpoint)
    world = section_ and world_from(section_)
    subject = suites.Subject(
        model.params, model.model, model.tokenizer, settings=settings, world=world, items=asked,
        seq_len=_seq_len(model.config), run=pathlib.Path(config.run),
        documents=_documents(config, settings, model.tokenizer, world, names), seed=config.seed,
        template=model.template, stop_ids=model.stop_ids)
    metrics, slices, plots, rows, notes = {}, {}, {}, [], []
    with jax.set_mesh(model.mesh):
        for name in names:
            say(f'{name} ...')
            result = catalogue.SUITES[name](subject)
            metrics |= result.metrics
            slices |= result.slices
            plots |= result.plots
            rows += suites.uniform(result.rows)
            notes += [f'{name}: {note}' for note in result.notes]
    check_rows(rows)
    if jax.process_index():
        return
    found = _overlap(subject, names)
    if found.overlaps:
        notes.insert(0, found.warning())
    write_atomic(workdir / 'overlap.jsonl', found.lines())
    for note in notes:
        say(f'note: {note}')
    results = {'run': config.run, 'step': model.step, 'stage': model.config['stage'],
               'num_params': transformer.num_params(model.params), 'world': section_ or None,
               'suites': list(names), 'notes': notes,
               'overlap': {'items': found.num_items, 'in_training_data': len(found.items),
                           'too_short_to_compare': found.num_short},
               'metrics': metrics, 'slices': slices, 'plots': plots}
    write_atomic(workdir / 'items.jsonl', ''.join(
        json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
    write_atomic(workdir / 'results.txt', evaluation.text(results))
    write_atomic(workdir / 'results.json',
                 json.dumps(results, indent=1, ensure_ascii=False) + '\n')
    lineage.write_lineage(workdir, config, roles={'run': model.base.role},
                          num_params=results['num_params'])
    print(evaluation.text(results), end='')
    say(f'report: {write_report(workdir)}')


def _seq_len(config):
    """Tokens of the rows that a run was trained on; in reinforcement learning, of a prompt with its
    completion."""
    data = config['data']
    return (data['seq_len'] if 'seq_len' in data
            else data['max_prompt_tokens'] + config['rollout']['max_new_tokens'])


def check_rows(rows):
    """Raises InputError if two rows of items.jsonl have the same suite and id."""
    times = collections.Counter((row['suite'], row['id']) for row in rows)
    for (suite, id), count in times.items():
        if count > 1:
            raise InputError(f'the suite {suite} has {count} rows with the id {id!r}, so that runs '
                             'could not be compared by them; give each its own')


def world_from(section_):
    """The World of a config's world section."""
    return atlas(section_['seed'], section_['scale'], spec.Intervention(**section_['intervention']))


def _overlap(subject, names):
    """Which questions and items, each with its answer, the run's training data contain."""
    asked = {item.id: f'{item.prompt} {item.answer}' for item in subject.items}
    if subject.world and set(names) - set(catalogue.NEED_NO_WORLD):
        asked |= {item.id: f'{item.prompt} {item.answer}' for item in subject.questions}
    splits = [train for _, train, _ in suites_world.stores(subject.run)]
    return overlap.find_overlap(asked, splits, subject.tokenizer)


def _documents(config, settings, tokenizer, world, names):
    """What bits per byte are measured on: the world's held-out documents, or else the validation
    splits of the run's own stores; and the text that the config names. In a world these are new
    tellings in wordings that training documents use, and tellings in others."""
    if 'perplexity' not in names:
        return []
    most, documents = settings.max_documents, []
    if world:
        for part, texts in world_items.held_out_texts(world).items():
            documents += perplexity.documents(tokenizer, texts, most, part)
    else:
        for source, _, validation in suites_world.stores(pathlib.Path(config.run)):
            documents += perplexity.stored_documents(validation, source, most)
    if config.text:
        found = read_source(SourceSpec('text', config.text), Rejects())
        documents += perplexity.documents(
            tokenizer, [(document.id, 'text', document.text, document.id) for document in found],
            most)
    items.check_ids(documents, 'the texts for bits per byte')
    return documents
