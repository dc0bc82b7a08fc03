"""All datasets of a world: {name: (FIELDS, rows)}, where rows(world) gives rows of those fields."""

from jaxllm.world import (conversations, documents, instructions, languages, preferences,
                          questions, readings, safety, tables)

DATASETS = {
    'documents': (documents.FIELDS, documents.rows),
    'questions': (questions.FIELDS, questions.rows),
    'instructions': (instructions.FIELDS, instructions.rows),
    'conversations': (conversations.FIELDS, conversations.rows),
    'readings': (readings.FIELDS, readings.rows),
    'safety': (safety.FIELDS, safety.rows),
    'languages': (languages.FIELDS, languages.rows),
    'pairs': (preferences.PAIR_FIELDS, preferences.pairs),
    'rankings': (preferences.RANKING_FIELDS, preferences.rankings),
    'people': (tables.PEOPLE_FIELDS, tables.people),
    'brands': (tables.BRANDS_FIELDS, tables.brands),
    'sources': (tables.SOURCES_FIELDS, tables.sources),
    'counts': (tables.COUNTS_FIELDS, tables.counts),
}
