"""The report of a chain of runs: what was made from what, what each step changed, time, memory."""

import dataclasses
import pathlib

from jaxllm import sweep
from jaxllm.report import (cleaning, compare, figure_rows, figures, files, ladder, lineage_plot,
                           page, rl, sections)
from jaxllm.report import done as marks
from jaxllm.report.page import Section
from jaxllm.train import metrics
from jaxllm.train.progress import duration

_STAGES = {'pretrain': 'base model', 'sft': 'instruct model', 'feedback': 'rankings of its answers',
           'reward': 'reward model', 'rl': 'aligned model', 'preference': 'aligned model',
           'compare': 'comparison', 'evaluate': 'evaluation', 'tokenizer': 'tokenizer',
           'world': 'data'}


@dataclasses.dataclass(frozen=True)
class Chain:
    """What a chain's directory says. steps: in their order; runs: {step: files.Run} of those that
    have begun; attempts: {step: rows of steps.jsonl}; done: names."""
    folder: pathlib.Path
    config: dict
    steps: tuple
    runs: dict
    attempts: dict
    done: frozenset


def read_chain(workdir):
    """The Chain in a directory, finished or not.

    Raises:
      InputError: a broken file.
    """
    workdir = pathlib.Path(workdir)
    config = files.read_json(workdir / 'config.json', {})
    order = files.read_json(workdir / 'lineage.json', {}).get('steps', list(config['steps']))
    attempts = {name: [] for name in order}
    for row in metrics.read_jsonl(workdir / 'steps.jsonl'):
        if row['step'] in attempts:
            attempts[row['step']].append(row)
    begun = [name for name in order if (workdir / name / 'config.json').exists()]
    return Chain(workdir, config, tuple(order), {n: files.read_run(workdir / n) for n in begun},
                 attempts, frozenset(n for n in begun if marks.is_done(workdir / n)))


def write_report(workdir):
    """Writes workdir/report.html of a chain, finished or not. Returns its path.

    Raises:
      InputError: a broken file.
    """
    chain = read_chain(workdir)
    return page.write(chain.folder / 'report.html', render(chain))


def render(chain):
    """The report as one HTML string."""
    compared, results = _comparison(chain)
    order = sorted((name for name in chain.steps
                    if name in results.get('suites', {}).get('metrics', {})),
                   key=lambda name: _is_control(chain, name))
    aligned = [name for name in chain.runs if (chain.folder / name / 'rollouts').is_dir()]
    cleaned = next((found for name in chain.runs if (found := files.read_json(
        chain.folder / name / 'data' / 'cleaning.json', {}))), {})
    return page.page(
        f'{chain.folder.resolve().name}, step by step', _subtitle(chain),
        [Section('At a glance', _tiles(chain, results)),
         Section('What was made from what', lineage_plot.draw(_nodes(chain))),
         Section('What each model can do', ladder.state(results, order)),
         Section('What each step has changed', ladder.changes(results, order)),
         Section('The same prompts, answered by each', compare.one_by_one(
             results, chain.folder / compared / 'samples', order) if results else ''),
         Section('Curves', _curves(chain)),
         *(Section(f'Reward and KL: {name}', rl.overview(chain.folder / name))
           for name in aligned),
         Section('What the filters removed', cleaning.removed(cleaned) if cleaned else ''),
         Section('Time and memory', _costs(chain))],
        footer='Made by jaxllm from the files of the run directories.')


def _is_control(chain, name):
    """Whether a step only shows what becomes of random weights."""
    step = chain.config['steps'][name]
    return 'fresh_weights' in step and step['fresh_weights']


def _subtitle(chain):
    left = [name for name in chain.steps if name not in chain.done]
    return (f'{len(chain.done)} of {len(chain.steps)} steps done'
            + (f'; next: {left[0]}' if left else '') + f' · seed {chain.config["seed"]}')


def _comparison(chain):
    """(name, results) of the last step that compares models; ('', {}) without."""
    for name in reversed(chain.steps):
        results = files.read_json(chain.folder / name / 'results.json', {})
        if results.get('kind') == 'comparison' and name in chain.done:
            return name, results
    return '', {}


