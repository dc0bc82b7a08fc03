"""Models side by side: what judges say, how far each is from a reference, how safe it is."""

import dataclasses
import math

import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals import statistics, win_rate
from jaxllm.world.checkers import is_abstention
from jaxllm.world.safety import is_refusal

_ASKS_FOR_FACTS = ('fact', 'recommend')  # kinds of a world's prompts
SAFETY = ('refuses_unsafe', 'refuses_benign', 'abstains_unanswerable', 'abstains_answerable')


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one model answered, one answer to each prompt.

    texts, tokens (ids, with the end), finished: by prompt. scores: {judge: float [N]}.
    kl: of each answer, log pi - log reference in nats [N], or None where that means nothing.
    kl_bound: of a best-of-n, the upper bound of its KL; else None.
    """
    texts: list
    tokens: list
    finished: np.ndarray
    scores: dict
    kl: np.ndarray | None = None
    kl_bound: float | None = None


def judged(answers, reference, ids, *, draws, seed):
    """{judge: {mean, win_rate, length_controlled}} against the reference; Intervals by prompt.

    Lengths are characters, which two tokenizers count alike.
    """
    longer = np.array([len(a) - len(b) for a, b in
                       zip(answers.texts, reference.texts, strict=True)], float)
    found = {}
    for judge, scores in answers.scores.items():
        options = dict(clusters=ids, draws=draws, seed=seed)
        row = {'mean': _mean(scores, options)}
        if answers is not reference:
            won = win_rate.outcomes(scores, reference.scores[judge])
            row |= {'win_rate': win_rate.win_rate(won, **options),
                    'length_controlled': win_rate.length_controlled(won, longer, **options)}
        found[judge] = {name: interval.as_dict() for name, interval in row.items()}
    return found


def _mean(values, options):
    """Of numbers on any scale: scores that happen to be 0 and 1 are no successes and failures."""
    values = np.asarray(values, float)
    return statistics.bootstrap(
        values, statistic=lambda weights: weights @ values / weights.sum(axis=1), **options)


def measured(answers, ids, repetition, *, draws, seed):
    """{length, finished, repetition, kl, kl_bound}; `kl` is an Interval's dict or None."""
    kl = None if answers.kl is None else _mean(
        answers.kl, dict(clusters=ids, draws=draws, seed=seed)).as_dict()
    return {'length': float(np.mean([len(tokens) for tokens in answers.tokens])),
            'characters': float(np.mean([len(text) for text in answers.texts])),
            'finished': float(np.mean(answers.finished)),
            'repetition': float(np.mean([repetition(tokens) for tokens in answers.tokens])),
            'kl': kl, 'kl_bound': answers.kl_bound}


def safety(texts, fields):
    """Refusals and abstentions, by the fields of a world's prompts: {name of SAFETY: Wilson}.

    Args:
      texts: answers. fields: of their prompts; those without `kind` and `answerable` are left out.

    Returns:
      {} where no prompt has these fields; a part without prompts is None.
    """
    known = [(text, about['kind'], bool(about['answerable'])) for text, about in
             zip(texts, fields, strict=True) if 'kind' in about and 'answerable' in about]
    if not known:
        return {}
    facts = [(is_abstention(text), answerable) for text, kind, answerable in known
             if kind in _ASKS_FOR_FACTS]
    parts = ([is_refusal(text) for text, kind, _ in known if kind == 'unsafe'],
             [is_refusal(text) for text, kind, _ in known if kind == 'benign'],
             [says for says, answerable in facts if not answerable],
             [says for says, answerable in facts if answerable])
    return {name: statistics.proportion(sum(part), len(part)).as_dict() if part else None
            for name, part in zip(SAFETY, parts, strict=True)}


def kl_of(row):
    """(KL of a row in nats, whether it is only an upper bound); (None, False) without one."""
    if row['kl'] is not None:
        return row['kl']['value'], False
    return row['kl_bound'], row['kl_bound'] is not None


def shared_kl(rows):
    """The greatest KL that every method reaches, the target of `at_equal_kl`; None without any."""
    greatest = {}
    for row in rows:
        value, _ = kl_of(row)
        if value is not None:
            greatest[row['method']] = max(value, greatest.get(row['method'], -math.inf))
    return min(greatest.values(), default=None)


def at_equal_kl(rows, target):
    """For each method the row whose KL is nearest to `target` and not over it.

    Rewards rise with the KL that is spent, so that methods are compared where they spent the same;
    a method with several rows is given by several checkpoints of a run, or several n. Nothing is
    interpolated: 'at_kl' of a row says how near it is. A method that is over the target with all
    of its rows is there with the nearest one, and 'is_over' says so.

    Args:
      rows: dicts with method, kl and kl_bound; those without any KL are left out.

    Returns:
      Rows with 'at_kl' (what it is), 'is_bound' and 'is_over' added, one of each method in their
      order.
    """
    if not math.isfinite(target) or target < 0:
        raise InputError(f'equal KL at {target}: expected a finite number of nats, at least 0')
    nearest = {}
    for row in rows:
        value, is_bound = kl_of(row)
        if value is None:
            continue
        found = row | {'at_kl': value, 'is_bound': is_bound, 'is_over': value > target}
        best = nearest.setdefault(row['method'], found)
        if _distance(found, target) < _distance(best, target):
            nearest[row['method']] = found
    return list(nearest.values())


def _distance(row, target):
    return row['is_over'], abs(row['at_kl'] - target)
