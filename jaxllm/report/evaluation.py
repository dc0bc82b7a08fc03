"""What an evaluation found, as the sections of a page and as a table of text."""

import json
import pathlib

from jaxllm.report import page
from jaxllm.report.files import read_json
from jaxllm.report.page import Section
from jaxllm.report.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, chart, tick_label

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
             ('safety/refusal', 'Refuses harm'), ('safety/over_refusal', 'Refuses the harmless'),
             ('citations/supported', 'Named sources that support'),
             ('extraction/verbatim', 'Verbatim extraction'))
_MOST_ROWS = 60  # of a table of a plot


def is_evaluation(workdir):
    """Whether a run directory holds the results of an evaluation."""
    return (pathlib.Path(workdir) / 'results.json').exists()


def sections(workdir):
    """Sections of the report of an evaluation; () if the directory holds none."""
    results = read_json(pathlib.Path(workdir) / 'results.json', {})
    if 'metrics' not in results:
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
    figures = []
    for name in ('recall', 'recall_free'):
        if curves := plots.get(name):
            figures.append(bins({'recall': 'Recall among all values',
                                 'recall_free': 'Recall in free answers'}[name],
                                'by documents seen per fact', curves, 'exposures'))
    for name, table in plots.items():
        if name.startswith('reliability') and table:
            points = tuple((b['confidence'], b['accuracy']) for b in table)
            figures.append(chart(
                'Reliability' + name.removeprefix('reliability').replace('/', ', '),
                'accuracy against confidence', [Line('model', points, dots=True), Line(
                    'as often right as confident', ((0., 0.), (1., 1.)), colour=1, faint=True)],
                x_label='confidence', from_zero=True))
        if name.startswith('risk_coverage') and table:
            points = tuple((point['coverage'], point['accuracy']) for point in table)
            figures.append(chart(
                'Answering only if confident'
                + name.removeprefix('risk_coverage').replace('/', ', '),
                'accuracy of the most confident answers', [Line('model', points)],
                x_label='share answered', from_zero=True))
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ''


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


def bins(title, unit, curves, key):
    """A figure of shares with their intervals over a few ordered bins, one dot each.

    Args:
      curves: {label: [{key, 'value', 'low', 'high'}]}.
      key: what the bins are called.
    """
    names = sorted({point[key] for points in curves.values() for point in points})
    if not names:
        return ''
    step = (WIDTH - LEFT - RIGHT) / len(names)
    to_y = lambda y: HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - TOP)
    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(y):.1f}" '
             f'y2="{to_y(y):.1f}"/><text x="{LEFT - 7}" y="{to_y(y) + 4:.1f}" '
             f'text-anchor="end">{tick_label(y)}</text>' for y in (0, 0.25, 0.5, 0.75, 1)]
    parts += [f'<text x="{LEFT + (i + 0.5) * step:.1f}" y="{HEIGHT - BOTTOM + 17}" '
              f'text-anchor="middle">{tick_label(name)}</text>' for i, name in enumerate(names)]
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">'
                 f'{page.escape(key)}</text>')
    for colour, points in enumerate(curves.values()):
        for point in points:
            shift = (colour + 1) / (len(curves) + 1)
            x = LEFT + (names.index(point[key]) + shift) * step
            if point['low'] is not None:
                parts.append(f'<path class="curve k{colour}" d="M{x:.1f} {to_y(point["low"]):.1f}'
                             f'L{x:.1f} {to_y(point["high"]):.1f}"/>')
            parts.append(f'<circle class="dot k{colour}" cx="{x:.1f}" '
                         f'cy="{to_y(point["value"]):.1f}" r="3.5"><title>{point[key]}: '
                         f'{point["value"]:.4g}</title></circle>')
    legend = ''.join(f'<li><i class="k{i}"></i>{page.escape(label)}</li>'
                     for i, label in enumerate(curves))
    return (f'<figure class="card"><h3>{page.escape(title)} <small>{page.escape(unit)}</small></h3>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{page.escape(title)}">'
            f'{"".join(parts)}</svg><ul class="legend">{legend}</ul></figure>')
