"""The plan: one row of integers per document, drawn in whole columns; text is rendered from it."""

import dataclasses

import numpy as np

from jaxllm.world import spec, templates

KINDS = ('fact', 'firm_city', 'brand', 'source', 'spam', 'unsafe')
FACT, FIRM_CITY, BRAND, SOURCE, SPAM, UNSAFE = range(len(KINDS))
FORMATS = ('prose', 'list', 'table', 'qa', 'header')
PROSE, LIST, TABLE, QA, HEADER = range(len(FORMATS))
# What a document is to its fact; part of its id. MORE: added by an intervention.
VARIANTS = ('', 'false', 'copy', 'near', 'held', 'more', 'new', 'retold')
ORIGINAL, FALSE, COPY, NEAR, HELD, MORE, NEW, RETOLD = range(len(VARIANTS))
QUALITIES = ('clean', 'typos', 'filler')
OTHER_ATTRIBUTES = ('firm_city', 'category', 'rank', 'topic', 'alias')

# Column -> (dtype, default). `attribute` indexes attribute_names(); `serial` counts the documents
# of a fact, `copy` those made from one document; `source` and `alias` number source and its name;
# `wording` indexes DOCUMENTS or, for format qa, QUESTIONS; `frame` is the text around the wording;
# `detail` is the category of a rank or the alias of a source; `noise` seeds typos and edits.
COLUMNS = {
    'kind': (np.int8, 0), 'variant': (np.int8, 0), 'subject': (np.int32, 0),
    'attribute': (np.int8, 0), 'serial': (np.int32, 0), 'copy': (np.int16, 0),
    'detail': (np.int16, 0), 'value': (np.int32, 0), 'source': (np.int16, -1),
    'alias': (np.int8, 0), 'format': (np.int8, 0), 'wording': (np.int8, 0), 'frame': (np.int8, 0),
    'quality': (np.int8, 0), 'edited': (np.bool_, False), 'copied': (np.int8, 0),
    'true': (np.bool_, True), 'harmful': (np.bool_, False), 'noise': (np.uint32, 0)}
