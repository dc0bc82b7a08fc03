"""What a comparison of models found, as the sections of a page and as text."""

import json
import pathlib

from jaxllm.report import figures, ladder, page
from jaxllm.report.files import read_json
from jaxllm.report.page import Section

_SHOWN = 12  # prompts whose answers stand side by side
_SAFETY = {'refuses_unsafe': 'refuses what is harmful', 'refuses_benign': 'refuses the harmless',
           'abstains_unanswerable': 'says it does not know, rightly',
           'abstains_answerable': 'says it does not know, though it was told'}


def sections(workdir):
    """Sections of the report of a comparison; () if the directory holds none."""
    workdir = pathlib.Path(workdir)
    results = read_json(workdir / 'results.json', {})
    if 'kind' not in results or results['kind'] != 'comparison':
        return ()
    order = tuple(reversed([row['artefact'] for row in results['rows']]))
    return (Section('What each model can do', ladder.state(results, order)),
            Section('What each step has changed', ladder.changes(results, order)),
            Section('Win rates', _about(results) + _charts(results) + page.table(judged(results))),
            Section('How they answer', page.table(measured(results)) + _words(results)),
            Section('At equal KL', _equal(results)),
            Section('Refusing and not knowing', _refusing(results)),
            Section('Answers side by side', _side_by_side(results, workdir / 'samples')))


def text(results):
    """results.txt: the same tables."""
    parts = [f'{len(results["rows"])} models, {results["prompts"]:,} prompts; reference: '
             f'{results["reference"]}']
    tables = {'': judged(results), 'answers': measured(results),
              _equal_title(results): equal_kl(results), 'refusing and not knowing': safety(results)}
    return '\n'.join([*parts, *(f'\n{name}\n{_aligned(rows)}' for name, rows in tables.items()
                                if rows)]) + '\n'


def _equal_title(results):
    equal = results['equal_kl']
    return f'at equal KL, at most {equal["target"]:.3f} nats' if equal else 'at equal KL'


def _aligned(rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[page.label(key) for key in columns],
             *([page.show(row.get(key)) for key in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in
                               zip(row, widths, strict=True)).rstrip() for row in cells)


def judged(results):
    """Rows of judge, model, mean score, win rates."""
    return [{'judge': judge, 'model': row['artefact'], 'mean_score': page.interval(found['mean']),
             'win_rate': page.interval(found.get('win_rate')),
             'at_equal_length': page.interval(found.get('length_controlled'))}
            for judge in results['rows'][0]['judges'] for row in results['rows']
            if (found := row['judges'][judge])]


def measured(results):
    """Rows of what the answers are like."""
    return [{'model': row['artefact'], 'tokens': row['length'], 'characters': row['characters'],
             'finished': row['finished'], 'repetition': row['repetition'],
             'KL_in_nats': _kl(row),
             'sampled': f'temperature {row["temperature"]:g}' + (
                 f', best of {row["best_of"]} by {row["picked_by"]}' if row['best_of'] > 1 else '')}
            for row in results['rows']]


def _kl(row):
    if row['kl_bound'] is not None:
        return f'at most {row["kl_bound"]:.3f} (upper bound)'
    return page.interval(row['kl'])


def equal_kl(results):
    """Rows of each method at the KL nearest to the target and not over it."""
    if not results['equal_kl']:
        return []
    return [{'method': row['method'], 'model': row['artefact'],
             'KL_in_nats': f'at most {row["at_kl"]:.3f} (upper bound)' if row['is_bound'] else
             f'{row["at_kl"]:.3f}{" (over)" if row.get("is_over") else ""}',
             **{f'win rate, {judge}': page.interval(found['win_rate'])
                for judge, found in row['judges'].items()}} for row in results['equal_kl']['rows']]


def safety(results):
    """Rows of refusals and abstentions; [] without a world."""
    return [{'model': row['artefact'], **{_SAFETY[name]: page.interval(found) for name, found in
                                          row['safety'].items()}}
            for row in results['rows'] if row['safety']]


def _about(results):
    return (f'<p>{results["prompts"]:,} prompts, answered once by each model and judged by each '
            f'judge. A win rate is the share of prompts on which a model\'s answer has the higher '
            f'score than that of <b>{page.escape(results["reference"])}</b>, ties counting half; '
            'intervals of 95% by resampling prompts. At equal length: the win rate that a logistic '
            'regression on the difference of lengths expects where it is 0.</p>')


def _charts(results):
    nan = float('nan')
    point = lambda name, x: figures.Point(name, x['value'], nan if x['low'] is None else x['low'],
                                          nan if x['high'] is None else x['high'], x['n'])
    drawn = ''
    for judge in results['rows'][0]['judges']:
        series = [figures.Series(label, tuple(
            point(row['artefact'], row['judges'][judge][key]) for row in results['rows']
            if key in row['judges'][judge] and row['judges'][judge][key]['value'] is not None),
            colour, joined=False) for colour, (key, label) in enumerate(
                (('win_rate', 'win rate'), ('length_controlled', 'at equal length')))]
        drawn += figures.points(f'Win rate, judged by {judge}', 'share of prompts', series,
                                y_range=(0, 1), reference=(0.5, results['reference']))
    return f'<div class="charts">{drawn}</div>' if drawn else ''


def _words(results):
    if not any(row['kl_bound'] is not None for row in results['rows']):
        return ''
    return ('<p class="quiet">The KL of a best of n is not measured: log n - (n - 1) / n bounds it '
            'from above, and a model that repeats itself is well below.</p>')


def _equal(results):
    if not results['equal_kl']:
        return ''
    return ('<p>Of each method the model whose KL is nearest to '
            f'{results["equal_kl"]["target"]:.3f} nats and not over it; what it is stands beside '
            'it.</p>'
            + page.table(equal_kl(results)))


def _refusing(results):
    known = next((row for row in results['rows'] if row['safety']), None)
    if known is None:
        return ''
    counts = ', '.join(f'{_SAFETY[name]}: {found["n"] if found else "none"}'
                       for name, found in known['safety'].items())
    return ('<p>Of the answers that win rates are made of, which are sampled; the charts at the '
            f'top ask other prompts, greedily. Prompts: {counts}.</p>'
            + page.table(safety(results)))


def _side_by_side(results, folder):
    names = [row['artefact'] for row in results['rows']]
    return page.table([{'prompt': prompt, **{f'{name}: answer': text for name, text in
                                             answers.items()}}
                       for prompt, answers in _shown(folder, names)])


def one_by_one(results, folder, names):
    """HTML: a card for each of some prompts, with the answers below each other; '' without.

    Args:
      results: of a comparison. folder: its samples. names: the models to show, in this order.
    """
    names = names or [row['artefact'] for row in results['rows']]
    return ''.join(
        f'<div class="card prompt"><div class="text">{page.escape(prompt)}</div>'
        + ''.join(f'<div class="try"><div class="step">{page.escape(name)}</div>'
                  f'<div class="text">{page.escape(text)}</div></div>'
                  for name, text in answers.items()) + '</div>'
        for prompt, answers in _shown(folder, names))


def _shown(folder, names):
    """(prompt, {model: its answer}) of some prompts, evenly from all."""
    if not names or not all((folder / f'{name}.jsonl').exists() for name in names):
        return []
    answers = {name: [json.loads(line) for line in (folder / f'{name}.jsonl').read_text(
        encoding='utf-8').splitlines()] for name in names}
    count = len(answers[names[0]])
    return [(answers[names[0]][i]['prompt'], {name: answers[name][i]['response'] for name in names})
            for i in (i * count // min(_SHOWN, count) for i in range(min(_SHOWN, count)))]
