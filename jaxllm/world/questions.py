"""Questions with answers from the tables: direct, two-hop, unanswerable, source and brand.

The ids do not depend on the intervention, so the arms of an ablation are paired row by row. A
person whom no document mentions (planned 0, or all documents deleted) still has direct questions
with the table's answer and answerable = False; the kind 'unanswerable', whose right answer is to
say so, asks about planned = 0 only. `exposures` and `answerable` are those of the fact that a row
asks for; of two hops, those of the first. No wording that is held out is in the train split: of
people who are trained on, these rows are in validation (`person_split` still says train).
"""

import numpy as np

from jaxllm.world import templates
from jaxllm.world.spec import GROUPS, SPLITS, every, generator

FIELDS = {
    'id': 'str', 'split': 'str', 'style': 'str', 'kind': 'str', 'prompt': 'str', 'answer': 'str',
    'candidates': 'list[str]', 'subject': 'str', 'attribute': 'str', 'fact': 'str',
    'wording': 'int', 'held_out': 'bool', 'group': 'str', 'exposures': 'int', 'planned': 'int',
    'treated': 'bool', 'answerable': 'bool', 'sources': 'list[str]', 'copies': 'int',
    'false_count': 'int', 'person_split': 'str'}
# So many candidates at most, so that chance is the same at every scale.
MAX_CANDIDATES = 24
# So many people are asked about at most; larger worlds ask about every n-th.
MAX_PEOPLE = 10_000


def split_of(person_split, held_out):
    """The split of a row: a person's own, but held-out wordings are never in train."""
    return 'validation' if held_out and person_split == 'train' else person_split


def supporting(world, person, index):
    """Names of the sources with a true document on a fact, the most frequent first (ties by order).

    Args: person, index: row and attribute number in `world.counts`.
    """
    counts_S = np.asarray(world.counts[person, index])
    order = np.argsort(-counts_S, kind='stable')
    return [world.truth.sources.names[s] for s in order if counts_S[s] > 0]


def candidates_of(values, gold, rng):
    """All values, or MAX_CANDIDATES of them with the gold one, in the table's order."""
    if len(values) <= MAX_CANDIDATES:
        return list(values)
    chosen = {int(i) for i in rng.choice(len(values), MAX_CANDIDATES - 1, replace=False)}
    chosen.add(gold)
    others = iter(sorted(set(range(len(values))) - chosen))
    while len(chosen) < MAX_CANDIDATES:
        chosen.add(next(others))
    return [values[i] for i in sorted(chosen)]


def asked(world):
    """Numbers of the people that questions, instructions and conversations are about."""
    return every(len(world.truth.people.names), MAX_PEOPLE)


def person(world, p, attributes):
    """What the rows about facts of a person share.

    Args: attributes: numbers of those that a row asks for; of several, the least told one counts.
    """
    people, told = world.truth.people, int(min(world.true_counts[p, a] for a in attributes))
    return {'subject': people.names[p], 'group': GROUPS[people.group[p]],
            'exposures': told, 'planned': int(people.planned[p]),
            'treated': bool(people.treated[p]), 'person_split': SPLITS[people.split[p]],
            'answerable': told > 0}


def _rows_of_person(world, p, rng):
    truth, people = world.truth, world.truth.people
    name, planned = people.names[p], int(people.planned[p])
    for a, (attribute, table) in enumerate(truth.attributes.items()):
        gold = int(people.values[attribute][p])
        fields = {**person(world, p, [a]), 'attribute': attribute, 'fact': f'{name}|{attribute}',
                  'candidates': candidates_of(table.values, gold, rng),
                  'sources': supporting(world, p, a), 'copies': int(world.copies[p, a]),
                  'false_count': int(world.false_counts[p, a]), 'answer': table.values[gold]}
        for i, wording in enumerate(templates.QUESTIONS[attribute]):
            row = {**fields, 'style': 'qa', 'wording': i, 'held_out': wording.held_out,
                   'prompt': templates.question(attribute, i, name=name)}
            yield {**row, 'kind': 'direct'}
            if not planned:
                yield {**row, 'kind': 'unanswerable', 'answer': ''}
        for i, wording in enumerate(templates.DOCUMENTS[attribute]):
            yield {**fields, 'style': 'cloze', 'kind': 'direct', 'wording': i,
                   'held_out': wording.held_out,
                   'prompt': templates.cloze(attribute, i, name=name)}
        if planned:
            yield from _source_rows(truth, attribute, fields, rng)
        if attribute == 'firm':
            yield from _two_hop_rows(truth, gold, fields, rng)


