"""Dirt, every piece labelled: false documents, copies, near copies, spam and unsafe texts."""

import numpy as np

from jaxllm.world import plan
from jaxllm.world.hazards import HAZARDS


def _factor(change, what):
    """How much of a kind of dirt an intervention leaves or adds; 1 is the world as it is."""
    return change.factor if change.kind == 'dirt' and change.target in (what, 'all') else 1.0


def false_documents(drawer, facts, change):
    """False documents of contested people, each beside a true one by the same source.

    A source of low consistency c states the truth in a share c of its documents about contested
    people: each of its true documents there has a false companion with chance (1 - c) / c. They
    come on top of the planned exposures.
    """
    scale, truth = drawer.scale, drawer.truth
    low = truth.sources.factors['consistency'][facts['source']] == 0
    chance = (1 - scale.consistency) / scale.consistency * _factor(change, 'false')
    draw = drawer.uniform('noise', 'false', facts['subject'], facts['attribute'], facts['serial'])
    rows = plan.take(facts, truth.people.contested[facts['subject']] & low & (draw < chance))
    rows = plan.changed(rows, variant=plan.FALSE, true=False)
    step = plan.step_of(rows, scale) + truth.people.planned[rows['subject']]
    return drawer.worded(plan.changed(rows, value=drawer.wrong(rows)), step)


def _made_from(rows, chosen, times, variant):
    """`times` documents made from each chosen row; `copied` keeps what the original was."""
    owner = np.repeat(chosen, times)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(times) - times, times)
    made = plan.take(rows, owner)
    return plan.changed(made, copied=made['variant'], variant=variant, copy=number)


def _until(times, target):
    """The first entries of `times` whose sum reaches the target, the last one cut to fit."""
    total = np.cumsum(times)
    count = int(np.searchsorted(total, target)) + 1 if target > 0 else 0
    times = times[:count].copy()
    if count and count <= len(total):
        times[-1] -= max(0, int(total[min(count, len(total)) - 1]) - target)
    return times


def copies(drawer, facts, total, change):
    """Exact copies, 10 to 50 of one document, spread evenly over contested facts."""
    scale = drawer.scale
    first = np.flatnonzero(drawer.truth.people.contested[facts['subject']]
                           & (facts['serial'] < (len(scale.values) if scale.biographies else 1)))
    words = drawer.words('noise', 'copies', facts['subject'][first], facts['attribute'][first])
    first, words = first[np.argsort(words)], np.sort(words)
    low, high = scale.copies
    times = low + ((words >> np.uint64(7)) % np.uint64(high - low + 1)).astype(int)
    times = _until(times, round(scale.duplicates * total * _factor(change, 'duplicates')))
    return _made_from(facts, first[:len(times)], times, plan.COPY)


def near_copies(drawer, facts, total, change):
    """One to three copies with one or two edits, of documents about contested people."""
    rows = np.flatnonzero(drawer.truth.people.contested[facts['subject']])
    words = drawer.words('noise', 'near', facts['subject'][rows], facts['attribute'][rows],
                         facts['serial'][rows])
    rows, words = rows[np.argsort(words)], np.sort(words)
    times = 1 + ((words >> np.uint64(7)) % np.uint64(3)).astype(int)
    target = drawer.scale.near_duplicates * total * _factor(change, 'near_duplicates')
    times = _until(times, round(target))
    return plan.changed(_made_from(facts, rows[:len(times)], times, plan.NEAR), edited=True)


def junk(drawer, total, change):
    """Spam, unsafe documents about invented hazards, and their harmless look-alikes."""
    scale = drawer.scale
    found = []
    for kind, harmful, share, what in (
            (plan.SPAM, False, scale.spam, 'spam'), (plan.UNSAFE, True, scale.unsafe, 'unsafe'),
            (plan.UNSAFE, False, scale.benign, '')):
        number = np.arange(round(share * total * _factor(change, what)))
        subjects = len(HAZARDS) if kind == plan.UNSAFE else 1
        rows = plan.block(len(number), kind=kind, subject=number % subjects,
                          serial=number // subjects, harmful=harmful, detail=int(harmful))
        identity = [rows[name] for name in plan.IDENTITY]
        found.append(plan.changed(rows, noise=drawer.words('noise', 'text', *identity)
                                  >> np.uint64(32)))
    return plan.join(found)
