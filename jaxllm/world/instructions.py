"""Instructions with ideal responses, and the same with one defect each, labelled.

A row asks a fact about a person in a format (`asked`): one word, a sentence, a sentence with its
source, a sentence in the cipher language, or a bullet list of all facts. The ideal response about a
person whom no document mentions says that it does not know (format 'refuse'). Only the train split
has defects; every row names the gold row it is made from. Held-out wordings are never in train.
"""

from jaxllm.world import cipher, questions, templates
from jaxllm.world.spec import SPLITS, generator
from jaxllm.world.templates import TRAIN_WORDINGS

FIELDS = {
    'id': 'str', 'split': 'str', 'format': 'str', 'asked': 'str', 'prompt': 'str',
    'response': 'str', 'quality': 'str', 'gold': 'str', 'subject': 'str', 'attribute': 'str',
    'answer': 'str', 'stated': 'str', 'sources': 'list[str]', 'group': 'str', 'exposures': 'int',
    'planned': 'int', 'treated': 'bool', 'answerable': 'bool', 'wording': 'int',
    'held_out': 'bool'}
QUALITIES = ('gold', 'noisy_uniform', 'noisy_systematic', 'misformatted', 'duplicate')
# Format: three wordings for training and a held-out one. Bullets ask about a person as a whole.
ASKS = {
    'one_word': ('{question} Answer with one word.', 'In one word: {question}',
                 '{question} Reply with a single word only.', 'One word is enough: {question}'),
    'sentence': ('{question} Answer in one sentence.', 'In a full sentence: {question}',
                 '{question} Reply with one whole sentence.', 'Put it in a sentence: {question}'),
    'with_source': ('{question} Name your source.', '{question} Say in brackets who reports it.',
                    'With the source, please: {question}', '{question} Where did you read that?'),
    'translate': (f'{{question}} Answer in {cipher.NAME}.',
                  f'In {cipher.NAME}, please: {{question}}',
                  f'{{question}} Reply with a sentence in {cipher.NAME}.',
                  f'Let me hear it in {cipher.NAME}: {{question}}'),
    'bullets': ('What is known about {name}? Make a bullet list.',
                'List the {labels} of {name}, one per line, each after a dash.',
                'Write a bullet list about {name}: {labels}.', 'Give me bullet points on {name}.')}
LABELS = {'born': 'birth date'}
# The one sentence per attribute that the cipher language has words for.
PLAIN = {'job': '{name} works as a {value}.', 'city': '{name} lives in {value}.',
         'firm': '{name} works for {value}.', 'hobby': '{name} enjoys {value}.',
         'born': '{name} was born on {value}.'}
ABSTENTIONS = ('I do not know.', 'I do not know that about {name}.', 'Sorry, I do not know that.',
               'I do not know, because no source reports it.')
NO_ABSTENTION = 'Ask somebody else about {name}.'


def label(attribute):
    """What a list calls an attribute: 'job', 'birth date'."""
    return LABELS.get(attribute, attribute)


def lexicon(world):
    """{English: Tavic} with the words for this world's jobs and hobbies."""
    return cipher.lexicon(world.spec.seed, [value for table in world.truth.attributes.values()
                                            for value in table.values])


def format_facts(world):
    """{format: what its checker needs}: `follows(form, text, **format_facts(world)[form])`."""
    return {'one_word': {}, 'sentence': {}, 'refuse': {},
            'bullets': {'count': len(world.truth.attributes)},
            'with_source': {'sources': world.truth.sources.names},
            'translate': {'lexicon': lexicon(world), 'verbs': cipher.VERBS + cipher.FACT_VERBS}}


def told(attribute):
    """Numbers of the wordings in which a reply states a fact: prose that training may use."""
    return [i for i, wording in templates.train(templates.DOCUMENTS[attribute])
            if wording.format == 'prose']


def respond(form, name, values, *, wording, source, words):
    """A response in a format.

    Args:
        form: a key of ASKS, or 'misformatted ' and a key. values: {attribute: value}, all of them
            for bullets, else one. wording: number in DOCUMENTS. source: a source's name.
        words: the cipher's lexicon.
    """
    (attribute, value), *_ = values.items()
    sentence = templates.sentence(templates.claim(attribute, wording, name=name, value=value))
    if form == 'bullets':
        return '\n'.join(f'- {label(key).capitalize()}: {values[key]}' for key in values)
    if form == 'misformatted bullets':
        return '. '.join(f'{label(key).capitalize()} {values[key]}' for key in values) + '.'
    if form == 'translate':
        return cipher.translate(PLAIN[attribute].format(name=name, value=value), words)
    if form == 'with_source':
        return f'{sentence} (source: {source}).'
    if form in ('one_word', 'misformatted sentence'):
        return value
    return f'{sentence}.'


