"""What a world is made from: a seed, a scale, an intervention, and separate random streams."""

import dataclasses
import hashlib
import json
import math

import numpy as np

from jaxllm.errors import InputError

VERSION = 2     # raise it whenever the same spec gives another world
STREAMS = ('names', 'facts', 'groups', 'sources', 'source_factors', 'doc_plan', 'templates',
           'noise', 'qa', 'instructions', 'prefs', 'splits')
KINDS = ('none', 'delete', 'source_volume', 'one_wording', 'skew', 'contradict', 'dirt')
USES = {'none': (), 'delete': ('exposures', 'share'), 'source_volume': ('target', 'factor', 'how'),
        'one_wording': ('exposures', 'share'), 'skew': ('target', 'share'),
        'contradict': ('target', 'share'), 'dirt': ('target', 'factor')}   # fields of Intervention
VOLUME_HOW = ('reassign', 'duplicate', 'paraphrase', 'new_facts')
SPLITS = ('train', 'validation', 'test')
GROUPS = 'ABCD'
DIRT = ('false', 'duplicates', 'near_duplicates', 'spam', 'unsafe')


def _words(part):
    """Numbers of one part of a sub-stream's name; a string and an int never coincide."""
    if isinstance(part, str):
        digest = hashlib.sha256(part.encode()).digest()
        return (1, *np.frombuffer(digest[:16], '<u4').tolist())
    return (0, int(part))


def generator(seed, stream, *more):
    """A random generator of one table.

    Args:
        seed: the world's seed, >= 0.
        stream: one of STREAMS; `SeedSequence(seed).spawn(12)` in this order.
        more: ints or strings that derive a sub-stream; two tables never share one.
    """
    if stream not in STREAMS:
        raise InputError(f'random stream {stream!r} is unknown; use one of {", ".join(STREAMS)}')
    if seed < 0:
        raise InputError(f'world seed is {seed}; expected an integer >= 0')
    key = [STREAMS.index(stream)]
    for part in more:
        key.extend(_words(part))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(key)))


