"""Writes report.html, the one page that tells what a run was, from the files of its directory."""

import pathlib

from jaxllm.report import (cleaning, compare, evaluation, feedback, files, page, preference,
                           reward, rl, sections)
from jaxllm.report.page import Section


def write_report(workdir, extra=()):
    """Writes workdir/report.html; the run may still be going on.

    Args:
        workdir: the run's directory.
        extra: further Sections of a stage, shown after the samples.

    Returns:
        The path of the report: one file that needs no other and no network.

    Raises:
        InputError: the directory is missing, empty of a run's files, or one of them is broken.
    """
    stops = files.read_json(pathlib.Path(workdir) / 'stops.json', {})
    own = [Section('Do answers end?', sections.stops(stops))] if stops else []
    cleaned = files.read_json(pathlib.Path(workdir) / 'data' / 'cleaning.json', {})
    own += [Section('What the filters removed', cleaning.removed(cleaned))] if cleaned else []
    run = files.read_run(workdir)
    more = (*preference.sections(run, workdir), *evaluation.sections(workdir),
            *feedback.sections(workdir), *reward.sections(workdir), *rl.sections(workdir),
            *compare.sections(workdir), *own, *extra)
    return page.write(pathlib.Path(workdir) / 'report.html', render(run, more))


def render(run, extra=()):
    """The report of a files.Run as one HTML string."""
    extra = [section for section in extra if section.body]
    trains = run.train or run.evals or not extra  # a stage that trains nothing has no curves
    return page.page(
        title(run), subtitle(run),
        [Section('Results', trains and sections.headline(run.train, run.evals, run.perf)),
         Section('Notes', sections.notes(run.notes)),
         Section('Curves', trains and sections.curves(run.train, run.evals, run.perf)),
         Section('Samples', sections.samples(run.samples)),
         *extra,
         Section('Data', sections.data(run.data)),
         Section('Tokenizer', sections.fertility(run.fertility)),
         Section('Config', sections.config(run.config)),
         Section('Lineage', sections.lineage(run.lineage))],
        footer='Made by jaxllm from the files of the run directory.')


def title(run):
    """'pretrain: my_run'."""
    stage = files.lookup(run.config, 'stage')
    return f'{str(stage).rsplit(".", 1)[-1]}: {run.name}' if stage else run.name


def subtitle(run):
    """What was built, and with what, as far as the files say."""
    parts = []
    if count := files.find(run.lineage, 'num_params') or files.find(run.config, 'num_params'):
        parts.append(f'{page.short(count)} parameters')
    model = files.lookup(run.config, 'model') or {}
    shape = [f'{name} {model[key]:,}' for key, name in (
        ('num_layers', 'layers'), ('d_model', 'width'), ('vocab_size', 'vocabulary'))
        if isinstance(model.get(key), int)]
    parts.extend([', '.join(shape)] if shape else [])
    parts.extend(filter(None, [progress(run)]))
    versions = [f'{name.capitalize() if name == "python" else name} {version}'
                for name in ('python', 'jax')
                if isinstance(version := files.find(run.lineage, name), str)]
    parts.extend([', '.join(versions)] if versions else [])
    return ' · '.join(parts)


def progress(run):
    """How far the run is."""
    if not run.train:
        return 'no step recorded yet' if files.lookup(run.config, 'train') else ''
    step, total = run.train[-1]['step'], files.lookup(run.config, 'train.num_steps')
    if not isinstance(total, int) or step >= total:
        return f'{step:,} steps'
    return f'step {step:,} of {total:,}'