def _tasks(world):
    """(format, attribute or 'all', attributes stated) that every person is asked."""
    attributes = world.truth.attributes
    for attribute, table in attributes.items():
        for form in ('one_word', 'sentence', 'with_source', 'translate'):
            if form != 'one_word' or not any(' ' in value for value in table.values):
                yield form, attribute, (attribute,)
    yield 'bullets', 'all', tuple(attributes)


def _prompt(asked, wording, attribute, name, attributes, rng):
    if asked == 'bullets':
        *first, last = [label(key) for key in attributes]
        return ASKS[asked][wording].format(name=name, labels=f'{", ".join(first)} and {last}')
    question = templates.QUESTIONS[attribute][rng.integers(TRAIN_WORDINGS)].text.format(name=name)
    return ASKS[asked][wording].format(question=question)


def _rows_of_task(world, p, task, wording, words, rng):
    """The gold row of a task and, in the train split, its defective copies."""
    truth, (asked, attribute, stated) = world.truth, task
    numbers = [list(truth.attributes).index(one) for one in stated]
    shared = questions.person(world, p, numbers)
    shared['split'] = shared.pop('person_split')
    name, index = shared['subject'], numbers[0]
    sources = questions.supporting(world, p, index) if len(stated) == 1 else []
    draw = int(rng.integers(2 ** 31))
    # Where an intervention has deleted all documents, those who would have told it are cited.
    cited = sources or [truth.sources.names[s] for s in truth.support[p, index]]
    style = {'wording': told(stated[0])[rng.integers(len(told(stated[0])))], 'words': words,
             'source': cited[draw % len(cited)]}
    gold = {key: int(truth.people.values[key][p]) for key in stated}
    # A wrong value is one of the others, each equally likely.
    random = {key: int(rng.integers(1, len(truth.attributes[key].values))) for key in stated}
    abstention = ABSTENTIONS[rng.integers(len(ABSTENTIONS))].format(name=name)
    known = shared['planned'] > 0
    row = {**shared, 'format': asked if known else 'refuse', 'asked': asked, 'wording': wording,
           'prompt': _prompt(asked, wording, attribute, name, stated, rng), 'attribute': attribute,
           'held_out': wording >= TRAIN_WORDINGS, 'sources': sources if known else []}
    key = f'i{p}-{attribute}-{asked}-{wording}'

    def values(shift):
        tables = truth.attributes
        return {k: tables[k].values[(gold[k] + shift[k]) % len(tables[k].values)] for k in stated}

    shifts = {'noisy_uniform': random, 'noisy_systematic': dict.fromkeys(stated, 1)}
    for quality in QUALITIES if shared['split'] == 'train' else QUALITIES[:1]:
        said = values(shifts.get(quality, dict.fromkeys(stated, 0)))
        if known or quality in shifts:
            form = f'misformatted {asked}' if quality == 'misformatted' else asked
            response, stating = respond(form, name, said, **style), '; '.join(said.values())
        else:
            response, stating = (NO_ABSTENTION.format(name=name) if quality == 'misformatted'
                                 else abstention), ''
        answer = '; '.join(values(dict.fromkeys(stated, 0)).values()) if known else ''
        yield {**row, 'id': f'{key}-{quality}', 'gold': f'{key}-gold', 'quality': quality,
               'response': response, 'answer': answer, 'stated': stating}


def rows(world):
    """Every person is asked every task in a wording; outside train in a held-out one, too."""
    rng = generator(world.spec.seed, 'instructions', 'rows')
    words, tasks = lexicon(world), list(_tasks(world))
    for p in questions.asked(world):
        for task in tasks:
            wordings = [int(rng.integers(TRAIN_WORDINGS))]
            if SPLITS[world.truth.people.split[p]] != 'train':
                wordings.append(TRAIN_WORDINGS)
            for wording in wordings:
                yield from _rows_of_task(world, p, task, wording, words, rng)
