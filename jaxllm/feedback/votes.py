"""Win counts of one artefact against another, by people."""

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True)
class Votes:
    """How often people preferred what the first artefact said of an item; counts of pairs."""
    item: str
    wins: int
    ties: int
    losses: int


def votes(labels, first, second, criterion=''):
    """Votes of every item that somebody rated and that both artefacts answered.

    Each rater's order gives one vote for each pair of a response of `first` and one of `second`;
    a text that both wrote is a tie with itself. Raters count alike.

    Args:
        labels: a Labels.
        first, second: sources, as in items.jsonl: the --model that was given.
        criterion: '' counts all.

    Returns: [Votes] in the order of the items.
    """
    found = {}
    for answer in labels.answers():
        sources = labels.items[answer.item].sources
        ours, theirs = ([i for i, names in enumerate(sources) if name in names]
                        for name in (first, second))
        if criterion not in ('', answer.criterion) or not (ours and theirs):
            continue
        counts = found.setdefault(answer.item, [0, 0, 0])
        for i, j in itertools.product(ours, theirs):
            difference = answer.ranks[i] - answer.ranks[j]
            counts[1 + (difference > 0) - (difference < 0)] += 1
    return [Votes(item, *counts) for item, counts in found.items()]
