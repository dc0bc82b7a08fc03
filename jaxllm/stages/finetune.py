"""Fine-tuning on your own data in five steps: prepare, choose, method, run, evaluate; one report.

    <workdir>/prepare/    train.jsonl, held_out.jsonl, dropped.jsonl, prepare.json
    <workdir>/sft/        an ordinary SFT run (and sft-<n>/ with one setting changed each)
    <workdir>/before.json, after.json     what each model was asked, and answered
    <workdir>/finetune.json, report.html  all of it, for machines and for people

A step that is done is not done again; stopped anywhere, the same command goes on from there.
"""

import dataclasses
import hashlib
import json
import pathlib
import time

import jax
import jax.numpy as jnp

from jaxllm import config as configs
from jaxllm.config import check_keys, section, to_json, write_atomic
from jaxllm.data import chat
from jaxllm.data.prepare import prepare as preparation
from jaxllm.data.prepare.findings import PrepareConfig
from jaxllm.data.records import Rejects, SourceSpec, read_source
from jaxllm.errors import InputError
from jaxllm.evals.finetune import choose as choosing
from jaxllm.evals.finetune import compare, diagnosis, metrics
from jaxllm.evals.finetune.asked import Asked
from jaxllm.models.config import model_config
from jaxllm.report import finetune as page
from jaxllm.stages import artifact, lineage, sft
from jaxllm.stages import base as bases
from jaxllm.stages import dialogues as stores
from jaxllm.stages import finetune_settings as settings
from jaxllm.stages.run import claimed, execute
from jaxllm.train import flops
from jaxllm.train.budget import adapter_config, budget, bytes_text, shapes
from jaxllm.train.metrics import read_jsonl
from jaxllm.train.progress import stage as say

OUTPUTS = 'finetune.json', 'report.html', 'sft'
_KEYS = ('stage', 'seed', 'data', 'held_out', 'models', 'method', 'template', 'sweep', 'prepare',
         'settings', 'evaluate')
_GENERAL_TEXTS, _GENERAL_CHARS = 16, 600


@dataclasses.dataclass(frozen=True)
class Checked:
    """The config's sections, and the candidates' Bases."""
    prepare: PrepareConfig
    wanted: settings.Wanted
    plan: compare.Plan
    bases: tuple


def prepare(config):
    """Checks all of the config that needs no data and no weights. Returns Checked."""
    check_keys(config, _KEYS)
    checked = (section(PrepareConfig, config.prepare, 'prepare'),
               section(settings.Wanted, config.settings, 'settings'),
               section(compare.Plan, config.evaluate, 'evaluate'))
    if config.method not in settings.METHODS:
        raise InputError(f'method={config.method!r} is unknown; use one of '
                         f'{", ".join(settings.METHODS)}')
    for name in ('data', 'held_out'):
        if (config[name] or name == 'data') and not pathlib.Path(config[name]).is_file():
            raise InputError(f'{name}={config[name]!r} is no file; give a .jsonl, .csv or .parquet '
                             'of prompts and responses, conversations, or chosen and rejected '
                             'answers')
    models = (config.models,) if isinstance(config.models, str) else tuple(config.models)
    if not models:
        raise InputError('no model; give the base to fine-tune, e.g. --model=smollm2.gguf '
                         '(`jaxllm data fetch smollm2` downloads that one)')
    if config.settings.batch_size % jax.device_count():
        raise InputError(f'settings.batch_size={config.settings.batch_size} does not divide over '
                         f'{jax.device_count()} devices; use a multiple of that, or 0 = chosen')
    found = tuple(bases.open_trainable(path, what='model') for path in models)
    rank = config.settings.rank
    for base in found:
        stores.template_of(config.template, base, base.tokenizer())
        if rank and config.method != 'full':
            shapes(model_config(base.model), adapter_config(rank))
    return Checked(*checked, found)


def describe(config):
    """What would be done, as text (`--dry_run`): the data is looked at, nothing is trained."""
    checked = prepare(config)
    base = checked.bases[0]
    prepared = _prepared(config, checked, base)
    chosen, _ = _settings(config, checked, base, prepared)
    lines = [to_json(config), preparation.text(prepared), '', _settings_text(chosen), '']
    lines += [_budget_text(row) for row in _budgets(base, chosen)]
    return '\n'.join(lines)