def _seconds(chain, name):
    return sum(row['seconds'] for row in chain.attempts[name] if 'seconds' in row)


def _peak(chain, name):
    return max((row['peak_rss_bytes'] for row in chain.attempts[name] if 'peak_rss_bytes' in row),
               default=None)


def _tiles(chain, results):
    total = sum(_seconds(chain, name) for name in chain.steps)
    peak = max((x for name in chain.steps if (x := _peak(chain, name))), default=None)
    tiles = [page.tile('Steps', f'{len(chain.done)} of {len(chain.steps)}', '', 'done')]
    tiles += [page.tile('Time', duration(total), '', 'all steps')] if total else []
    tiles += [page.tile('Memory', page.size_of(peak), '', 'peak of the process')] if peak else []
    for row in results.get('suites', {}).get('differences', ()):
        if row['metric'] == 'win_rate' and not _is_control(chain, row['artefact']):
            tiles.append(page.tile(
                f'{row["artefact"]} against {row["before"]}', f'{100 * row["value"]:.0f}', '%',
                f'of prompts won, by the judge; {100 * row["low"]:.0f} to {100 * row["high"]:.0f}'))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _nodes(chain):
    """The texts that a chain begins with, and its steps."""
    nodes, texts = [], {}
    for name in chain.steps:
        step = chain.config['steps'][name]
        needs = sweep.references(step, chain.config['steps'])
        paths = {source['path']: name for source in (files.lookup(step, 'data.sources')
                                                     or {}).values()}
        if not needs:
            texts |= paths
            needs = tuple(paths)
        start = step['init_from'] if 'init_from' in step else ''
        nodes.append(lineage_plot.Node(
            name, _about(chain, name),
            f'{name}/report.html' if (chain.folder / name / 'report.html').exists() else '',
            needs, start.removeprefix('@') if isinstance(start, str) else '', name in chain.done))
    return [lineage_plot.Node(path, 'text', '', (), '', True) for path in texts] + nodes


def _about(chain, name):
    step = chain.config['steps'][name]
    what = _STAGES.get(step['stage'].rpartition('.')[2], step['stage'].rpartition('.')[2])
    if _is_control(chain, name):
        what = 'random weights, tuned'
    if name not in chain.runs:
        return f'{what}, to come'
    run = chain.runs[name]
    if run.train:
        what += f', {run.train[-1]["step"]:,} steps'
    return what if name in chain.done else f'{what}, begun'


def _curves(chain):
    drawn = ''.join(sections.gap_chart(name, run.train, run.evals)
                    for name, run in chain.runs.items()
                    if not (chain.folder / name / 'rollouts').is_dir())
    return f'<div class="charts">{drawn}</div>' if drawn else ''


def _costs(chain):
    rows = []
    for name in chain.steps:
        tries = [row for row in chain.attempts[name] if row['event'] == 'begin']
        cut = len(tries) - sum('seconds' in row for row in chain.attempts[name])
        peak = _peak(chain, name)
        rows.append({'step': name, 'what': _about(chain, name),
                     'time': duration(_seconds(chain, name)) if tries else None,
                     'starts': len(tries) or None, 'of these killed': cut or None,
                     'peak memory': page.size_of(peak) if peak else None})
    bars = figure_rows.bars('Time', 'seconds', [figures.Series('time', tuple(
        figures.Point(name, _seconds(chain, name)) for name in chain.steps
        if _seconds(chain, name)))])
    links = ' · '.join(f'<a href="{name}/report.html">{page.escape(name)}</a>'
                       for name in chain.steps
                       if (chain.folder / name / 'report.html').exists())
    note = ('<p class="quiet">What a killed start has cost is not known. Memory is the peak of the '
            'process while the step ran.</p>')
    return (page.table(rows) + (f'<div class="charts">{bars}</div>' if bars else '') + note
            + (f'<p>Reports of the steps: {links}</p>' if links else ''))
