"""Several reward models of different seeds: their mean, their spread, and what is unusual.

Members that learned from the same comparisons agree where those say something. A text is flagged as
out of distribution where they spread, or where their hidden states are far from those of training
(`distance`), more than on 97.5% of ordinary responses, so that about one ordinary one in twenty is.
Members that began from one model may agree on nonsense, too; then the distance tells.

Ref: Coste et al. 2023 (arXiv 2310.02743), Eisenstein et al. 2023 (arXiv 2312.09244); of the
distance Lee et al. 2018 (arXiv 1807.03888).
"""

import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals import statistics
from jaxllm.evals.reward import quality

QUANTILE = 0.975
OWN = 'held-out responses'
_DRAWS = 2000


def spread(rewards_EN):
    """(mean, standard deviation over members), float [N] each, of normalised rewards.

    Raises:
      InputError: fewer than two members.
    """
    rewards_EN = np.asarray(rewards_EN, np.float64)
    if rewards_EN.ndim != 2 or len(rewards_EN) < 2:
        raise InputError(f'rewards of shape {rewards_EN.shape}; expected two members or more, each '
                         'with a reward per text')
    return rewards_EN.mean(axis=0), rewards_EN.std(axis=0, ddof=1)


def threshold(measures_N):
    """What is beyond this is flagged: the 97.5th percentile of a measure of ordinary responses."""
    return float(np.quantile(measures_N, QUANTILE))


def measure(found, member_rewards, texts, names, distances):
    """The quality of an ensemble, as JSON.

    Args:
      found: rows of `quality.rows` with anybody's rewards.
      member_rewards: float [E, N], normalised rewards of all their responses in order.
      texts: {what they are: float [E, M]}, rewards of texts that are not like the responses.
      names: of the members.
      distances: {OWN and the names of texts: float [E, N or M]}, `distance.Seen.distance` of the
        same texts by each member; the mean over members counts.

    Half of the responses (by prompt) set the thresholds, the other half shows how often ordinary
    ones are flagged.
    """
    rewards_EN = np.asarray(member_rewards, np.float64)
    far = {name: np.mean(distances[name], axis=0) for name in (OWN, *texts)}
    groups = np.repeat([row['group'] for row in found], [len(row['ranks']) for row in found])
    order = {group: number for number, group in enumerate(sorted(set(groups.tolist())))}
    half = np.array([order[group] % 2 == 0 for group in groups.tolist()])
    limits = {'spread': threshold(spread(rewards_EN[:, half])[1]),
              'distance': threshold(far[OWN][half])}
    sets = [_row(OWN, rewards_EN[:, ~half], far[OWN][~half], limits, groups[~half])]
    sets += [_row(name, rewards, far[name], limits) for name, rewards in texts.items()]
    members = [{'run': name, **_accuracy(found, rewards)}
               for name, rewards in zip(names, rewards_EN, strict=True)]
    return {'members': members, 'accuracy': _accuracy(found, rewards_EN.mean(axis=0)),
            'thresholds': limits, 'sets': sets,
            'correlation': float(np.mean(np.corrcoef(rewards_EN)[
                np.triu_indices(len(rewards_EN), 1)]))}


def _row(name, rewards_EM, distance_M, limits, clusters=None):
    std_M = spread(rewards_EM)[1]
    by_spread_M, by_distance_M = std_M > limits['spread'], distance_M > limits['distance']
    shares = {key: statistics.bootstrap(flags_M.astype(float), clusters=clusters,
                                        draws=_DRAWS).as_dict()
              for key, flags_M in (('flagged', by_spread_M | by_distance_M),
                                   ('by_spread', by_spread_M), ('by_distance', by_distance_M))}
    return {'name': name, 'n': len(std_M), 'mean': float(np.mean(rewards_EM)),
            'std': float(std_M.mean()), 'distance': float(np.mean(distance_M)), **shares}


def _accuracy(found, rewards_N):
    start, rows = 0, []
    for row in found:
        end = start + len(row['ranks'])
        rows.append(row | {'rewards': [float(x) for x in rewards_N[start:end]]})
        start = end
    pairs = quality.ordered_pairs(rows)
    clusters = np.array([row['group'] for row in rows])[pairs['row']]
    return statistics.bootstrap(quality.right(pairs['reward']), clusters=clusters,
                                draws=_DRAWS).as_dict()