def run(config, workdir):
    """The five steps in `workdir`, or what is left of them."""
    checked = prepare(config)
    began = time.monotonic()
    say('step 1 of 5: prepare')
    prepared = _prepared(config, checked, checked.bases[0])
    _check_same_data(config, workdir)
    preparation.write(workdir / 'prepare', prepared)
    say(preparation.text(prepared))
    answers = [x.answer for x in prepared.train]
    measure, shape = metrics.measure_for(answers), metrics.shape_of(answers)
    say(f'step 2 of 5: choose a base ({len(checked.bases)} given)')
    base, candidates = _choose(config, checked, prepared, measure, workdir)
    say(f'step 3 of 5: method ({config.method})')
    chosen, template = _settings(config, checked, base, prepared)
    budgets = _budgets(base, chosen)
    for row in budgets:
        say(_budget_text(row) + (' <- chosen' if row.method == config.method else ''))
    say('step 4 of 5: run')
    say(_settings_text(chosen))
    general = _general_texts()
    ask = lambda one, name: _asked(workdir / f'{name}.json', one, template, prepared, general,
                                   checked.plan, measure, shape, chosen.seq_len)
    before = ask(base, 'before')
    seconds = _train(config, chosen, base, workdir, 'sft')
    sweep = _sweep(config, chosen, base, workdir) if config.sweep else []
    say('step 5 of 5: evaluate')
    after = ask(bases.open_base(workdir / 'sft'), 'after')
    compared = compare.compare(before, after)
    facts = _facts(workdir, chosen, prepared, after)
    found = {
        'data': config.data, 'model': str(base.path), 'run': str(workdir / 'sft'),
        'prepare': json.loads((workdir / 'prepare' / 'prepare.json').read_text()),
        'candidates': candidates, 'rule': choosing.RULE, 'method': config.method,
        'budgets': [dataclasses.asdict(row) for row in budgets],
        'measured': _measured(workdir) | {'seconds': seconds},
        'settings': {key: value for key, value in dataclasses.asdict(chosen).items()
                     if key != 'reasons'}, 'reasons': chosen.reasons,
        'measure': metrics.MEASURES[measure], 'shape': metrics.describe(shape),
        'compared': compared, 'gap': facts.gap, 'gap_before': compare.gap(before),
        'val': facts.val, 'stops': json.loads((workdir / 'sft' / 'stops.json').read_text()),
        'advice': [dataclasses.asdict(x) for x in diagnosis.diagnose(facts, compared)],
        'sweep': sweep, 'before': before, 'after': after,
        'minutes': (time.monotonic() - began) / 60}
    write_atomic(workdir / 'finetune.json', json.dumps(found, indent=1, ensure_ascii=False) + '\n')
    lineage.write_lineage(workdir, config, roles={
        'init_from': base.role, 'result': bases.open_base(workdir / 'sft').role})
    print(page.text(found))
    say(f'report: {page.write_report(workdir)}')


def _check_same_data(config, workdir):
    """Raises InputError if the steps that are done were done with other data."""
    found = {}
    for name in ('data', 'held_out'):
        if config[name]:
            with open(config[name], 'rb') as file:
                found[name] = hashlib.file_digest(file, 'sha256').hexdigest()
    mark = workdir / 'data.json'
    if mark.exists() and json.loads(mark.read_text()) != found:
        raise InputError(f'{config.data} has changed since {workdir} was begun with it; use a new '
                         '--workdir')
    write_atomic(mark, json.dumps(found) + '\n')


def _tokens(template, tokenizer):
    """count(record): tokens of a Conversation. Raises InputError with its line if the template does
    not take it."""
    def count(record):
        try:
            return len(chat.render(template, record.messages, tokenizer).ids)
        except InputError as error:
            raise InputError(f'{record.origin}: {error}') from error
    return count


def _prepared(config, checked, base):
    tokenizer = base.tokenizer()
    template = stores.template_of(config.template, base, tokenizer)
    wanted = checked.wanted.seq_len or min(base.model['max_seq_len'], settings._LONGEST)
    return preparation.prepare(config.data, checked.prepare, held_out_path=config.held_out,
                               count_tokens=_tokens(template, tokenizer), context=wanted)


def _settings(config, checked, base, prepared):
    tokenizer = base.tokenizer()
    template = stores.template_of(config.template, base, tokenizer)
    count = _tokens(template, tokenizer)
    return settings.choose(checked.wanted, config.method, model_config(base.model),
                           [count(record) for record in prepared.train],
                           jax.device_count()), template


def _settings_text(chosen):
    rows = dataclasses.asdict(chosen)
    return '\n'.join(f'  {name:<14}{rows[name]!s:<10}{why}' for name, why in chosen.reasons.items())


def _budgets(base, chosen):
    peak = flops.machine_matmul_peak(jnp.float32)
    return [budget(method, model_config(base.model), rank=chosen.rank or 16,
                   batch_size=chosen.batch_size, seq_len=chosen.seq_len,
                   num_steps=chosen.num_steps, peak_flops=peak) for method in settings.METHODS]


def _budget_text(row):
    return (f'  {row.method:<6} about {bytes_text(row.total):>8} of memory and '
            f'{row.seconds / 60:.1f} minutes; {row.trained:,} parameters trained')


def _choose(config, checked, prepared, measure, workdir):
    """(Base, rows of the comparison, () for a single candidate)."""
    if len(checked.bases) == 1:
        return checked.bases[0], []
    file = workdir / 'candidates.json'
    if not file.exists():
        rows = []
        for base in checked.bases:
            say(f'  {base.path} ...')
            asked, mesh = _open_asked(base, config.template, settings._LONGEST)
            with jax.set_mesh(mesh):
                rows.append(choosing.candidate(asked, str(base.path), prepared.held_out, measure))
        write_atomic(file, json.dumps(rows, indent=1, ensure_ascii=False) + '\n')
    rows = json.loads(file.read_text())
    best = choosing.recommended(rows)
    say(f'  recommended: {best}')
    return next(base for base in checked.bases if str(base.path) == best), rows


