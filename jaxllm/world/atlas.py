"""The world: `atlas` draws the truth and plans all documents; text is rendered on demand."""

import dataclasses
import re

import numpy as np

from jaxllm.errors import InputError
from jaxllm.world import dirt, interventions, plan, spec, truth
from jaxllm.world.spec import NONE, WorldSpec


@dataclasses.dataclass(frozen=True)
class World:
    """A drawn world. Training documents only are counted.

    counts: int [P, A, S], distinct true documents per fact and source, the truth of citations (of
        a biography only the leading fact has a source). true_counts: int [P, A], distinct true
        documents that state a fact. false_counts: int [P, A], distinct false ones. copies,
        near_copies: int [P, A], exact and edited copies beyond the first.
    """
    spec: WorldSpec
    scale: spec.Scale
    truth: truth.Truth
    plan: plan.Plan
    counts: np.ndarray
    true_counts: np.ndarray
    false_counts: np.ndarray
    copies: np.ndarray
    near_copies: np.ndarray

    @property
    def fingerprint(self):
        return self.spec.fingerprint


def estimated_bytes(scale):
    """Bytes a world needs while it is drawn: the plan three times, draws, and the counts."""
    if scale.exposures:
        mean = sum(scale.exposures) / len(scale.exposures)
    else:
        mean = scale.max_exposures / sum(1 / f for f in range(1, scale.max_exposures + 1))
    facts = scale.people * mean * (1 if scale.biographies else len(scale.values))
    rows = 1.4 * facts
    # Documents per source are counted in int64 and kept in int16.
    return int(rows * (3 * plan.ROW_BYTES + 64) + scale.people * (
        1000 + len(scale.values) * (10 * scale.sources + 64)))


def available_memory():
    """Bytes the system could give without swapping, or None where it does not say."""
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            found = re.search(r'MemAvailable:\s+(\d+) kB', file.read())
    except FileNotFoundError:
        return None
    return int(found.group(1)) * 1024 if found else None


def check_memory(scale, available=None):
    """Raises InputError for a Scale that needs more than `available` bytes.

    By default that is what the system says; where it does not say, nothing is refused.
    """
    available = available_memory() if available is None else available
    needed = estimated_bytes(scale)
    if available is not None and needed > available:
        raise InputError(
            f'world scale {scale.name!r} needs about {needed / 2**30:.1f} GiB of memory, '
            f'{available / 2**30:.1f} GiB are available; use a smaller scale, e.g. '
            '--config.world.scale=nano, or a machine with more memory')


def _count(rows, shape, mask):
    """int32 [P, A]: rows of the mask per fact."""
    people, attributes = shape
    keys = rows['subject'][mask].astype(np.int64) * attributes + rows['attribute'][mask]
    return np.bincount(keys, minlength=people * attributes).reshape(shape).astype(np.int32)


def _counts(rows, scale):
    """The counts of World."""
    shape = (scale.people, len(scale.values))
    fact = (rows['kind'] == plan.FACT) & plan.trained_on(rows)
    copy, near = rows['variant'] == plan.COPY, rows['variant'] == plan.NEAR
    told = fact & ~copy & ~near & rows['true']
    keys = ((rows['subject'][told].astype(np.int64) * shape[1] + rows['attribute'][told])
            * scale.sources + rows['source'][told])
    counts = np.bincount(keys, minlength=shape[0] * shape[1] * scale.sources)
    counts = counts.reshape(*shape, scale.sources).astype(np.int16)
    true_counts = _count(rows, shape, told)
    if scale.biographies:       # each states every attribute
        true_counts = np.repeat(true_counts.sum(axis=1, keepdims=True), shape[1], axis=1)
    return {'counts': counts, 'true_counts': true_counts,
            'false_counts': _count(rows, shape, fact & ~copy & ~near & ~rows['true']),
            'copies': _count(rows, shape, fact & copy),
            'near_copies': _count(rows, shape, fact & near)}


