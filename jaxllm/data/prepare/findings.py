"""What a look at a data set has found, in words for people who do not program."""

import dataclasses

from jaxllm.errors import InputError

ERROR, WARNING, INFO = 'error', 'warning', 'info'
DROPPABLE = ('near_duplicate', 'contradiction', 'pii', 'language', 'length', 'damaged', 'refusal')


@dataclasses.dataclass(frozen=True)
class Finding:
    """kind: of check. severity: ERROR (dropped, or must be), WARNING (look at it), INFO.
    text: a sentence. origins: 'file:line' of the records. examples: short texts to show."""
    kind: str
    severity: str
    text: str
    origins: tuple = ()
    examples: tuple = ()


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Thresholds of the checks, and what is dropped beside what cannot be used at all."""
    holdout_share: float = 0.15      # of the records, to evaluate on
    min_holdout: int = 8             # at least so many (but at most a third)
    max_holdout: int = 200
    near_duplicate: float = 0.8      # Jaccard similarity of character 5-grams
    outlier: float = 6.0             # robust standard deviations of the log length
    language_share: float = 0.1      # a language rarer than this is an outlier
    label_share: float = 0.9         # one answer more common than this is an imbalance
    max_labels: int = 20             # so few different answers are labels
    drop: tuple = ()                 # of DROPPABLE: drop what these checks find, too
    mask_pii: bool = False           # replace personal data by [EMAIL] and the like

    def __post_init__(self):
        if not 0 < self.holdout_share < 1:
            raise InputError(f'prepare.holdout_share={self.holdout_share} must be above 0 and '
                             'below 1, e.g. 0.15')
        for name in self.drop:
            if name not in DROPPABLE:
                raise InputError(f'prepare.drop: {name!r} is unknown; use some of '
                                 f'{", ".join(DROPPABLE)}')


def places(records):
    """The origins of records."""
    return tuple(record.origin for record in records)


def count(records):
    """'1 record', '3 records'."""
    return f'{len(records):,} record{"" if len(records) == 1 else "s"}'


def many(records):
    """'3 records (lines 3, 17, 20)'."""
    return f'{count(records)} ({lines(places(records))})'


def lines(origins, most=8):
    """'lines 3, 17 and 4 more' of origins in one file; whole origins if there are several."""
    files = {origin.rpartition(':')[0] for origin in origins}
    if len(files) == 1:
        shown = [origin.rpartition(':')[2] for origin in origins[:most]]
        word = 'line' if len(origins) == 1 else 'lines'
    else:
        shown, word = list(origins[:most]), 'at'
    more = f' and {len(origins) - most} more' if len(origins) > most else ''
    return f'{word} {", ".join(shown)}{more}'


def short(text, most=160):
    """A text for a table cell."""
    text = ' '.join(text.split())
    return text if len(text) <= most else text[:most - 1] + '…'