def _open_asked(base, template, context):
    """(Asked, mesh) of a Base; `template` by name, or a ChatTemplate."""
    one = artifact.load_base(base)
    if isinstance(template, str):
        template = stores.template_of(template, base, one.tokenizer)
    limit = min(context, base.model['max_seq_len'])
    return Asked(one.params, one.model, one.tokenizer, template,
                 chat.stop_ids(template, one.tokenizer), limit), one.mesh


def _asked(file, base, template, prepared, general, plan, measure, shape, seq_len):
    """What compare.ask gives, kept in a file."""
    if file.exists():
        return json.loads(file.read_text())
    say(f'  asking {base.path}')
    asked, mesh = _open_asked(base, template, max(seq_len, 2 * plan.max_new_tokens + 128))
    sample = prepared.train[:len(prepared.held_out)]
    with jax.set_mesh(mesh):
        found = compare.ask(asked, prepared.held_out, sample, general, plan, measure, shape,
                            say=lambda text: say(f'    {text}'))
    write_atomic(file, json.dumps(found, ensure_ascii=False) + '\n')
    return found


def _general_texts():
    """Ordinary English that is on every machine, from the beginnings of documentation topics."""
    spec = SourceSpec('general', 'python:stdlib', split='topics')
    texts = [document.text[:_GENERAL_CHARS] for document in read_source(spec, Rejects())
             if len(document.text) >= _GENERAL_CHARS]
    return [texts[i * len(texts) // _GENERAL_TEXTS] for i in range(_GENERAL_TEXTS)]


def _train(config, chosen, base, workdir, name):
    """Trains in workdir/name, or goes on there. Returns seconds, of this call."""
    folder, began = workdir / name, time.monotonic()
    if (folder / 'done.json').exists():
        return json.loads((folder / 'done.json').read_text())['seconds']
    sft_config = settings.sft_of(
        chosen, seed=config.seed, init_from=base.path, template=config.template,
        train_file=workdir / 'prepare' / 'train.jsonl').lock()
    sft.prepare(sft_config)
    with claimed(folder, sft_config):
        execute(sft, sft_config, folder)
    return time.monotonic() - began


def _sweep(config, chosen, base, workdir):
    """[{'name', 'val_loss', 'seconds'}] of the chosen settings and of each with one changed."""
    rows = [{'name': 'as chosen', 'val_loss': _best(workdir / 'sft')}]
    for number, (name, arm) in enumerate(settings.arms(chosen).items(), 1):
        say(f'  {name} ...')
        seconds = _train(config, arm, base, workdir, f'sft-{number}')
        rows.append({'name': name, 'run': f'sft-{number}', 'seconds': seconds,
                     'val_loss': _best(workdir / f'sft-{number}')})
    return rows


def _val(folder):
    return [(row['step'], row['val/loss']) for row in read_jsonl(folder / 'metrics.jsonl')
            if row['kind'] == 'eval']


def _best(folder):
    return min(loss for _, loss in _val(folder))


def _measured(workdir):
    perf = [row for row in read_jsonl(workdir / 'sft' / 'perf.jsonl') if row['kind'] == 'perf']
    return {'peak_bytes': max((row['peak_rss_bytes'] for row in perf), default=0),
            'tokens_per_second': perf[-1]['tokens_per_second'] if perf else 0.0}


def _facts(workdir, chosen, prepared, after):
    rows = read_jsonl(workdir / 'sft' / 'metrics.jsonl')
    train = [row for row in rows if row['kind'] == 'train']
    findings = {}
    for finding in prepared.findings:
        findings[finding.kind] = findings.get(finding.kind, 0) + len(finding.origins)
    return diagnosis.Facts(
        losses=tuple(float(row['loss']) for row in train), val=tuple(_val(workdir / 'sft')),
        gap=compare.gap(after), epochs=chosen.epochs, lr=chosen.lr, rank=chosen.rank,
        num_train=len(prepared.train), findings=findings,
        skipped=int(train[-1]['skips']) if train else 0)


def finetune(args, overrides):
    """The verb `finetune`: a config from its arguments, then the stage."""
    from jaxllm.stages import run as runs
    from jaxllm.stages.finetune_config import finetune_config
    config = configs.override(finetune_config(), overrides)
    given = {'data': args.data, 'models': tuple(args.model), 'held_out': args.held_out,
             'method': args.method, 'template': args.template, 'sweep': args.sweep,
             'settings.epochs': float(args.epochs), 'settings.lr': float(args.lr),
             'settings.rank': args.rank, 'settings.replay': float(args.replay),
             'prepare.drop': tuple(filter(None, args.drop.split(','))),
             'prepare.mask_pii': args.mask_pii}
    configs.set_values(config, {key: value for key, value in given.items() if value}, 'finetune')
    runs.run_config(args, config.lock())
