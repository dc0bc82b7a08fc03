"""The quality of a reward model on held-out comparisons, from rewards alone.

The unit of every interval is the prompt: comparisons of one prompt are drawn together. Every number
weighs ordered pairs alike, however many a ranking has.
"""

import collections
import dataclasses

import numpy as np

from jaxllm.data.comparisons import group_of
from jaxllm.evals import calibration, statistics

GRADES = ('negligibly better', 'slightly better', 'better', 'significantly better')
_LEAST_PAIRS = 8      # of a slice that is shown
_MOST_VALUES = 12     # of a field, to be sliced by
_DRAWS = 2000
_SLICES = 'rater', 'criterion', 'kind', 'source'


def rows(source, comparisons, rewards, lengths):
    """One dict per held-out comparison, as everything below takes it.

    Args:
      source: name. comparisons: Comparisons. rewards, lengths: of all responses in their order, the
        lengths in tokens.
    """
    out, start = [], 0
    for c in comparisons:
        end = start + len(c.responses)
        out.append({'source': source, 'id': c.id, 'group': group_of(c),
                    'prompt': c.prompt[-1]['content'], 'responses': list(c.responses),
                    'ranks': list(c.ranks), 'margin': c.margin, 'rater': c.rater,
                    'criterion': c.criterion, 'kind': str(c.fields.get('kind', '')),
                    'rewards': [float(x) for x in rewards[start:end]],
                    'lengths': [len(text) for text in c.responses],
                    'tokens': [int(x) for x in lengths[start:end]], 'fields': c.fields})
        start = end
    return out


def ordered_pairs(found):
    """Arrays over all ordered pairs (i before j) of rows: which row, i, j, reward_i - reward_j and
    the difference of their lengths in characters."""
    columns = collections.defaultdict(list)
    for number, row in enumerate(found):
        for i, one in enumerate(row['ranks']):
            for j, other in enumerate(row['ranks']):
                if one < other:
                    columns['row'].append(number)
                    columns['i'].append(i)
                    columns['j'].append(j)
                    columns['reward'].append(row['rewards'][i] - row['rewards'][j])
                    columns['length'].append(row['lengths'][i] - row['lengths'][j])
    kinds = {'reward': float, 'length': float}
    return {key: np.array(columns[key], kinds.get(key, int))
            for key in ('row', 'i', 'j', 'reward', 'length')}


def right(differences):
    """1 where the reward orders a pair as the person did, 1/2 where it is equal, 0 else."""
    return np.where(differences == 0, 0.5, (differences > 0).astype(float))


def measure(found, gain):
    """Everything, as JSON.

    Args:
      found: rows. gain: of the normalised rewards, so that expected win rates are of raw ones.
    """
    pairs = ordered_pairs(found)
    clusters = np.array([row['group'] for row in found])[pairs['row']]
    hits, logits = right(pairs['reward']), pairs['reward'] / gain
    accuracy = lambda keep: _interval(hits[keep], clusters[keep])
    every = np.ones(len(hits), bool)
    out = {'comparisons': len(found), 'pairs': len(hits),
           'prompts': len(set(clusters.tolist())), 'accuracy': accuracy(every),
           'calibration': calibrate(logits, clusters),
           'length': length_bias(found, pairs, accuracy), 'ties': ties(found), 'slices': {}}
    for name in _SLICES:
        values = np.array([str(row[name]) for row in found])[pairs['row']]
        out['slices'][name] = _sliced(values, accuracy)
    two = np.array([len(row['ranks']) == 2 for row in found])[pairs['row']]
    margins = np.array([row['margin'] for row in found])[pairs['row']]
    grades = np.array([GRADES[int(m)] if m in (0, 1, 2, 3) else f'{m:g}' for m in margins])
    graded = two & (margins >= 0) & bool((margins > 0).any())
    out['slices']['margin'] = [
        {'value_name': grade, **accuracy(graded & (grades == grade))}
        for grade in [*GRADES, *sorted(set(grades.tolist()) - set(GRADES))]
        if (graded & (grades == grade)).sum() >= _LEAST_PAIRS][:_MOST_VALUES]
    return out


