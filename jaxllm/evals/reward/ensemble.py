"""Several reward models of different seeds: their mean, their spread, and what the spread tells.

Members that learned from the same comparisons agree where those say something. A text on which they
spread more than on 95% of ordinary responses is flagged as out of distribution.

Ref: Coste et al. 2023 (arXiv 2310.02743), Eisenstein et al. 2023 (arXiv 2312.09244).
"""

import numpy as np

from jaxllm.errors import InputError
from jaxllm.evals import statistics
from jaxllm.evals.reward import quality

QUANTILE = 0.95
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


def threshold(rewards_EN):
    """The standard deviation beyond which a text is flagged: the 95th percentile of these."""
    return float(np.quantile(spread(rewards_EN)[1], QUANTILE))


def flagged(rewards_EN, limit):
    """bool [N]: whose standard deviation over members is beyond `limit`."""
    return spread(rewards_EN)[1] > limit


def measure(found, member_rewards, texts, names):
    """The quality of an ensemble, as JSON.

    Args:
      found: rows of `quality.rows` with anybody's rewards.
      member_rewards: float [E, N], normalised rewards of all their responses in order.
      texts: {what they are: float [E, M]}, rewards of texts that are not like the responses.
      names: of the members.

    Half of the responses (by prompt) set the threshold, the other half shows how often ordinary
    ones are flagged.
    """
    rewards_EN = np.asarray(member_rewards, np.float64)
    groups = np.repeat([row['group'] for row in found], [len(row['ranks']) for row in found])
    order = {group: number for number, group in enumerate(sorted(set(groups.tolist())))}
    half = np.array([order[group] % 2 == 0 for group in groups.tolist()])
    limit = threshold(rewards_EN[:, half])
    sets = [_row('held-out responses', rewards_EN[:, ~half], limit, groups[~half])]
    sets += [_row(name, rewards, limit) for name, rewards in texts.items()]
    members = [{'run': name, **_accuracy(found, rewards)}
               for name, rewards in zip(names, rewards_EN, strict=True)]
    return {'members': members, 'accuracy': _accuracy(found, rewards_EN.mean(axis=0)),
            'threshold': limit, 'sets': sets,
            'correlation': float(np.mean(np.corrcoef(rewards_EN)[
                np.triu_indices(len(rewards_EN), 1)]))}


def _row(name, rewards_EM, limit, clusters=None):
    flags = flagged(rewards_EM, limit)
    share = statistics.bootstrap(flags.astype(float), clusters=clusters, draws=_DRAWS)
    return {'name': name, 'mean': float(np.mean(rewards_EM)),
            'std': float(spread(rewards_EM)[1].mean()), 'flagged': share.value, 'low': share.low,
            'high': share.high, 'n': len(flags)}


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
