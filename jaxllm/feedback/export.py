"""Comparisons as datasets: rankings and pairs, as TFDS and JSON lines, with a data card.

    <folder>/README.md                      the data card
    <folder>/tfds/<name>/1.0.0/             array_record, opens with tfds.builder_from_directory
    <folder>/jsonl/<name>/<split>.jsonl     the same rows for every other tool

`name` is rankings, pairs (every two responses of a ranking that are not tied) and, if wanted,
consensus (one ranking of an item by all of its raters). `read_comparisons` reads all of them.
"""

import collections
import hashlib
import itertools
import json
import shutil

from jaxllm.data.preferences import Comparison
from jaxllm.errors import InputError
from jaxllm.feedback.card import card
from jaxllm.world.spec import SPLITS
from jaxllm.world.written import DatasetWriter

VERSION = '1.0.0'
SHARES = (0.8, 0.1, 0.1)     # of SPLITS
_ABOUT = {'item': 'str', 'rater': 'str', 'criterion': 'str', 'raters': 'int', 'all_bad': 'bool',
          'comment': 'str'}
FIELDS = {
    'rankings': {'id': 'str', 'split': 'str', 'messages': 'messages', 'responses': 'list[str]',
                 'ranks': 'list[int]', 'sources': 'list[str]', **_ABOUT},
    'pairs': {'id': 'str', 'split': 'str', 'messages': 'messages', 'chosen': 'str',
              'rejected': 'str', 'margin': 'float', 'source_chosen': 'str',
              'source_rejected': 'str', **_ABOUT}}
FIELDS['consensus'] = FIELDS['rankings']


def comparisons(labels):
    """([Comparison], how many answers are none) of the answers of a Labels.

    A response without text is left out; where only one is left, there is nothing to compare.
    """
    found, empty = [], 0
    for answer in labels.answers():
        item = labels.items[answer.item]
        kept = [i for i, text in enumerate(item.responses) if text.strip()]
        if len(kept) < 2:
            empty += 1
            continue
        ranks = [answer.ranks[i] for i in kept]
        found.append(Comparison(
            item.prompt, tuple(item.responses[i] for i in kept), _dense(ranks),
            rater=answer.rater, criterion=answer.criterion,
            id=f'{answer.item}/{answer.criterion}/{answer.rater}',
            fields={'item': answer.item, 'all_bad': answer.all_bad, 'comment': answer.comment,
                    'sources': [' + '.join(item.sources[i]) for i in kept]}))
    return found, empty


def write(folder, comparisons, *, title, origin, license, notes=(), consensus=False):
    """Writes the datasets of comparisons into a new folder, whole or not at all.

    Args:
        comparisons: list of Comparison, e.g. of `comparisons` or `read_comparisons`.
        title, origin, license, notes: for the card.
        consensus: also write one ranking of an item and criterion by all raters: by the mean of
            their ranks.

    Returns: {name: {split: rows}}.

    Raises:
        InputError: the folder is there already, or there is no comparison.
    """
    if folder.exists():
        raise InputError(f'{folder} exists already; export into a new folder')
    if not comparisons:
        raise InputError('nothing to export: there is no answer yet')
    building = folder.with_name(f'.{folder.name}.building')
    shutil.rmtree(building, ignore_errors=True)  # left over from a kill
    building.mkdir(parents=True)
    rows = {'rankings': [_ranking(c) for c in comparisons],
            'pairs': list(itertools.chain.from_iterable(map(_pairs, comparisons)))}
    if consensus:
        rows['consensus'] = [_ranking(c) for c in agree(comparisons)]
    try:
        counts = {name: _write(building, name, found, license) for name, found in rows.items()}
        tied = sum(a == b for c in comparisons for a, b in itertools.combinations(c.ranks, 2))
        text = card(title, origin, license, counts, FIELDS, VERSION, tied, tuple(notes))
        (building / 'README.md').write_text(text, encoding='utf-8')
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return counts


def agree(comparisons):
    """One Comparison per item and criterion: the responses by the mean of their ranks."""
    groups = collections.defaultdict(list)
    for c in comparisons:
        groups[_item(c), c.criterion, c.responses].append(c)
    for (item, criterion, responses), found in groups.items():
        totals = [sum(ranks) for ranks in zip(*(c.ranks for c in found), strict=True)]
        bad = sum(c.fields['all_bad'] for c in found if 'all_bad' in c.fields)
        yield Comparison(
            found[0].prompt, responses, _dense(totals), criterion=criterion,
            id=f'{item}/{criterion}', fields=found[0].fields | {
                'item': item, 'all_bad': 2 * bad > len(found), 'raters': len(found),
                'comment': '\n'.join(c.fields['comment'] for c in found
                                     if c.fields.get('comment'))})


def split_of(prompt):
    """The split of a prompt: the same one for the same messages, whatever the data set."""
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    return next(name for name, end in zip(SPLITS, itertools.accumulate(SHARES), strict=True)
                if share < end or name == SPLITS[-1])


def _dense(values):
    order = sorted(set(values))
    return tuple(1 + order.index(value) for value in values)


def _item(comparison):
    return str(comparison.fields['item']) if 'item' in comparison.fields else comparison.id


def _about(c):
    known = {'all_bad': False, 'comment': '', 'raters': 1} | c.fields
    return {'item': _item(c), 'rater': c.rater, 'criterion': c.criterion,
            'raters': int(known['raters']), 'all_bad': bool(known['all_bad']),
            'comment': str(known['comment'] or '')}


def _sources(c):
    sources = c.fields['sources'] if 'sources' in c.fields else None
    fits = isinstance(sources, (list, tuple)) and len(sources) == len(c.responses)
    return list(map(str, sources)) if fits else [''] * len(c.responses)


def _row(c):
    messages = [{'role': m['role'], 'content': m['content']} for m in c.prompt]
    return {'split': split_of(messages), 'messages': messages, **_about(c)}


def _ranking(c):
    return {'id': c.id, **_row(c), 'responses': list(c.responses), 'ranks': list(c.ranks),
            'sources': _sources(c)}


def _pairs(c):
    sources, row = _sources(c), _row(c)
    for i, j in itertools.permutations(range(len(c.ranks)), 2):
        if c.ranks[i] < c.ranks[j]:
            yield {'id': c.id if len(c.ranks) == 2 else f'{c.id}/{i}-{j}', **row,
                   'chosen': c.responses[i], 'rejected': c.responses[j], 'margin': c.margin,
                   'source_chosen': sources[i], 'source_rejected': sources[j]}


def _write(folder, name, rows, license):
    if not rows:
        return {}
    with DatasetWriter(folder, name, FIELDS[name], VERSION) as writer:
        for row in rows:
            writer.add(row)
        writer.finish(f'{name} of responses by raters', license)
    return writer.counts