def _interval(values, clusters):
    if not len(values):
        return {'value': None, 'low': None, 'high': None, 'n': 0}
    return statistics.bootstrap(values, clusters=clusters, draws=_DRAWS).as_dict()


def _sliced(values, accuracy):
    """Accuracy by the values of a field, where there are several and not too many."""
    names = sorted(set(values.tolist()))
    if not 1 < len(names) <= _MOST_VALUES:
        return []
    return [{'value_name': name or '(none)', **accuracy(values == name)} for name in names
            if (values == name).sum() >= _LEAST_PAIRS]


def calibrate(logits, clusters):
    """How often the response with the higher reward was preferred, against sigmoid(|difference|).

    Returns the table, the expected calibration error with its interval, and the temperature by
    which differences would have to be divided for the best likelihood (1 = none).
    """
    confidence, correct = 1 / (1 + np.exp(-np.abs(logits))), logits > 0
    table = calibration.reliability(confidence, correct, bins=8)
    error = calibration.ece_interval(confidence, correct, bins=8, clusters=clusters, draws=_DRAWS)
    return {'bins': [dataclasses.asdict(b) for b in table],
            'ece': error.as_dict(), 'temperature': best_temperature(logits),
            'nll': float(np.mean(np.logaddexp(0, -logits)))}


def best_temperature(logits, low=0.02, high=50.0):
    """t > 0 with the least mean of log(1 + exp(-logits / t)), by golden-section search in log t;
    `high` where every temperature is too low (accuracy no better than chance)."""
    loss = lambda x: float(np.mean(np.logaddexp(0, -logits / np.exp(x))))
    a, b, ratio = np.log(low), np.log(high), (np.sqrt(5) - 1) / 2
    for _ in range(60):
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        a, b = (a, d) if loss(c) < loss(d) else (c, b)
    return float(np.exp((a + b) / 2))


def length_bias(found, pairs, accuracy):
    """Accuracy where the preferred response is longer and where it is shorter, how often the reward
    and the person prefer the longer one, and correlations within prompts."""
    longer, shorter = pairs['length'] > 0, pairs['length'] < 0
    differ = longer | shorter
    likes = ((pairs['reward'] > 0) == longer)[differ]
    rewards, lengths, ranks = ([], [], [])
    for row in found:
        for values, key in ((rewards, 'rewards'), (lengths, 'lengths'), (ranks, 'ranks')):
            own = np.array(row[key], float)
            values.extend(own - own.mean())
    return {'longer': accuracy(longer), 'shorter': accuracy(shorter),
            'reward_prefers_longer': float(likes.mean()) if differ.any() else None,
            'person_prefers_longer': float(longer[differ].mean()) if differ.any() else None,
            'correlation': _correlation(rewards, lengths),
            'person_correlation': _correlation(-np.array(ranks), lengths)}


def _correlation(x, y):
    x, y = np.asarray(x), np.asarray(y)
    if len(x) < 3 or x.std() < 1e-12 or y.std() < 1e-12:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def ties(found):
    """How far apart the rewards of tied responses are, and of ordered ones: a model that knows a
    tie gives a smaller distance."""
    tied, ordered = [], []
    for row in found:
        for i in range(len(row['ranks'])):
            for j in range(i):
                same = row['ranks'][i] == row['ranks'][j]
                (tied if same else ordered).append(abs(row['rewards'][i] - row['rewards'][j]))
    separates = None
    if tied and ordered:
        both = calibration.auroc(_squashed(ordered + tied),
                                 np.array([1] * len(ordered) + [0] * len(tied)))
        separates = float(both)
    return {'tied': len(tied), 'ordered': len(ordered),
            'distance_tied': float(np.mean(tied)) if tied else None,
            'distance_ordered': float(np.mean(ordered)) if ordered else None,
            'auroc': separates}


def _squashed(values):
    """Into [0, 1), in the same order."""
    values = np.asarray(values)
    return values / (1 + values)
