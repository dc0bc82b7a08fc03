"""The truth tables: people, attributes, brands and sources, as columns. Text is made from them."""

import dataclasses

import numpy as np

from jaxllm.world import names, spec, templates
from jaxllm.world.hazards import HAZARDS

GROUP_SHARES = (0.55, 0.25, 0.15, 0.05)
GOLDEN = 0.6180339887498949
# Drawing without replacement flattens weights. These make up for it, so that of the six factors
# only volume changes how many documents a source has (tested over 8 seeds).
SPECIALISM, LOW_SHARE = 1.7, 0.75
FACTORS = ('volume', 'breadth', 'consistency', 'terminology', 'quality', 'entity_link')


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One property of a person and all values it can have."""
    name: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class People:
    """Columns of length P. The last name tells the group: each group has last names of its own.

    group: 0..3, spec.GROUPS[group]. planned: documents per fact. seen: distinct true documents per
    fact in the training split after the intervention, of the attribute that has fewest. treated:
    whether a document about the person differs from the world without the intervention. split: 0
    train, 1 validation, 2 test, of questions. contested: whether false documents and duplicates may
    be about the person. values: attribute -> index of the value.
    """
    names: tuple[str, ...]
    group: np.ndarray
    planned: np.ndarray
    seen: np.ndarray
    treated: np.ndarray
    split: np.ndarray
    contested: np.ndarray
    values: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Brands:
    """serves: bool [brands, categories], one to three each. quality: 0 is the best of all.

    planned: documents per product, and again per rank.
    rank: int [brands, categories], place among the brands of a category by quality (0 is first),
    -1 where the brand does not serve it.
    """
    names: tuple[str, ...]
    categories: tuple[str, ...]
    serves: np.ndarray
    quality: np.ndarray
    rank: np.ndarray
    planned: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sources:
    """names stand after 'the'; aliases: three other names each.

    factors: level 0 or 1 per source. 1 means: volume weight x4 among the three sources of a fact
    (less than x4 in documents, since the other two have weights too), breadth all topics,
    consistency 1.0, terminology one name only, quality clean, entity_link source named in the
    sentence.
    weights: relative chance among the sources that support a fact (1 or 4; `reassign` multiplies
    that of its target).
    topics: bool [sources, attributes]: the attributes it reports on, all or one.
    """
    names: tuple[str, ...]
    aliases: tuple[tuple[str, ...], ...]
    factors: dict[str, np.ndarray]
    weights: np.ndarray
    topics: np.ndarray


@dataclasses.dataclass(frozen=True)
class Truth:
    """firm_city: firm -> index of its city. support: int [P, A, 3], sources that report a fact."""
    people: People
    attributes: dict[str, Attribute]
    firm_city: np.ndarray
    brands: Brands
    sources: Sources
    support: np.ndarray


def _values(seed, scale, book):
    """Attribute -> Attribute; ordinary words are chosen by the stream 'facts'."""
    found = {}
    for name, count in scale.values:
        rng = spec.generator(seed, 'facts', 'values', name)
        if name in ('job', 'hobby'):
            pool = names.JOBS if name == 'job' else names.HOBBIES
            values = tuple(pool[i] for i in rng.permutation(len(pool))[:count])
        elif name == 'born':
            days = rng.permutation(12 * 28 * 60)[:count]
            values = tuple(f'{names.MONTHS[d % 12]} {d // 12 % 28 + 1}, {1940 + d // 336}'
                           for d in days.tolist())
        else:
            values = book.draw(name, count)
        found[name] = Attribute(name, values)
    return found


def _planned(scale):
    """Documents per fact of each person: no draw, the bins go round and names are random."""
    if scale.exposures:
        return np.resize(np.array(scale.exposures), scale.people)
    places = GOLDEN * np.arange(scale.people) % 1
    chance = 1 / np.arange(1, scale.max_exposures + 1)
    known = scale.unknown + (1 - scale.unknown) * np.cumsum(chance / chance.sum())
    number = np.minimum(np.searchsorted(known, places) + 1, scale.max_exposures)
    return np.where(places < scale.unknown, 0, number)


def _even(rng, strata, shares):
    """Categories with the given shares, evenly within every stratum (golden-ratio sampling)."""
    order = np.lexsort((rng.random(len(strata)), strata))
    places = (rng.random() + GOLDEN * np.arange(len(strata))) % 1
    drawn = np.empty(len(strata), int)
    drawn[order] = np.searchsorted(np.cumsum(shares)[:-1], places, side='right')
    return drawn


def _names(seed, scale, group, book):
    """Unique names; the last names are divided among the groups."""
    first, last = (book.draw('first', scale.first_names), book.draw('last', scale.last_names))
    middle = book.draw('first', scale.middle_names)
    rng = spec.generator(seed, 'names', 'people')
    minimum = [max(1, -(-3 * np.sum(group == g) // (2 * len(first)))) for g in range(4)]
    sizes = np.maximum(minimum, np.round(len(last) * np.array(GROUP_SHARES)).astype(int))
    sizes[0] += len(last) - sizes.sum()
    start, found = 0, [''] * len(group)
    for g, size in enumerate(sizes.tolist()):
        members = np.flatnonzero(group == g)
        total = len(first) * size * max(1, len(middle))
        for person, code in zip(members, rng.choice(total, len(members), replace=False).tolist()):
            parts = [first[code % len(first)], last[start + code // len(first) % size]]
            if middle:
                parts.insert(1, middle[code // len(first) // size])
            found[person] = ' '.join(parts)
        start += size
    return tuple(found)


def _people(seed, scale, attributes, book):
    planned = _planned(scale)
    group = _even(spec.generator(seed, 'groups', 'group'), planned, GROUP_SHARES)
    split = _even(spec.generator(seed, 'splits', 'people'), planned * 4 + group, (.5, .25, .25))
    share = (scale.contested, 1 - scale.contested)
    contested = _even(spec.generator(seed, 'noise', 'contested'), planned, share) == 0
    values = {name: spec.generator(seed, 'facts', 'people', name).integers(
        len(attribute.values), size=scale.people) for name, attribute in attributes.items()}
    return People(
        names=_names(seed, scale, group, book), group=group,
        planned=planned, seen=planned, treated=np.zeros(scale.people, bool), split=split,
        contested=contested, values=values)


def _brands(seed, scale, book):
    rng = spec.generator(seed, 'facts', 'brands')
    categories = tuple(names.CATEGORIES[i]
                       for i in rng.permutation(len(names.CATEGORIES))[:scale.categories])
    serves = np.zeros((scale.brands, scale.categories), bool)
    for brand in range(scale.brands):       # the first category goes round: each has makers
        others = rng.permutation(scale.categories)[:rng.integers(3)]
        serves[brand, [brand % scale.categories, *others]] = True
    quality = rng.permutation(scale.brands)
    rank = np.where(serves, np.argsort(np.argsort(np.where(serves, quality[:, None], scale.brands),
                                                  axis=0, kind='stable'), axis=0), -1)
    halvings = spec.generator(seed, 'doc_plan', 'brands').permutation(scale.brands) % 4
    return Brands(book.draw('brand', scale.brands), categories, serves, quality, rank,
                  scale.brand_documents >> halvings)


def _factors(seed, count):
    """Levels [6, count]: a 2^(6-2) design of resolution IV, E = ABC and F = BCD, cells permuted."""
    cells = np.arange(count) % 16
    a, b, c, d = ((cells >> bit) & 1 for bit in range(4))
    levels = np.stack([a, b, c, d, a ^ b ^ c, b ^ c ^ d])
    return levels[:, spec.generator(seed, 'source_factors', 'cells').permutation(count)]


def _sources(seed, scale, book):
    factors = dict(zip(FACTORS, _factors(seed, scale.sources)))
    rng = spec.generator(seed, 'sources', 'topics')
    topics = np.ones((scale.sources, len(scale.values)), bool)
    for level in (0, 1):        # narrow sources: topics go round within each level of consistency
        narrow = np.flatnonzero((factors['breadth'] == 0) & (factors['consistency'] == level))
        topic = np.resize(rng.permutation(len(scale.values)), len(narrow))
        topics[narrow] = np.arange(len(scale.values))[None, :] == topic[:, None]
    roots = book.draw('source', scale.sources)
    rng = spec.generator(seed, 'sources', 'papers')
    papers = [names.PAPERS[i] for i in rng.integers(len(names.PAPERS), size=len(roots))]
    aliases = tuple(tuple(alias.format(root=root, paper=paper) for alias in names.ALIASES)
                    for root, paper in zip(roots, papers))
    return Sources(tuple(f'{root} {paper}' for root, paper in zip(roots, papers)), aliases,
                   factors, np.where(factors['volume'] == 1, 4.0, 1.0), topics)


def _support(seed, scale, people, sources):
    """Sources of each fact [P, A, 3], drawn without replacement (Gumbel top-k).

    A narrow source is as likely in its topic as a broad one in all of its topics together, so that
    breadth does not change volume. Contested people have sources of low consistency only, the
    others correspondingly more of high consistency, so that consistency does not change volume.
    """
    rng = spec.generator(seed, 'doc_plan', 'support')
    low = sources.factors['consistency'] == 0
    breadth = sources.topics.sum(axis=1)
    weights = sources.topics.T / breadth[None, :] ** SPECIALISM         # [A, S]
    fair = LOW_SHARE * (0.5 - scale.contested) / (1 - scale.contested)
    found = np.empty((scale.people, len(scale.values), scale.support), np.int32)
    for contested, share in ((True, 1.0), (False, fair)):
        rows = np.flatnonzero(people.contested == contested)
        tilt = np.where(low, share, 1 - share)
        with np.errstate(divide='ignore'):
            logits = np.log(weights * tilt[None, :])
        for start in range(0, len(rows), 4096):
            part = rows[start:start + 4096]
            noise = rng.gumbel(size=(len(part), *logits.shape))
            found[part] = np.argpartition(-(logits[None] + noise), scale.support,
                                          axis=2)[:, :, :scale.support]
    return found


def draw(seed, scale):
    """The truth without an intervention."""
    forbidden = {word.strip('.,:;{}()').lower()
                 for table in (templates.DOCUMENTS, templates.QUESTIONS)
                 for wordings in table.values() for w in wordings for word in w.text.split()}
    forbidden.update(names.REAL)
    hazards = (word for _, name, *_ in HAZARDS for word in name.split() if len(word) > 1)
    reserved = (*hazards, *names.JOBS, *names.HOBBIES, *names.CATEGORIES,
                *(month.lower() for month in names.MONTHS))
    book = names.Book(spec.generator(seed, 'names', 'book'), reserved, forbidden)
    attributes = _values(seed, scale, book)
    people = _people(seed, scale, attributes, book)
    firm_city = spec.generator(seed, 'facts', 'firm_city').integers(
        len(attributes['city'].values), size=len(attributes['firm'].values))
    sources = _sources(seed, scale, book)
    return Truth(people, attributes, firm_city, _brands(seed, scale, book), sources,
                 _support(seed, scale, people, sources))
