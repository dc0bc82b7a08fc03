"""Tables of the world as Items and texts."""

from jaxllm.errors import InputError
from jaxllm.evals.items import Item, check_ids
from jaxllm.world import documents, questions as table, templates

_NO_TAGS = ('id', 'prompt', 'answer', 'candidates', 'kind', 'answerable')


def questions(world, split):
    """All questions about the people of a split, or of 'all', as Items; their fact groups them."""
    items = [Item(id=row['id'], prompt=row['prompt'], answer=row['answer'],
                  candidates=tuple(row['candidates']), kind=row['kind'], group_id=row['fact'],
                  answerable=row['answerable'],
                  tags={key: value for key, value in row.items() if key not in _NO_TAGS})
             for row in table.rows(world) if split in ('all', row['split'])]
    check_ids(items, "the world's questions")
    return items


def citation_probes(world, split):
    """'<claim>, according to the' for every fact of the split's people that a source reports.

    Made from the questions about sources, one per fact; the answer is the most frequent source.
    """
    probes = {}
    told = {attribute: templates.train(wordings)[0][0]
            for attribute, wordings in templates.DOCUMENTS.items()}
    facts = {item.group_id: item for item in questions(world, split) if item.kind == 'direct'}
    for item in questions(world, split):
        if item.kind != 'source' or not item.answerable or item.group_id in probes:
            continue
        attribute = item.tags['attribute']
        fact = facts[item.group_id.removesuffix('|source')]
        claim = templates.claim(attribute, told[attribute], name=item.subject, value=fact.answer)
        probes[item.group_id] = Item(
            id=f'{item.group_id}|cloze', prompt=f'{templates.sentence(claim)}, according to the',
            answer=item.answer, candidates=item.candidates, kind='source', group_id=item.group_id,
            tags=item.tags | {'style': 'cloze', 'wording': told[attribute], 'held_out': False})
    return list(probes.values())


def requests(rows, split):
    """Rows of another table (instructions, safety) of a split, or of 'all'."""
    return [row for row in rows if split in ('all', row['split'])]


def held_out_texts(world):
    """{part: [(id, domain, text, subject)]} of the documents that no model is trained on.

    'known_wordings' are new tellings in wordings that training documents use, 'new_wordings' are
    tellings in others.
    """
    parts = {'validation': ('known_wordings', []), 'test': ('new_wordings', [])}
    for row in documents.rows(world):
        if row['split'] in parts:
            parts[row['split']][1].append((row['id'], row['domain'], row['text'],
                                           row['subject'] or row['id']))
    return dict(parts.values())


def document_tags(world, ids):
    """{id: tags} of some documents, to slice extraction by: how many documents tell the fact that
    one tells, and whether it is a copy of another."""
    ids = set(ids)
    return {row['id']: {'exposures': row['exposures'], 'is_copy': bool(row['duplicate_of'])}
            for row in documents.rows(world) if row['id'] in ids}


def check_split(split):
    """Raises InputError for a split that the world's tables do not have."""
    if split not in ('train', 'validation', 'test', 'all'):
        raise InputError(f'settings.split={split!r} is unknown; use train, validation, test or '
                         'all')