# A place in the walk over the texts of a fact (320, or 416 of people who are trained on) that no
# true training document reaches.
RETOLD_STEP = 319
IDENTITY = ('kind', 'variant', 'subject', 'attribute', 'serial', 'detail', 'copied', 'copy')
ROW_BYTES = sum(np.dtype(dtype).itemsize for dtype, _ in COLUMNS.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """Columns (see COLUMNS) of all documents, in the order of the corpus."""
    columns: dict[str, np.ndarray]

    def __len__(self):
        return len(self.columns['kind'])

    def __getitem__(self, name):
        return self.columns[name]


def attribute_names(scale):
    """Names that the column `attribute` indexes."""
    return (*(name for name, _ in scale.values), *OTHER_ATTRIBUTES)


def block(count, **given):
    """`count` rows with the given columns and defaults elsewhere."""
    return {name: (np.broadcast_to(np.asarray(given[name]), (count,)).astype(dtype)
                   if name in given else np.full(count, default, dtype))
            for name, (dtype, default) in COLUMNS.items()}


def join(blocks):
    """One block of several."""
    return {name: np.concatenate([b[name] for b in blocks]) for name in COLUMNS}


def take(rows, index):
    """The rows of a mask or of indices."""
    return {name: column[index] for name, column in rows.items()}


def changed(rows, **given):
    """Rows with some columns replaced."""
    return {**rows, **{name: np.broadcast_to(np.asarray(new), rows[name].shape).astype(
        COLUMNS[name][0]) for name, new in given.items()}}


def _walk(words, step, slots, frames):
    """(slot, frame) of the step-th document of a fact; all pairs come before one comes again.

    An affine walk over the slots * frames pairs: its stride is coprime to their number.
    """
    total = slots * frames
    strides = np.flatnonzero(np.gcd(np.arange(total), total) == 1).astype(np.uint64)
    start = words % np.uint64(total)
    stride = strides[(words >> np.uint64(32)) % np.uint64(len(strides))]
    place = (start + step.astype(np.uint64) * stride) % np.uint64(total)
    return (place % np.uint64(slots)).astype(int), (place // np.uint64(slots)).astype(int)


class Drawer:
    """The keyed draws of one world: each depends on the identity of a document only."""

    def __init__(self, seed, scale, truth, weights):
        """`weights`: of the sources, after an intervention on volume."""
        self.scale, self.truth, self.weights = scale, truth, weights
        self.salts = {(stream, what): spec.salt(seed, stream, what) for stream, what in (
            ('doc_plan', 'source'), ('doc_plan', 'order'), ('doc_plan', 'pick'),
            ('templates', 'walk'), ('templates', 'alias'), ('noise', 'quality'),
            ('noise', 'false'), ('noise', 'wrong'), ('noise', 'text'), ('noise', 'copies'),
            ('noise', 'near'))}

    def words(self, stream, what, *columns):
        return spec.hashed(self.salts[stream, what], *columns)

    def uniform(self, stream, what, *columns):
        return spec.uniform(self.words(stream, what, *columns))

    def sources(self, person, attribute, serial):
        """One of the three supporting sources, with chance in proportion to its weight.

        An exponential race: with a larger weight a source only wins documents, no other source
        gains any, so an intervention on one source changes only what becomes its own.
        """
        found, best = np.zeros(len(person), int), np.full(len(person), np.inf)
        for place in range(self.scale.support):
            source = self.truth.support[person, attribute, place]
            chance = self.uniform('doc_plan', 'source', person, attribute, serial,
                                  np.full(len(person), place))
            time = -np.log1p(-chance) / self.weights[source]
            found, best = np.where(time < best, source, found), np.minimum(time, best)
        return found

    def slots(self, rows, step):
        """(slot, frame) of the documents at place `step` in the walks of their facts.

        Slots: 8 wordings of prose, list, table and, of people who are trained on, 3 questions.
        """
        train = self.truth.people.split[rows['subject']] == 0
        words = self.words('templates', 'walk', rows['subject'], rows['attribute'], rows['kind'])
        slots, frames = np.zeros(len(step), int), np.zeros(len(step), int)
        for mask, count in ((train, 10 + templates.TRAIN_WORDINGS), (~train, 10)):
            slots[mask], frames[mask] = _walk(words[mask], step[mask], count,
                                              templates.NUM_FRAMES)
        return slots, frames

    def worded(self, rows, step):
        """Rows of facts with wording, format, frame, alias, quality and noise filled in."""
        slots, frames = self.slots(rows, step)
        rows = changed(self.sourced(rows), frame=frames,
                       wording=np.where(slots < 10, slots, slots - 10))
        return self.formatted(rows, np.select([slots < 8, slots == 8, slots == 9],
                                              [PROSE, LIST, TABLE], QA))

    def formatted(self, rows, formats):
        """Rows with `format`; prose of a source that no sentence names stands below a header."""
        linked = self.truth.sources.factors['entity_link'][rows['source']] == 1
        prose = (formats == PROSE) | (formats == HEADER)
        return changed(rows, format=np.where(prose, np.where(linked, PROSE, HEADER), formats))

    def sourced(self, rows):
        """Rows with the name of their source and its quality."""
        identity = [rows[name] for name in IDENTITY]
        factors = self.truth.sources.factors
        alias = np.where(factors['terminology'][rows['source']] == 1, 0,
                         self.words('templates', 'alias', *identity) % np.uint64(4))
        noisy = 1 + (self.words('noise', 'quality', *identity) % np.uint64(2)).astype(int)
        return changed(rows, alias=alias, noise=self.words('noise', 'text', *identity)
                       >> np.uint64(32),
                       quality=np.where(factors['quality'][rows['source']] == 1, 0, noisy))

    def wrong(self, rows, other=0):
        """A wrong value of each row's fact, the same whenever the same source errs about it.

        With `other` = 1 another wrong value.
        """
        sizes = np.array([count for _, count in self.scale.values])[rows['attribute']]
        words = self.words('noise', 'wrong', rows['subject'], rows['attribute'], rows['source'])
        shift = 1 + ((words % (sizes - 1).astype(np.uint64)).astype(int) + other) % (sizes - 1)
        return (self.values(rows['subject'], rows['attribute']) + shift) % sizes

    def values(self, person, attribute):
        """Index of the true value of each (person, attribute)."""
        table = np.stack([self.truth.people.values[name] for name, _ in self.scale.values], axis=1)
        return table[person, attribute]

    def order(self, rows):
        """Rows shuffled by their identity, so that no row depends on which others exist."""
        key = self.words('doc_plan', 'order', *(rows[name] for name in IDENTITY))
        return take(rows, np.argsort(key, kind='stable'))


def step_of(rows, scale):
    """The place of a document in the walk over wordings of its fact."""
    return rows['serial'] // len(scale.values) if scale.biographies else rows['serial'].copy()


def planned_steps(people, scale):
    """int [P]: so many places from 0 in the walk of each fact are the planned documents'."""
    return -(-people.planned // len(scale.values)) if scale.biographies else people.planned


def facts(drawer):
    """The true documents: `planned` per fact; of biographies, `planned` per person."""
    scale, people = drawer.scale, drawer.truth.people
    attributes = len(scale.values)
    times = people.planned if scale.biographies else np.repeat(people.planned, attributes)
    owner = np.repeat(np.arange(len(times)), times)
    serial = np.arange(len(owner)) - np.repeat(np.cumsum(times) - times, times)
    if scale.biographies:       # the leading attribute goes round
        person, attribute = owner, (owner + serial) % attributes
    else:
        person, attribute = owner // attributes, owner % attributes
    rows = block(len(owner), kind=FACT, subject=person, attribute=attribute, serial=serial,
                 value=drawer.values(person, attribute),
                 source=drawer.sources(person, attribute, serial))
    return drawer.worded(rows, step_of(rows, scale))


def _plain(kind, attribute, subject, times, drawer, **given):
    """`times` unsourced documents per subject, and two in held-out wordings."""
    owner = np.repeat(np.arange(len(subject)), times)
    serial = np.arange(len(owner)) - np.repeat(np.cumsum(times) - times, times)
    rows = block(len(owner), kind=kind, subject=subject[owner], attribute=attribute,
                 serial=serial, **{name: column[owner] for name, column in given.items()})
    words = drawer.words('templates', 'walk', rows['subject'], rows['attribute'], rows['kind'],
                         rows['detail'])
    slots, frames = _walk(words, serial, 10, 4)
    rows = changed(rows, wording=slots, frame=frames,
                   format=np.select([slots < 8, slots == 8], [PROSE, LIST], TABLE))
    return [rows, held_out(kind, subject, attribute, **given)]


def held_out(kind, subject, attribute, **given):
    """Each fact in the two held-out wordings, bare: the test documents."""
    count = len(subject)
    return join([block(count, kind=kind, variant=HELD, subject=subject, attribute=attribute,
                       serial=number, wording=10 + number, **given) for number in range(2)])


def trained_on(rows):
    """bool [rows]: documents of the training split."""
    return ~np.isin(rows['variant'], (HELD, RETOLD))


def _retold(drawer, person, attribute):
    """The validation documents: facts that training documents tell, told once more like them, in
    a text that none of them has."""
    told = drawer.truth.people.planned[person] > 0
    person, attribute = person[told], attribute[told]
    serial = np.full(len(person), RETOLD_STEP)
    return drawer.worded(block(
        len(person), kind=FACT, variant=RETOLD, subject=person, attribute=attribute, serial=serial,
        value=drawer.values(person, attribute), source=drawer.sources(person, attribute, serial)),
        serial)


def background(drawer):
    """Documents about firms, brands and sources, and all that are not trained on."""
    scale, truth = drawer.scale, drawer.truth
    code = {name: i for i, name in enumerate(attribute_names(scale))}
    brands, firms = truth.brands, np.arange(len(truth.firm_city))
    brand, category = np.nonzero(brands.serves)
    sources = np.arange(scale.sources)
    aliased, alias = np.repeat(sources, 3), np.tile(np.arange(3), scale.sources)
    blocks = [
        *_plain(FIRM_CITY, code['firm_city'], firms, np.full(len(firms), scale.firm_documents),
                drawer, value=truth.firm_city),
        *_plain(BRAND, code['category'], brand, brands.planned[brand], drawer, detail=category,
                value=category),
        *_plain(BRAND, code['rank'], brand, brands.planned[brand], drawer, detail=category,
                value=brands.rank[brand, category]),
        *_plain(SOURCE, code['topic'], sources, np.full(len(sources), scale.source_documents),
                drawer),
        *_plain(SOURCE, code['alias'], aliased, np.full(len(aliased),
                                                        scale.source_documents // 2),
                drawer, detail=alias)]
    attributes = len(scale.values)
    chosen = spec.every(scale.people, scale.held_out_people)
    person = np.repeat(np.array(chosen), attributes)
    attribute = np.tile(np.arange(attributes), len(chosen))
    return join([*blocks, _retold(drawer, person, attribute), held_out(
        FACT, person, attribute, value=drawer.values(person, attribute))])