def _source_rows(truth, attribute, fact, rng):
    """Who reports a fact; right is every source with a true document on it."""
    told = templates.inner(attribute)
    names = truth.sources.names
    for i, wording in enumerate(templates.QUESTIONS['source']):
        claim = templates.claim(attribute, told[rng.integers(len(told))], name=fact['subject'],
                                value=fact['answer'])
        gold = fact['sources'][0] if fact['sources'] else ''
        drawn = rng.integers(len(names))
        yield {**fact, 'style': 'qa', 'kind': 'source', 'wording': i, 'held_out': wording.held_out,
               'prompt': templates.question('source', i, claim=claim), 'answer': gold,
               'fact': f'{fact["fact"]}|source', 'answerable': bool(gold),
               'candidates': _source_candidates(names, fact['sources'], int(drawn))}


def _source_candidates(names, gold, start):
    """All sources, or MAX_CANDIDATES of them with all gold ones, in the table's order."""
    if len(names) <= MAX_CANDIDATES:
        return list(names)
    others = [name for name in (*names[start:], *names[:start]) if name not in gold]
    chosen = {*gold, *others[:MAX_CANDIDATES - len(gold)]}
    return [name for name in names if name in chosen]


def _two_hop_rows(truth, firm, fact, rng):
    """The city of the firm of a person: two facts that no document states together."""
    cities, city = truth.attributes['city'].values, int(truth.firm_city[firm])
    for i, wording in enumerate(templates.QUESTIONS['two_hop']):
        yield {**fact, 'style': 'qa', 'kind': 'two_hop', 'attribute': 'firm_city', 'wording': i,
               'held_out': wording.held_out, 'answer': cities[city], 'sources': [],
               'candidates': candidates_of(cities, city, rng), 'copies': 0, 'false_count': 0,
               'fact': f'{fact["subject"]}|firm_city',
               'prompt': templates.question('two_hop', i, name=fact['subject'])}


def _brand_rows(world):
    """Which brand of a category is rated best; exposures and planned are -1, they do not apply."""
    brands, seed = world.truth.brands, world.spec.seed
    count = len(brands.categories)
    order = generator(seed, 'splits', 'brands').permutation(count)
    rng = generator(seed, 'qa', 'brands')
    for place, c in enumerate(order.tolist()):
        category, split = brands.categories[c], ('train', *SPLITS)[4 * place // count]
        best = int(np.flatnonzero(brands.rank[:, c] == 0)[0])
        candidates = candidates_of(brands.names, best, rng)
        for i, wording in enumerate(templates.QUESTIONS['best']):
            yield {'style': 'qa', 'kind': 'brand', 'candidates': candidates, 'subject': category,
                   'attribute': 'best', 'fact': f'{category}|best', 'wording': i,
                   'held_out': wording.held_out, 'answer': brands.names[best], 'group': '',
                   'prompt': templates.question('best', i, category=category), 'exposures': -1,
                   'planned': -1, 'treated': False, 'answerable': True, 'sources': [],
                   'copies': 0, 'false_count': 0, 'person_split': split}


def rows(world):
    """All questions: person by person, then the brands."""
    rng = generator(world.spec.seed, 'qa', 'questions')
    people = ((f'p{p}', row) for p in asked(world)
              for row in _rows_of_person(world, p, rng))
    brands = ((f'b-{row["subject"]}', row) for row in _brand_rows(world))
    for table in (people, brands):
        for key, row in table:
            yield {'id': f'{key}-{row["attribute"]}-{row["kind"]}-{row["style"]}-{row["wording"]}',
                   'split': split_of(row['person_split'], row['held_out']), **row}
