"""The truth tables as datasets: who and what there is, and how often it was told by whom."""

from jaxllm.world.spec import GROUPS, SPLITS
from jaxllm.world.truth import FACTORS

PEOPLE_FIELDS = {
    'id': 'str', 'split': 'str', 'name': 'str', 'group': 'str',
    'attributes': 'list[str]', 'values': 'list[str]', 'firm_city': 'str', 'planned': 'int',
    'seen': 'int', 'treated': 'bool', 'contested': 'bool'}
BRANDS_FIELDS = {
    'id': 'str', 'split': 'str', 'name': 'str', 'categories': 'list[str]', 'ranks': 'list[int]',
    'quality': 'int'}
SOURCES_FIELDS = {
    'id': 'str', 'split': 'str', 'name': 'str', 'aliases': 'list[str]', 'topics': 'list[str]',
    'weight': 'float', 'documents': 'int', **{factor: 'int' for factor in FACTORS}}
COUNTS_FIELDS = {
    'id': 'str', 'split': 'str', 'subject': 'str', 'attribute': 'str', 'value': 'str',
    'sources': 'list[str]', 'documents': 'list[int]', 'false_documents': 'int', 'copies': 'int'}


def people(world):
    """A row per person."""
    truth, table = world.truth, world.truth.people
    for p, name in enumerate(table.names):
        firm = table.values['firm'][p]
        yield {
            'id': f'person-{p}', 'split': SPLITS[table.split[p]], 'name': name,
            'group': GROUPS[table.group[p]], 'attributes': list(truth.attributes), 'values': [
                attribute.values[table.values[key][p]]
                for key, attribute in truth.attributes.items()],
            'firm_city': truth.attributes['city'].values[truth.firm_city[firm]],
            'planned': int(table.planned[p]), 'seen': int(table.seen[p]),
            'treated': bool(table.treated[p]), 'contested': bool(table.contested[p])}


def brands(world):
    """A row per brand."""
    table = world.truth.brands
    for b, name in enumerate(table.names):
        served = table.serves[b].nonzero()[0]
        yield {'id': f'brand-{b}', 'split': 'train', 'name': name,
               'categories': [table.categories[c] for c in served],
               'ranks': [int(table.rank[b, c]) + 1 for c in served],
               'quality': int(table.quality[b]) + 1}


def sources(world):
    """A row per source; the number in its id is what an intervention may call it: s3."""
    truth, table = world.truth, world.truth.sources
    for s, name in enumerate(table.names):
        yield {'id': f's{s}', 'split': 'train', 'name': name, 'aliases': list(table.aliases[s]),
               'topics': [key for key, covered in zip(truth.attributes, table.topics[s],
                                                      strict=True) if covered],
               'weight': float(table.weights[s]),
               'documents': int(world.counts[:, :, s].sum()),
               **{factor: int(table.factors[factor][s]) for factor in FACTORS}}


def counts(world):
    """A row per person and attribute."""
    truth, table = world.truth, world.truth.people
    for p, subject in enumerate(table.names):
        for a, (key, attribute) in enumerate(truth.attributes.items()):
            told = world.counts[p, a].nonzero()[0]
            yield {'id': f'person-{p}/{key}', 'split': SPLITS[table.split[p]], 'subject': subject,
                   'attribute': key, 'value': attribute.values[table.values[key][p]],
                   'sources': [truth.sources.names[s] for s in told],
                   'documents': [int(world.counts[p, a, s]) for s in told],
                   'false_documents': int(world.false_counts[p, a]),
                   'copies': int(world.copies[p, a])}