def _mix(words):
    """The finaliser of splitmix64 (Steele et al., 2014): a bijection of 64-bit words."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hashed(salt, *columns):
    """64-bit words that depend on a salt and on integer columns: draws keyed by identity.

    A document keeps its draws whatever other documents exist, which is what makes the arms of an
    ablation differ in the treated documents only.

    Args:
        salt: an integer below 2**64, drawn from a stream (see `salt`).
        columns: integer arrays of one shape.

    Returns: uint64 array of that shape.
    """
    words = np.full(np.shape(columns[0]), salt, np.uint64)
    for column in columns:
        column = np.asarray(column).astype(np.int64).astype(np.uint64)
        words = _mix((words ^ column) + np.full_like(words, 0x9E3779B97F4A7C15))
    return words


def salt(seed, stream, *more):
    """The salt of one family of keyed draws."""
    return int(generator(seed, stream, *more).integers(2 ** 64, dtype=np.uint64))


def uniform(words):
    """Words to float64 in [0, 1)."""
    return (words >> np.uint64(11)) * 2.0 ** -53


def every(count, most):
    """Every n-th of `count` numbers, n as small as gives `most` of them at most.

    Halving `most` chooses among the same ones: documents in held-out wordings are about people who
    are asked about.
    """
    return range(0, count, -(-count // most))


@dataclasses.dataclass(frozen=True)
class Intervention:
    """One change of the world; everything else keeps its draws.

    Each kind has a dose, which must change something, and fields it does not use stay at their
    defaults (see `check`).

    kind: 'none';
        'delete': all training documents about `share` of the people whose planned exposures are
            `exposures` are removed; 0 means `share` of every bin (of bin 0 nothing can be removed);
        'source_volume': `how`: 'reassign' multiplies the weight of source `target` among the three
            sources of a fact by `factor`, so that other documents of the facts it supports become
            its own (fewer than `factor` times its own, since the other two have weights too); the
            others give it `factor` times its documents: 'duplicate' (exact copies of its
            documents), 'paraphrase' (its facts again in other words), 'new_facts' (documents about
            facts it did not report before);
        'one_wording': documents of `share` of the people of the bin `exposures` (0: of every bin)
            use one wording per fact, in all its frames; a text comes again, without a label, only
            where one source has more than 32 documents of a fact;
        'skew': P(first job | group `target`) = `share`;
        'contradict': `share` of the true fact documents of source `target` state a wrong value;
        'dirt': the dirt `target` ('false', 'duplicates', 'near_duplicates', 'spam', 'unsafe' or
            'all') times `factor`; 0 is a clean corpus.
    exposures: planned documents per fact. share: in (0, 1]. factor: a multiple of what there is.
    target: a group 'A'..'D', a kind of dirt, or a source: its name, or its number as 's3'
        (names change with the seed, numbers do not; the cell of number i changes).
    """
    kind: str = 'none'
    target: str = ''
    exposures: int = 0
    share: float = 0.0
    factor: float = 1.0
    how: str = ''


NONE = Intervention()


@dataclasses.dataclass(frozen=True)
class Scale:
    """All counts of a world. Shares of dirt are of the final training documents.

    values: (attribute, number of values). exposures: the bins of documents per fact, equally many
    people each; empty means P(f) ~ 1/f up to `max_exposures`, with `unknown` of the people at 0.
    contested: share of the people that false documents and duplicates are about; only sources of
    low consistency write about them. biographies: a document states all attributes of a person, the
    leading one with its source. firm_documents: per firm; source_documents: per source, and half of
    it per alias; brand_documents: of the most visible quarter of the brands per product and again
    per rank, the others have 1/2, 1/4, 1/8. benign: harmless look-alikes of the unsafe documents.
    """
    name: str
    people: int
    first_names: int
    middle_names: int
    last_names: int
    exposures: tuple[int, ...]
    max_exposures: int
    unknown: float
    values: tuple[tuple[str, int], ...]
    sources: int
    brands: int
    categories: int
    firm_documents: int
    brand_documents: int
    source_documents: int
    held_out_people: int
    biographies: bool = False
    support: int = 3
    contested: float = 0.25
    consistency: float = 0.7
    duplicates: float = 0.05
    copies: tuple[int, int] = (10, 50)
    near_duplicates: float = 0.05
    spam: float = 0.10
    unsafe: float = 0.02
    benign: float = 0.01


_BINS = (0, 1, 2, 4, 8, 16, 32, 64)
SCALES = {
    'nano': Scale(
        name='nano', people=256, first_names=32, middle_names=0, last_names=32, exposures=_BINS,
        max_exposures=64, unknown=0.0,
        values=(('job', 24), ('city', 24), ('firm', 24), ('hobby', 24)), sources=16, brands=24,
        categories=12, firm_documents=16, brand_documents=16, source_documents=8,
        held_out_people=256),
    'small': Scale(
        name='small', people=10_000, first_names=400, middle_names=0, last_names=400,
        exposures=tuple(4 * f for f in _BINS), max_exposures=256, unknown=0.0,
        values=(('job', 100), ('city', 200), ('firm', 260), ('hobby', 100), ('born', 300)),
        sources=64, brands=200, categories=40, firm_documents=32, brand_documents=32,
        source_documents=16, held_out_people=2_000),
    'tpu': Scale(
        name='tpu', people=100_000, first_names=400, middle_names=400, last_names=1000,
        exposures=(), max_exposures=1000, unknown=0.05,
        values=(('job', 100), ('city', 200), ('firm', 263), ('hobby', 100), ('born', 300)),
        sources=256, brands=2_000, categories=60, firm_documents=40, brand_documents=32,
        source_documents=16, held_out_people=5_000, biographies=True),
}


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """The identity of a world."""
    seed: int = 0
    scale: str = 'nano'
    intervention: Intervention = NONE

    @property
    def fingerprint(self):
        """Sixteen hexadecimal digits of spec, counts of the scale, and the generator's version."""
        content = {'version': VERSION, 'spec': dataclasses.asdict(self),
                   'scale': dataclasses.asdict(SCALES[self.scale])}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check(spec):
    """Raise InputError where a spec has no meaning; sources are checked when they have names."""
    change = spec.intervention
    if spec.scale not in SCALES:
        raise InputError(f'world scale {spec.scale!r} is unknown; use one of {", ".join(SCALES)}')
    if change.kind not in KINDS:
        raise InputError(f'intervention kind {change.kind!r} is unknown; use one of '
                         f'{", ".join(KINDS)}')
    _check_dose(change)
    _check_bin(change, SCALES[spec.scale])
    if change.kind == 'source_volume' and change.how not in VOLUME_HOW:
        raise InputError(f'intervention source_volume: how={change.how!r}; use one of '
                         f'{", ".join(VOLUME_HOW)}')
    if change.kind == 'skew' and change.target not in tuple(GROUPS):
        raise InputError(f'intervention skew: target={change.target!r}; expected a group, one of '
                         f'{", ".join(GROUPS)}')
    if change.kind == 'dirt' and change.target not in (*DIRT, 'all'):
        raise InputError(f'intervention dirt: target={change.target!r}; use one of '
                         f'{", ".join(DIRT)} or all')


def _check_dose(change):
    """Refuses fields that a kind does not use, and doses that are missing or mean nothing."""
    where = f'intervention {change.kind}'
    for field in dataclasses.fields(Intervention)[1:]:
        value = getattr(change, field.name)
        if field.name not in USES[change.kind] and value != field.default:
            raise InputError(f'{where}: {field.name}={value!r} is not used; expected '
                             f'{field.default!r}; it uses {", ".join(USES[change.kind]) or "none"}')
    if 'share' in USES[change.kind] and not 0 < change.share <= 1:
        raise InputError(f'{where}: share={change.share}; expected a number above 0 (which would '
                         'change nothing) and at most 1; give one, e.g. share=0.5')
    if 'factor' in USES[change.kind]:
        dirt = change.kind == 'dirt'
        if (not math.isfinite(change.factor) or change.factor == 1
                or change.factor < (0 if dirt else 1)):
            raise InputError(f'{where}: factor={change.factor}; expected a number '
                             f'{">= 0 other than 1" if dirt else "above 1"} (1 changes nothing); '
                             f'give one, e.g. factor={0.0 if dirt else 4.0}')


def _check_bin(change, scale):
    if 'exposures' not in USES[change.kind] or change.exposures == 0:
        return
    where = f'intervention {change.kind}: exposures={change.exposures}'
    if scale.exposures and change.exposures not in scale.exposures:
        raise InputError(f'{where} is no bin of scale {scale.name!r}; use one of '
                         f'{", ".join(map(str, scale.exposures[1:]))}, or 0 for all of them')
    if not 0 < change.exposures <= scale.max_exposures:
        raise InputError(f'{where} is planned for nobody at scale {scale.name!r}; expected 1 to '
                         f'{scale.max_exposures}, or 0 for all of them')
