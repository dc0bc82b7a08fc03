"""What each model of a family can do, and by how much it differs from the one it was made from.

A measure is a share of the rows of an evaluation's items.jsonl. Two models are held together by
the items that both were asked: the interval of their difference resamples what the items are about.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals import statistics, win_rate

WIN_RATE = 'win_rate'  # against the model before, by a judge


@dataclasses.dataclass(frozen=True)
class Measure:
    """name: that of the metric in results.json. column: what is averaged, over the rows of `suite`
    for which `where` is true."""
    name: str
    suite: str
    column: str
    where: Callable


def _asked(style, answerable=True):
    return lambda row: (row['kind'] == 'direct' and row['style'] == style
                        and bool(row['answerable']) == answerable)


def _honest(answerable):
    """Questions about people whom some document was to mention, and about people nobody knows."""
    return lambda row: (row['style'] == 'qa' and bool(row['answerable']) == answerable
                        and bool(row['kind'] == 'unanswerable' or row['planned']))


MEASURES = (
    Measure('recall/restricted', 'recall', 'correct', _asked('qa')),
    Measure('recall/cloze', 'recall', 'correct', _asked('cloze')),
    Measure('recall/free', 'answers', 'correct', _asked('qa')),
    Measure('instructions', 'instructions', 'correct', lambda row: True),
    Measure('abstain/unanswerable', 'answers', 'abstains', _honest(False)),
    Measure('abstain/answerable', 'answers', 'abstains', _honest(True)),
    Measure('confident_wrong/unanswerable', 'answers', 'confident_wrong', _honest(False)),
    Measure('confident_wrong/answerable', 'answers', 'confident_wrong', _honest(True)),
    Measure('safety/refusal', 'safety', 'refuses', lambda row: row['harmful']),
    Measure('safety/harm', 'safety', 'harms', lambda row: row['harmful']),
    Measure('safety/over_refusal', 'safety', 'refuses', lambda row: not row['harmful']))


def differences(items, before, *, draws, seed=0):
    """Each model against the one before it, on the items that both were asked.

    Args:
      items: {model: rows of its items.jsonl}. before: {model: another model, or ''}.
      draws, seed: of the bootstrap.

    Returns:
      [{'metric', 'artefact', 'before', 'value', 'low', 'high', 'n'}]; what a model was not
      asked is left out.

    Raises:
      InputError: two models were asked other items.
    """
    rows = []
    for model, parent in before.items():
        for measure in MEASURES if parent else ():
            mine, theirs = (_values(measure, items[name]) for name in (model, parent))
            if mine.keys() != theirs.keys():
                both = len(mine.keys() & theirs.keys())
                raise InputError(f'{measure.name}: {model} and {parent} were asked other items '
                                 f'({len(mine)} and {len(theirs)}, {both} of them the same); '
                                 'evaluate both with the same settings')
            if mine:
                change = np.array([mine[id][0] - theirs[id][0] for id in mine])
                found = statistics.hierarchical(
                    change, seeds=np.zeros(len(change)), resample_seeds=False, signed=True,
                    clusters=np.array([subject for _, subject in mine.values()]), draws=draws,
                    seed=seed)
                rows.append(_row(measure.name, model, parent, found))
    return rows


def wins(scores, before, *, draws, seed=0):
    """Rows as of `differences`: the share of prompts on which a judge prefers a model's answer.

    Args:
      scores: {model: float [prompts]}. before: see `differences`.
    """
    return [_row(WIN_RATE, model, parent, win_rate.win_rate(
        win_rate.outcomes(scores[model], scores[parent]), draws=draws, seed=seed))
        for model, parent in before.items() if parent]


def _row(metric, model, parent, interval):
    found = interval.as_dict()
    return {'metric': metric, 'artefact': model, 'before': parent,
            **{key: found[key] for key in ('value', 'low', 'high', 'n')}}


def _values(measure, rows):
    """{id: (value, subject)}."""
    return {row['id']: (float(row[measure.column]), row['subject']) for row in rows
            if row['suite'] == measure.suite and measure.where(row)}
