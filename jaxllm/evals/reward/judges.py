"""A reward model against everybody who could judge in a world: raters, their utilities, the judge.

Whoever judges, the features of the held-out responses are known, so that agreement with a kind of
rater is the expected one over its votes and not that with one draw of them.
"""

import numpy as np

from jaxllm.evals import statistics
from jaxllm.evals.reward.quality import ordered_pairs, right
from jaxllm.world import oracle
from jaxllm.world.features import FEATURES

_DRAWS = 2000


def measure(found, criteria):
    """Agreement with all judges, as JSON.

    Args:
      found: rows of `quality.rows` with the world's columns in `fields`.
      criteria: {source: criterion that it was judged by, '' = that of each row}.

    Returns:
      {'ceiling': accuracy of the rater's own utility on its votes, 'utility': share of pairs whose
      reward has the sign of the rater's own utility difference, 'judges': [rows]}.
    """
    pairs = ordered_pairs(found)
    features = [features_of(row) for row in found]
    first, second = (np.stack([features[n][k] for n, k in zip(pairs['row'], pairs[side],
                                                              strict=True)]) for side in 'ij')
    clusters = np.array([row['group'] for row in found])[pairs['row']]
    own = np.zeros(len(clusters))
    for voter in {(row['rater'], row['criterion']) for row in found}:
        mine = np.array([(row['rater'], row['criterion']) == voter for row in found])[pairs['row']]
        own[mine] = (first - second)[mine] @ _expected(oracle.rater(*voter))
    interval = lambda values: statistics.bootstrap(values, clusters=clusters,
                                                   draws=_DRAWS).as_dict()
    decided = np.abs(own) > 1e-9
    likes_first = right(pairs['reward'])
    asked = _criterion(found, criteria)
    rows = []
    for kind in oracle.RATERS:
        p = oracle.rater(kind, asked).probability(first, second)
        rows.append({'judge': kind, 'criterion': asked,
                     **interval(likes_first * p + (1 - likes_first) * (1 - p)),
                     'best_possible': float(np.maximum(p, 1 - p).mean())})
    hidden = oracle.hidden_utility(first) - oracle.hidden_utility(second)
    clear = np.abs(hidden) > 1e-9
    agrees = np.where(hidden > 0, likes_first, 1 - likes_first)
    rows.append({'judge': 'hidden judge', 'criterion': 'its own', **statistics.bootstrap(
        agrees[clear], clusters=clusters[clear], draws=_DRAWS).as_dict(), 'best_possible': 1.0})
    same = np.where(own > 0, likes_first, 1 - likes_first)
    return {'ceiling': float(right(own).mean()),
            'utility': statistics.bootstrap(same[decided], clusters=clusters[decided],
                                            draws=_DRAWS).as_dict(),
            'utility_correlation': _correlation(pairs['reward'], own), 'judges': rows}


def features_of(row):
    """phi of the responses of a row, float [S, F], from the columns of its dataset."""
    fields = row['fields']
    if 'features_chosen' in fields:
        return np.array([fields['features_chosen'], fields['features_rejected']], float)
    return np.array(fields['features'], float).reshape(len(row['ranks']), len(FEATURES))


def _expected(rater):
    """Weights of the expected utility over whether the rater verifies."""
    return rater.q * rater.verified + (1 - rater.q) * rater.at_a_glance


def _criterion(found, criteria):
    """What most held-out comparisons were judged by."""
    asked = [criteria.get(row['source'], '') or row['criterion'] for row in found]
    return max(sorted(set(asked)), key=asked.count) or 'overall'


def _correlation(reward, own):
    """Over pairs, of reward and utility differences."""
    if len(own) < 3 or own.std() < 1e-12 or reward.std() < 1e-12:
        return None
    return float(np.corrcoef(reward, own)[0, 1])