def _differ(blocks, others, people):
    """bool [P]: about whom a block has more or fewer rows than its counterpart; of two worlds that
    differ in the amount of dirt, the rows of one contain those of the other."""
    count = lambda block: np.bincount(block['subject'], minlength=people)
    return np.any([count(one) != count(other) for one, other in zip(blocks, others, strict=True)],
                  axis=0)


def _rows(seed, scale, tables, change):
    """All documents and who is treated, before shuffling."""
    people, weights, target = tables.people, tables.sources.weights, None
    treated = people.treated.copy()
    if change.kind in ('source_volume', 'contradict'):
        target = interventions.source_number(tables.sources, change.target)
    if change.kind == 'source_volume' and change.how == 'reassign':
        weights = np.where(np.arange(len(weights)) == target, weights * change.factor, weights)
    drawer = plan.Drawer(seed, scale, tables, weights)
    facts = plan.facts(drawer)
    if change.kind == 'source_volume' and change.how == 'reassign':
        before = plan.Drawer(seed, scale, tables, tables.sources.weights).sources(
            facts['subject'], facts['attribute'], facts['serial'])
        treated[facts['subject'][before != facts['source']]] = True
    if change.kind == 'contradict':
        before = facts
        facts = interventions.contradicted(drawer, facts, target, change.share)
        treated[facts['subject'][before['true'] != facts['true']]] = True
    false = dirt.false_documents(drawer, facts, change)
    usual = dirt.false_documents(drawer, facts, NONE) if change.kind == 'dirt' else false
    if change.kind in ('delete', 'one_wording'):
        treated = interventions.chosen(seed, people, change)
    if change.kind == 'one_wording':
        facts, false = (interventions.one_wording(drawer, rows, treated)
                        for rows in (facts, false))
    # What models are validated on is the same with and without an intervention on sources.
    background = plan.background(plan.Drawer(seed, scale, tables, tables.sources.weights))
    clean = len(facts['kind']) + len(usual['kind']) + np.sum(plan.trained_on(background))
    total = clean / (1 - scale.duplicates - scale.near_duplicates - scale.spam - scale.unsafe
                     - scale.benign)
    made = [dirt.copies(drawer, facts, total, change),
            dirt.near_copies(drawer, facts, total, change)]
    if change.kind == 'dirt':
        made_usually = [dirt.copies(drawer, facts, total, NONE),
                        dirt.near_copies(drawer, facts, total, NONE)]
        treated = _differ([false, *made], [usual, *made_usually], len(people.planned))
    blocks = [facts, false, background, *made, dirt.junk(drawer, total, change)]
    if change.kind == 'source_volume' and change.how != 'reassign':
        more = interventions.added(drawer, facts, target, change)
        treated[more['subject']] = True
        blocks.append(more)
    rows = plan.join(blocks)
    if change.kind == 'delete':
        rows = interventions.removed(rows, treated)
    return drawer.order(rows), treated, weights


def atlas(seed=0, scale='nano', intervention=NONE, *, available_bytes=None):
    """The world of a seed.

    Args:
        seed: integer >= 0; two worlds of one seed share every draw that no intervention touches.
        scale: 'nano', 'small' or 'tpu'.
        intervention: see `Intervention`; documents it does not treat stay the same byte for byte
            and in the same order.
        available_bytes: memory to stay within; default: what the system says is available.

    Raises:
        InputError: an unknown scale, kind, source or group, or a scale that does not fit memory.
    """
    identity = WorldSpec(seed, scale, intervention)
    spec.check(identity)
    sizes = spec.SCALES[scale]
    check_memory(sizes, available_bytes)
    tables = truth.draw(seed, sizes)
    if intervention.kind == 'skew':
        tables = interventions.skewed(tables, seed, intervention)
    rows, treated, weights = _rows(seed, sizes, tables, intervention)
    counts = _counts(rows, sizes)
    people = dataclasses.replace(tables.people, treated=treated,
                                 seen=counts['true_counts'].min(axis=1))
    tables = dataclasses.replace(
        tables, people=people, sources=dataclasses.replace(tables.sources, weights=weights))
    return World(identity, sizes, tables, plan.Plan(rows), **counts)
