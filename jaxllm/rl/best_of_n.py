"""Best-of-n: of n responses to a prompt, the one with the highest reward.

Arrays are [P, S]: S responses to each of P prompts. Pick with one reward and judge with another:
the best of many by one reward is chosen for its errors too.
"""

import math

import numpy as np

from jaxllm.errors import InputError


def pick(scores_PS):
    """int [P]: the response with the highest score, the first of equal ones."""
    return np.argmax(_checked(scores_PS), axis=1)


def distinct(responses):
    """(numbers of the prompts whose responses are not all the same, how many were dropped).

    Where all are the same there is nothing to choose. responses: [P][S] texts or tuples of ids.
    """
    kept = [i for i, row in enumerate(responses) if len(set(row)) > 1]
    return kept, len(responses) - len(kept)


def kl_bound(n):
    """log n - (n - 1) / n: an UPPER BOUND of the KL from best-of-n to the policy, in nats.

    It is exact where no two samples are equal; a small model that repeats itself is well below it,
    so plot measured KL beside it, never instead. Works on arrays.

    Ref: Stiennon et al. 2020 (arXiv 2009.01325); Beirami et al. 2024 (arXiv 2401.01879) show that
    it is a bound.
    """
    n = np.asarray(n, np.float64)
    if not (n >= 1).all():
        raise InputError(f'best-of-n for n={n}: expected n >= 1')
    return np.log(n) - (n - 1) / n


def expected_gold(proxy_PS, gold_PS=None):
    """The expected gold score of best-of-n by the proxy, for every n from 1 to S: float64 [S].

    From S samples, over all subsets of n, which is unbiased; the i-th best from below by the proxy
    is the best of C(i - 1, n - 1) of the C(S, n) subsets:

        E_n = sum_{i = n}^{S} C(i - 1, n - 1) / C(S, n) * gold_(i),   averaged over prompts.

    Responses with equal proxy scores are picked with equal chances. E_1 is the plain mean; E_S
    rests on one choice per prompt.

    Args:
      proxy_PS: what picks. gold_PS: what judges; None = the proxy itself.

    Raises:
      InputError: shapes that differ, or numbers that are not finite.

    Ref: Nakano et al. 2021 (arXiv 2112.09332), appendix I.
    """
    proxy_PS = _checked(proxy_PS)
    gold_PS = proxy_PS if gold_PS is None else _checked(gold_PS)
    if proxy_PS.shape != gold_PS.shape:
        raise InputError(f'got proxy scores {proxy_PS.shape} and gold scores {gold_PS.shape}; '
                         'expected the same responses')
    gold_by_rank = np.mean([_sorted_gold(*row) for row in zip(proxy_PS, gold_PS, strict=True)],
                           axis=0)
    return _shares(proxy_PS.shape[1]) @ gold_by_rank


def _sorted_gold(proxy_S, gold_S):
    """Gold by rising proxy, the mean of it where the proxy is equal."""
    _, group = np.unique(proxy_S, return_inverse=True)
    mean = np.bincount(group, gold_S) / np.bincount(group)
    return mean[np.sort(group)]


def _shares(S):
    """[n - 1, i - 1]: C(i - 1, n - 1) / C(S, n), the chance that the i-th is the best of n."""
    log = np.array([math.lgamma(i + 1) for i in range(S + 1)])  # log i!
    i, n = np.arange(1, S + 1)[None, :], np.arange(1, S + 1)[:, None]
    possible = i >= n
    log_share = (log[i - 1] - log[n - 1] - log[np.where(possible, i - n, 0)]
                 - (log[S] - log[n] - log[S - n]))
    shares = np.where(possible, np.exp(log_share), 0.0)
    return shares / shares.sum(axis=1, keepdims=True)


def _checked(scores_PS):
    scores_PS = np.asarray(scores_PS, np.float64)
    if scores_PS.ndim != 2 or not scores_PS.size or not np.isfinite(scores_PS).all():
        raise InputError(f'got scores of shape {scores_PS.shape} with '
                         f'{int((~np.isfinite(scores_PS)).sum())} that are not finite; expected '
                         'finite numbers [prompts, responses]')
    return scores_PS
