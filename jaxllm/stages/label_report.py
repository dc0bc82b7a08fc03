"""How good the labels of a directory are, as text and as report.json."""

import collections
import json
import math

import numpy as np

from jaxllm.config import write_atomic
from jaxllm.evals import statistics
from jaxllm.feedback import quality, votes

_LINES = (('alpha_ordinal', "Krippendorff's alpha of the ranks (ordinal)"),
          ('alpha_nominal', "Krippendorff's alpha of pairs (nominal)"),
          ('kappa', "Cohen's kappa of pairs, mean over raters"))
LOW_ALPHA = 0.667  # Krippendorff: below it, not even tentative conclusions


def write(labels):
    """Writes report.json into the directory. Returns the report as text."""
    answers = labels.answers()
    found = {name: _with_interval(quality.measure([a for a in answers if a.criterion == name]))
             for name in labels.criteria}
    raters = collections.Counter(a.rater for a in answers)
    wins = _wins(labels)
    write_atomic(labels.workdir / 'report.json', json.dumps(_plain(
        {'items': len(labels.items), 'answers': len(answers), 'raters': dict(raters),
         'criteria': found, 'wins': wins, 'problems': labels.store.problems}), indent=1))
    lines = [f'{len(labels.items)} items, {len(answers)} answers by {len(raters)} raters: '
             + (', '.join(f'{name} {count}' for name, count in sorted(raters.items())) or 'none')]
    for name, numbers in found.items():
        lines += ['', *_criterion(name, numbers)]
    if wins:
        lines += ['', 'wins, ties, losses of the first against the second, by pairs of responses']
        lines += [f'  {row["criterion"]:<10} {row["wins"]:>5} {row["ties"]:>5} {row["losses"]:>5}  '
                  f'{row["first"]} against {row["second"]}' for row in wins]
    return '\n'.join([*lines, '', f'{labels.workdir / "report.json"}'])


def _with_interval(numbers):
    first, items = numbers.pop('first_best'), numbers.pop('first_items')
    chance = numbers.pop('first_chance')
    numbers['first_shown_best'] = numbers['first_by_chance'] = None
    if first:
        numbers['first_shown_best'] = statistics.bootstrap(
            np.array(first, float), clusters=items).as_dict()
        numbers['first_by_chance'] = sum(chance) / len(chance)
    return numbers


def _criterion(name, numbers):
    if not numbers['answers']:
        return [f'{name}: no answers']
    shown = lambda x: 'no number' if math.isnan(x) else f'{x:.3f}'
    lines = [f'{name}: {numbers["answers"]} answers to {numbers["items"]} items by '
             f'{numbers["raters"]} raters; {numbers["items_rated_twice"]} items by two or more']
    for key, text in _LINES:
        low = '  (low: the raters disagree)' if key == 'alpha_ordinal' and (
            numbers[key] < LOW_ALPHA) else ''
        lines.append(f'  {text:<45} {shown(numbers[key])}{low}')
    if bias := numbers['first_shown_best']:
        low, high, chance = bias['low'], bias['high'], numbers['first_by_chance']
        limits = '' if low is None else f' [{low:.3f}, {high:.3f}]'
        biased = low is not None and not low <= chance <= high
        note = '  (biased by position)' if biased else ''
        lines.append(f'  {"the answer shown first is the best":<45} {bias["value"]:.3f}{limits}, '
                     f'by chance {chance:.3f}{note}')
    lines += [f'  {"tied pairs":<45} {numbers["ties"]:.1%}',
              f'  {"all responses bad":<45} {numbers["all_bad"]:.1%}',
              f'  {"seconds per answer, median":<45} {numbers["seconds"]:.0f}']
    return lines


def _wins(labels):
    """Rows of every two sources that were compared, by criterion."""
    sources = sorted({name for item in labels.items.values() for names in item.sources
                      for name in names})
    rows = []
    for criterion in labels.criteria:
        for i, first in enumerate(sources):
            for second in sources[i + 1:]:
                found = votes.votes(labels, first, second, criterion)
                if found:
                    rows.append({'criterion': criterion, 'first': first, 'second': second}
                                | {name: sum(getattr(v, name) for v in found)
                                   for name in ('wins', 'ties', 'losses')})
    return rows


def _plain(value):
    """NaN as None, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
