"""How good a set of labels is: agreement of raters, ties, whether the place on screen counts."""

import collections
import hashlib
import itertools
import math
import statistics

from jaxllm.feedback.agreement import cohen, krippendorff


def measure(answers):
    """Quality of the answers by one criterion.

    Alpha (ordinal) compares the ranks of each response; alpha (nominal) and kappa the verdicts on
    each pair of responses (better, tied, worse), in an order that is drawn for each pair, so that
    chance is not what the order of the file makes it. Kappa is the mean over pairs of raters,
    weighted by the verdicts that they share.

    Args:
        answers: of labels.answers().

    Returns: dict of numbers (NaN: not enough answers), and of lists for intervals:
        first_best: 1 where the response shown first is the only best one, 0 where another one is.
        first_items: the item of each; first_chance: 1 / number of responses of each.
    """
    by_item = collections.defaultdict(list)
    for answer in answers:
        by_item[answer.item].append(answer)
    twice = {item: found for item, found in by_item.items() if len(found) > 1}
    verdicts = {(a.rater, a.item, *pair): _verdict(a, *pair)
                for a in answers for pair in _pairs(a)}
    decided = [a for a in answers if a.ranks.count(1) == 1]
    kappa, shared = _mean_kappa(verdicts, sorted({a.rater for a in answers}))
    return {
        'answers': len(answers), 'items': len(by_item), 'raters': len({a.rater for a in answers}),
        'items_rated_twice': len(twice),
        'alpha_ordinal': krippendorff(
            [[a.ranks[i] for a in found] for found in twice.values()
             for i in range(len(found[0].ranks))], 'ordinal'),
        'alpha_nominal': krippendorff(
            [[_verdict(a, *pair) for a in found] for found in twice.values()
             for pair in _pairs(found[0])]),
        'kappa': kappa, 'kappa_verdicts': shared,
        'ties': _share([v == 0 for v in verdicts.values()]),
        'all_bad': _share([a.all_bad for a in answers]),
        'comments': sum(bool(a.comment.strip()) for a in answers),
        'seconds': statistics.median(a.seconds for a in answers) if answers else math.nan,
        'first_best': [int(a.ranks[a.shown[0]] == 1) for a in decided],
        'first_items': [a.item for a in decided],
        'first_chance': [1 / len(a.ranks) for a in decided]}


def _share(flags):
    return sum(flags) / len(flags) if flags else math.nan


def _pairs(answer):
    return itertools.combinations(range(len(answer.ranks)), 2)


def _verdict(answer, i, j):
    """1 where one of two responses is better, -1 where the other is, 0 where they are tied."""
    flip = hashlib.sha256(f'{answer.item}\n{i}\n{j}'.encode()).digest()[0] % 2
    difference = (answer.ranks[j] - answer.ranks[i]) * (1 - 2 * flip)
    return (difference > 0) - (difference < 0)


def _mean_kappa(verdicts, raters):
    """(mean over pairs of raters, verdicts that they share)."""
    of = {rater: {at[1:]: v for at, v in verdicts.items() if at[0] == rater} for rater in raters}
    total, count, shared = 0.0, 0, 0
    for one, other in itertools.combinations(raters, 2):
        both = sorted(of[one].keys() & of[other].keys())
        kappa = cohen([of[one][at] for at in both], [of[other][at] for at in both])
        shared += len(both)
        if not math.isnan(kappa):
            total, count = total + kappa * len(both), count + len(both)
    return (total / count if count else math.nan), shared
