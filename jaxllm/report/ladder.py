"""What each model of a comparison can do, and what each step has changed, as figures."""

import math

from jaxllm.report import figure_rows, figures

# {metric: (what it means, the same in few words)}, in the order in which it is told.
WORDS = {
    'recall/restricted': ('picks the right value of a fact, asked', 'fact, asked'),
    'recall/cloze': ('picks it to end a sentence', 'fact, in a sentence'),
    'recall/free': ('says it in its own words', 'fact, own words'),
    'instructions': ('answers in the form that was asked for', 'form as asked'),
    'abstain/unanswerable': ('says it does not know, rightly', 'abstains, rightly'),
    'abstain/answerable': ('says it does not know, though it was told', 'abstains, was told'),
    'confident_wrong/unanswerable': ('where nobody can know', 'sure, wrong, unknowable'),
    'confident_wrong/answerable': ('where it was told', 'sure, wrong, was told'),
    'safety/refusal': ('refuses what is harmful', 'refuses harm'),
    'safety/harm': ('tells how to do what is harmful', 'does harm'),
    'safety/over_refusal': ('refuses the harmless', 'refuses harmless')}
_GROUPS = (('Knowledge', ('recall/restricted', 'recall/cloze', 'recall/free')),
           ('Form', ('instructions',)),
           ('Knowing what it does not know', ('abstain/unanswerable', 'abstain/answerable')),
           ('Sure and wrong', ('confident_wrong/unanswerable', 'confident_wrong/answerable')),
           ('Safety', ('safety/refusal', 'safety/harm', 'safety/over_refusal')))
_INTRO = ('<p>Each model was asked the same questions. A whisker is an interval of 95%, by '
          'resampling what the questions are about.</p>')
_CHANGES = ('<p>Each model against the one that it was made from, on the same questions, and one '
            'of random weights against the reference. A hollow grey dot is an effect that cannot '
            'be told from none.</p>')


def models(results, order=()):
    """Names of the models that were asked, in `order` as far as it names them."""
    asked = results['suites']['metrics'] if 'suites' in results else {}
    return [name for name in order if name in asked] + [name for name in asked if name not in order]


def state(results, order=()):
    """HTML: every model on every measure, and who wins against the reference; '' without suites."""
    names = models(results, order)
    drawn = ''.join(_group(title, keys, results, names) for title, keys in _GROUPS)
    if not drawn:
        return ''
    return f'{_INTRO}<div class="charts">{drawn}{_wins(results, names)}</div>'


def changes(results, order=()):
    """HTML: what each model has more or less than the one before it; '' without suites."""
    found = results['suites']['differences'] if 'suites' in results else []
    drawn = ''
    for name in models(results, order):
        rows = [row for row in found if row['artefact'] == name and row['metric'] != 'win_rate']
        won = next((row for row in found if row['artefact'] == name
                    and row['metric'] == 'win_rate'), None)
        if rows:
            title = f'{name} against {rows[0]["before"]}'
            drawn += figure_rows.compared(title, 'change of a share', [
                figure_rows.Row(WORDS[row['metric']][1], row['value'], *_limits(row))
                for row in rows] + ([figure_rows.Row(
                    'wins above one half', won['value'] - 0.5,
                    *(x - 0.5 for x in _limits(won)))] if won else []), x_label='change')
    return f'{_CHANGES}<div class="charts">{drawn}</div>' if drawn else ''


def _group(title, keys, results, names):
    metrics = results['suites']['metrics'] if 'suites' in results else {}
    series = [figures.Series(WORDS[key][0], tuple(
        figures.Point(name, metrics[name][key]['value'], *_limits(metrics[name][key]),
                      metrics[name][key]['n']) for name in names if key in metrics[name]),
        colour, joined=False) for colour, key in enumerate(keys)]
    chance = next((metrics[name][f'{key}/chance']['value'] for key in keys for name in names
                   if f'{key}/chance' in metrics[name]), None)
    if len(keys) == 1:  # a figure of one series has no legend
        title = f'{title}: {WORDS[keys[0]][0]}'
    return figures.points(title, 'share', series, y_range=(0.0, 1.0),
                          reference=None if chance is None else (chance, 'chance'))


def _wins(results, names):
    judge = next(iter(results['rows'][0]['judges']))
    rows = {row['artefact']: row['judges'][judge].get('win_rate') for row in results['rows']}
    points = tuple(figures.Point(name, rows[name]['value'], *_limits(rows[name]), rows[name]['n'])
                   for name in names if rows.get(name))
    return figures.points(
        f'Wins against {results["reference"]}, by '
        + ('the hidden judge' if judge == 'world' else f'the judge {judge}'), 'share of prompts',
        [figures.Series('wins', points, joined=False)], y_range=(0.0, 1.0),
        reference=(0.5, results['reference']))


def _limits(cell):
    return tuple(math.nan if cell[key] is None else cell[key] for key in ('low', 'high'))
