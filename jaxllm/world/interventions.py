"""Interventions: changes of the truth or of the plan that leave every other document as it was."""

import dataclasses
import re

import numpy as np

from jaxllm.errors import InputError
from jaxllm.world import plan, spec


def source_number(sources, target):
    """The number of a source given as a name, an alias or 's<number>'."""
    for i, source in enumerate(zip(sources.names, sources.aliases)):
        if target == source[0] or target in source[1]:
            return i
    if re.fullmatch(r's\d+', target) and int(target[1:]) < len(sources.names):
        return int(target[1:])
    raise InputError(f'intervention target {target!r} is no source of this world; use s0 to '
                     f's{len(sources.names) - 1} or a name: {", ".join(sources.names[:16])}')


def skewed(tables, seed, change):
    """The truth with P(first job | group) = share, met exactly up to rounding; and who changed."""
    people = tables.people
    rng = spec.generator(seed, 'facts', 'skew')
    members = rng.permutation(np.flatnonzero(people.group == spec.GROUPS.index(change.target)))
    jobs = people.values['job'].copy()
    other = rng.integers(1, len(tables.attributes['job'].values), size=len(jobs))
    cut = round(change.share * len(members))
    jobs[members[:cut]] = 0
    rest = members[cut:]
    jobs[rest] = np.where(jobs[rest] == 0, other[rest], jobs[rest])
    people = dataclasses.replace(people, values={**people.values, 'job': jobs},
                                 treated=jobs != people.values['job'])
    return dataclasses.replace(tables, people=people)


def chosen(seed, people, change):
    """Bool [P]: `share` of the people of the bin, or of every bin but 0 if `exposures` is 0.

    A larger share contains every smaller one.
    """
    rank = spec.generator(seed, 'doc_plan', 'intervention').permutation(len(people.planned))
    found = np.zeros(len(rank), bool)
    bins = np.unique(people.planned)
    for one in bins[bins > 0] if change.exposures == 0 else [change.exposures]:
        members = np.flatnonzero(people.planned == one)
        members = members[np.argsort(rank[members])]
        found[members[:round(change.share * len(members))]] = True
    return found


def one_wording(drawer, rows, treated):
    """Rows of the treated people in one wording of prose per fact, which no validation document of
    the fact has. The frames of one source's documents of a fact go round: only beyond NUM_FRAMES
    of them does a text come again."""
    count = len(rows['subject'])
    words = drawer.words('templates', 'walk', rows['subject'], rows['attribute'],
                         np.zeros(count, int))
    wording = (words % np.uint64(8)).astype(int)
    retold, _ = drawer.slots(rows, np.full(count, plan.RETOLD_STEP))
    wording = np.where(wording == retold, (wording + 1) % 8, wording)
    told_by = np.unique(np.stack([rows['subject'], rows['attribute'], rows['source']]),
                        axis=1, return_inverse=True)[1].reshape(-1)
    frame = (_places(told_by) + (words >> np.uint64(8) & np.uint64(31)).astype(int)) % 32
    mask = treated[rows['subject']]
    new = drawer.formatted(plan.changed(rows, wording=wording, frame=frame),
                           np.full(count, plan.PROSE))
    return plan.changed(rows, **{name: np.where(mask, new[name], rows[name])
                                 for name in ('wording', 'frame', 'format')})


def contradicted(drawer, facts, target, share):
    """`share` of the true documents of a source, with a wrong value: another one than its false
    documents state, so that none of them has the same text."""
    rows = np.flatnonzero(facts['source'] == target)
    key = drawer.words('doc_plan', 'pick', facts['subject'][rows], facts['attribute'][rows],
                       facts['serial'][rows])
    rows = rows[np.argsort(key)][:round(share * len(rows))]
    value, true = facts['value'].copy(), facts['true'].copy()
    value[rows], true[rows] = drawer.wrong(plan.take(facts, rows), other=1), False
    return plan.changed(facts, value=value, true=true)


def _places(keys):
    """How many equal keys stand before each entry: [4, 4, 7, 4] -> [0, 1, 0, 2]."""
    order = np.argsort(keys, kind='stable')
    _, start, count = np.unique(keys[order], return_index=True, return_counts=True)
    places = np.empty(len(keys), int)
    places[order] = np.arange(len(keys)) - np.repeat(start, count)
    return places


def added(drawer, facts, target, change):
    """Documents that a source publishes in addition, `factor - 1` for each it has."""
    people, scale = drawer.truth.people, drawer.scale
    own = np.flatnonzero(facts['source'] == target)
    extra = change.factor - 1
    key = drawer.uniform('doc_plan', 'pick', facts['subject'][own], facts['attribute'][own],
                         facts['serial'][own])
    times = int(extra) + (key < extra % 1)
    owner = np.repeat(own, times)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(times) - times, times)
    if change.how == 'duplicate':
        return plan.changed(plan.take(facts, owner), variant=plan.COPY, copy=1000 + number)
    if change.how == 'paraphrase':
        rows = plan.changed(plan.take(facts, owner), variant=plan.MORE, copy=number)
        fact = rows['subject'].astype(int) * len(scale.values) + rows['attribute']
        return _worded(drawer, rows, _places(fact), change)
    known = np.any(drawer.truth.support == target, axis=2)
    person, attribute = np.nonzero(~known & drawer.truth.sources.topics[target][None, :]
                                   & ((people.planned > 0) & ~people.contested)[:, None])
    order = np.argsort(drawer.words('doc_plan', 'pick', person, attribute, np.zeros_like(person)))
    if not len(order):
        raise InputError(
            f'intervention source_volume new_facts: source {change.target!r} has no fact left that '
            'it could report (known, on its topics, of people who are not contested, by other '
            "sources only); use another target, or how='paraphrase'")
    order = np.resize(order, len(owner))
    serial = np.arange(len(owner)) // max(1, len(person))
    rows = plan.block(len(owner), kind=plan.FACT, variant=plan.NEW, subject=person[order],
                      attribute=attribute[order], serial=serial, source=target,
                      value=drawer.values(person[order], attribute[order]))
    return _worded(drawer, rows, serial, change)


def _worded(drawer, rows, place, change):
    """Added true documents in texts that the planned and the validation documents leave free."""
    step = plan.planned_steps(drawer.truth.people, drawer.scale)[rows['subject']] + place
    if len(step) and step.max() >= plan.RETOLD_STEP:
        raise InputError(
            f'intervention source_volume {change.how}: factor={change.factor} needs '
            f'{step.max() + 1} texts of one fact; expected at most {plan.RETOLD_STEP}, so that '
            'none comes twice and none is what models are validated on; use a smaller factor')
    return drawer.worded(rows, step)


def removed(rows, treated):
    """Rows without the training documents about the treated people."""
    about = (rows['kind'] == plan.FACT) & plan.trained_on(rows)
    return plan.take(rows, ~(about & treated[np.where(about, rows['subject'], 0)]))
