"""A label directory: its items, and what its raters said of them; the last word of each counts."""

import dataclasses
import datetime
import hashlib
import json
import random

from jaxllm.errors import InputError
from jaxllm.feedback import items as items_module
from jaxllm.feedback import store

CRITERIA = ('helpful', 'safe', 'accurate', 'clear')
SETTINGS = 'label.json'
LONGEST_NAME = 60
LONGEST_COMMENT = 10_000


@dataclasses.dataclass(frozen=True)
class Answer:
    """One rater's order of the responses of one item by one criterion.

    ranks: dense from 1, the best; in the order of item.responses; equal = tied.
    shown: the places of the responses on the screen: shown[0] is the index of the first one.
    all_bad: none of them is acceptable.
    """
    item: str
    rater: str
    criterion: str
    ranks: tuple
    shown: tuple
    all_bad: bool = False
    comment: str = ''
    seconds: float = 0.0
    time: str = ''


class Labels:
    """Reads and extends a label directory; several may be open on one directory at once."""

    def __init__(self, workdir):
        """Raises InputError: the directory holds nothing to label."""
        self.workdir = workdir
        self.items = {item.id: item for item in items_module.read_items(workdir)}
        file = workdir / SETTINGS
        self.settings = json.loads(file.read_text('utf-8')) if file.exists() else {}
        self.criteria = tuple(self.settings['criteria']) if self.settings else CRITERIA
        self.store = store.Store(workdir / store.FILE, self._problem_of)

    def shown(self, rater, item):
        """The order in which a rater sees the responses of an item: the same one every time."""
        digest = hashlib.sha256(json.dumps([rater, item]).encode()).digest()
        order = list(range(len(self.items[item].responses)))
        random.Random(digest).shuffle(order)
        return tuple(order)

    def rate(self, *, key, rater, item, criterion, ranks, all_bad=False, comment='', seconds=0.0):
        """Stores an answer, durably; the one with the same `key` is stored once.

        Args:
            key: of the answer, by the caller: sending it again after a lost reply is harmless.
            ranks: in the order shown; [] with all_bad: they are tied.

        Raises:
            InputError: an unknown item or criterion, no rater, or ranks that do not fit.
        """
        self._check(key, rater, item, criterion)
        if not isinstance(all_bad, bool) or not isinstance(comment, str):
            raise InputError(f'all_bad={all_bad!r} and comment={comment!r:.40}: expected a boolean '
                             'and a text')
        if len(comment) > LONGEST_COMMENT:
            raise InputError(f'a comment of {len(comment)} characters; expected at most '
                             f'{LONGEST_COMMENT}')
        if type(seconds) not in (int, float) or not 0 <= seconds < 1e9:
            raise InputError(f'seconds={seconds!r}; expected a number of at least 0')
        order = self.shown(rater, item)
        if ranks == [] and all_bad:
            ranks = [1] * len(order)
        if not isinstance(ranks, (list, tuple)) or len(ranks) != len(order) or not all(
                type(rank) is int and 1 <= rank <= len(order) for rank in ranks):
            raise InputError(f'ranks={ranks!r:.80}; expected {len(order)} numbers from 1, the '
                             f'best, to {len(order)}')
        dense = sorted(set(ranks))
        stored = [0] * len(order)
        for place, index in enumerate(order):
            stored[index] = 1 + dense.index(ranks[place])
        return self._append({'action': 'rate', 'key': key, 'item': item, 'rater': rater,
                             'criterion': criterion, 'ranks': stored, 'shown': list(order),
                             'all_bad': all_bad, 'comment': comment, 'seconds': round(seconds, 2)})

    def withdraw(self, *, key, rater, item, criterion):
        """Takes an answer back; what was said stays in the file, but counts no more."""
        self._check(key, rater, item, criterion)
        return self._append({'action': 'withdraw', 'key': key, 'item': item, 'rater': rater,
                             'criterion': criterion})

    def answers(self):
        """[Answer] that count, in the order of the items, then of criteria and raters."""
        last, places = {}, {name: i for i, name in enumerate(self.items)}
        for record in self.store.records():
            last[record['item'], record['criterion'], record['rater']] = record
        found = [last[at] for at in sorted(last, key=lambda at: (places[at[0]], at[1:]))]
        return [_answer(record) for record in found if record['action'] == 'rate']

    def of_rater(self, rater):
        """{(item, criterion): Answer} of one rater."""
        return {(a.item, a.criterion): a for a in self.answers() if a.rater == rater}

    def _check(self, key, rater, item, criterion):
        if not isinstance(key, str) or not 1 <= len(key) <= 100:
            raise InputError(f'key={key!r:.40}; expected a text that no other answer has')
        if rater != rater_name(rater):
            raise InputError(f'rater={rater!r} has spaces around it or in a row')
        if item not in self.items:
            raise InputError(f'item {item!r:.80} is unknown; the page belongs to another directory')
        if criterion not in self.criteria:
            raise InputError(f'criterion {criterion!r:.40} is unknown; expected one of '
                             f'{", ".join(self.criteria)}')

    def _problem_of(self, record):
        """Why a stored record is no answer to an item of this directory, or ''."""
        if any(not isinstance(record.get(name), str)
               for name in ('action', 'key', 'item', 'rater', 'criterion')):
            return 'no answer: action, key, item, rater and criterion must be texts'
        if record['item'] not in self.items:
            return f'the item {record["item"]!r:.40} is not in {items_module.FILE}'
        if record['action'] == 'withdraw':
            return ''
        size = len(self.items[record['item']].responses)
        try:
            answer = _answer(record)
        except (KeyError, TypeError) as error:
            return f'no answer: {error!r}'
        if sorted(answer.shown) != list(range(size)) or len(answer.ranks) != size:
            return f'ranks {answer.ranks} do not fit {size} responses'
        return ''

    def _append(self, record):
        record['time'] = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        new = lambda records: all(old['key'] != record['key'] for old in records)
        return self.store.append(record, new)


def rater_name(name):
    """The name of a rater without spaces around it or in a row.

    Raises:
        InputError: no name, a long one, or one with characters that cannot be seen.
    """
    clean = ' '.join(name.split()) if isinstance(name, str) else ''
    if not clean or len(clean) > LONGEST_NAME or not clean.isprintable():
        raise InputError(f'rater={name!r:.80}; expected a name of 1 to {LONGEST_NAME} characters '
                         'that can be printed')
    return clean


def _answer(record):
    return Answer(record['item'], record['rater'], record['criterion'], tuple(record['ranks']),
                  tuple(record['shown']), record['all_bad'], record['comment'], record['seconds'],
                  record['time'])
