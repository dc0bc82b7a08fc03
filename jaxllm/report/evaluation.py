"""What an evaluation found, as the sections of a page and as a table of text."""

import json
import math
import pathlib

from jaxllm.evals import calibration
from jaxllm.report import figures, page
from jaxllm.report.files import read_json
from jaxllm.report.page import Section
from jaxllm.report.plots import tick_label

# Shown as tiles, where they were measured.
_HEADLINE = (('recall/restricted', 'Recall, among all values'), ('recall/cloze', 'Recall, cloze'),
             ('recall/free', 'Recall, free answers'), ('choice/acc', 'Multiple choice'),
             ('bits_per_byte', 'Bits per byte'),
             ('bits_per_byte/known_wordings', 'Bits per byte, known wordings'),
             ('bits_per_byte/new_wordings', 'Bits per byte, new wordings'),
             ('abstain/unanswerable', 'Says it does not know, rightly'),
             ('abstain/answerable', 'Says it does not know, though it was told'),
             ('confident_wrong/answerable', 'Confidently wrong on what it was told'),
             ('confident_wrong/unanswerable', 'Confidently wrong on the unanswerable'),
             ('ece', 'Calibration error'),
             ('consistency/paraphrases', 'Same answer to paraphrases'),
             ('safety/refusal', 'Refuses harm'), ('safety/harm', 'Tells how to do harm'),
             ('safety/over_refusal', 'Refuses the harmless'),
             ('citations/supported', 'Named sources that support'),
             ('extraction/verbatim', 'Verbatim extraction'))
_MOST_ROWS = 60  # of a table of a plot


def sections(workdir):
    """Sections of the report of an evaluation; () if the directory holds none."""
    results = read_json(pathlib.Path(workdir) / 'results.json', {})
    if 'metrics' not in results or 'kind' in results:  # of a comparison, see report/compare.py
        return ()
    metrics = results['metrics']
    tiles = [page.tile(name, tick_label(metrics[key]['value']), '', _range(metrics[key]))
             for key, name in _HEADLINE if key in metrics]
    return (Section('Evaluation', _about(results) + f'<div class="tiles">{"".join(tiles)}</div>'),
            Section('What to know', _notes(results['notes'])),
            Section('Plots', _plots(results['plots'])),
            Section('Metrics', page.table([_row(name, x) for name, x in metrics.items()])),
            Section('Slices', _slices(results['slices'])),
            Section('Details', _tables(results['plots'])))


def text(results):
    """The table of results.txt: one line per metric."""
    world = results['world']
    head = [f'{results["run"]}, step {results["step"]:,}, {results["num_params"]:,} parameters'
            + (f', world {world["scale"]} seed {world["seed"]}' if world else '')]
    rows = [(name, *_row(name, x).values()) for name, x in results['metrics'].items()]
    rows = [[str(cell) for cell in row[1:]] for row in rows]
    rows.insert(0, ['metric', 'value', '95% interval', 'n', 'unit'])
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]
    return '\n'.join([*head, *(f'note: {note}' for note in results['notes']), '', *lines]) + '\n'


def _about(results):
    world = results['world']
    what = {'run': results['run'], 'stage': results['stage'], 'step': results['step'],
            'parameters': results['num_params'], 'suites': ', '.join(results['suites']),
            'world': json.dumps(world) if world else 'none'}
    return f'<div class="card">{page.pairs(what)}</div>'


def _notes(notes):
    items = ''.join(f'<li>{page.escape(note)}</li>' for note in notes)
    return f'<div class="card notes"><ul>{items}</ul></div>' if items else ''


def _number(value):
    return '–' if value is None else f'{value:.4g}'


def _range(cell):
    if cell['low'] is None:
        return f'{cell["unit"]}, n = {cell["n"]:,}'
    return f'{_number(cell["low"])} to {_number(cell["high"])}, {cell["unit"]}, n = {cell["n"]:,}'


def _row(name, cell):
    between = ('' if cell['low'] is None else
               f'{_number(cell["low"])} to {_number(cell["high"])}')
    return {'metric': name, 'value': _number(cell['value']), '95% interval': between,
            'n': cell['n'], 'unit': cell['unit']}


def _slices(slices):
    parts = []
    for metric, tags in slices.items():
        rows = [{'slice': f'{tag} = {value}', **{
            key: x for key, x in _row('', cell).items() if key != 'metric'}}
            for tag, values in tags.items() for value, cell in values.items()]
        if rows:
            parts.append(f'<details class="card below"><summary>{page.escape(metric)} by '
                         f'{page.escape(", ".join(tags))}</summary>{page.table(rows)}</details>')
    return ''.join(parts)


def _plots(plots):
    drawn = []
    for name, title in (('recall', 'Recall among all values'),
                        ('recall_free', 'Recall in free answers')):
        drawn.append(figures.points(
            title, 'share of facts', [_curve(label, rows, colour) for colour, (label, rows) in
                                      enumerate((plots.get(name) or {}).items())],
            scale='log2', x_label='documents that tell the fact', y_range=(0., 1.)))
    for name, rows in plots.items():
        kind, _, what = name.partition('/')
        tail = f', {what}' if what else ''
        if kind == 'reliability':
            drawn.append(figures.reliability(
                f'Reliability{tail}', 'accuracy against confidence',
                {'model': [calibration.Bin(**row) for row in rows]}))
        if kind == 'risk_coverage':
            points = tuple(figures.Point(row['coverage'], row['accuracy']) for row in rows)
            drawn.append(figures.points(
                f'Answering only if confident{tail}', 'accuracy of what is answered',
                [figures.Series('model', points, dots=False)], scale='linear',
                x_label='share answered', y_range=(0., 1.)))
    drawn = ''.join(drawn)
    return f'<div class="charts">{drawn}</div>' if drawn else ''


def _curve(label, rows, colour):
    limit = lambda x: math.nan if x is None else x
    return figures.Series(label, tuple(
        figures.Point(row['exposures'], row['value'], limit(row['low']), limit(row['high']),
                      row['n']) for row in rows), colour, band=True)


def _tables(plots):
    """What is no figure: lists of records as tables."""
    drawn = ('reliability', 'risk_coverage')
    parts = []
    for name, rows in plots.items():
        if isinstance(rows, list) and rows and not name.startswith(drawn):
            parts.append(f'<h3>{page.escape(name)}</h3>{page.table(rows[:_MOST_ROWS])}')
            if len(rows) > _MOST_ROWS:
                parts.append(f'<p class="quiet">{len(rows) - _MOST_ROWS:,} more are in '
                             'results.json.</p>')
    return ''.join(parts)
