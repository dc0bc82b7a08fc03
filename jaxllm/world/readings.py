"""Short texts about people who are named nowhere else, each with a question that the text answers.

What a model can learn from the other datasets about a name is which facts belong to it; here every
name is new, so that the only way to answer is to read: to find the name and the value in the text
before and to say them again. A small model that never had to do this answers a question about one
person with the name of another. The values are those of the world, drawn anew for every text: the
dataset tells nothing about anyone in the world.
"""

from jaxllm.world import names, templates
from jaxllm.world.instructions import told
from jaxllm.world.spec import SPLITS, generator
from jaxllm.world.templates import TRAIN_WORDINGS

FIELDS = {'id': 'str', 'split': 'str', 'style': 'str', 'text': 'str', 'messages': 'messages',
          'context': 'str', 'question': 'str', 'response': 'str', 'subject': 'str',
          'attribute': 'str', 'answer': 'str', 'wording': 'int', 'held_out': 'bool'}
STYLES = ('sentence', 'value', 'retold')
# Of texts: most end in a full sentence, since that is what has to be said about a name.
STYLE_SHARES = (0.56, 0.24, 0.20)
SPLIT_SHARES = (0.9, 0.05, 0.05)
PER_PERSON, MOST = 36, 200_000


def _stranger(rng, known):
    """A first and a last name that nobody in the world has."""
    return ' '.join(names.invent(rng, kind, known) for kind in ('first', 'last'))


def _claims(rng, world, name, attributes):
    """[(attribute, value, sentence without full stop)], in random wordings of training prose."""
    found = []
    for attribute in attributes:
        values, wordings = world.truth.attributes[attribute].values, told(attribute)
        value = values[rng.integers(len(values))]
        wording = wordings[rng.integers(len(wordings))]
        claim = templates.claim(attribute, wording, name=name, value=value)
        found.append((attribute, value, templates.sentence(claim)))
    return found


def _retold(rng, world, name, claims):
    """The same claims in other words and another order."""
    texts = []
    for number in rng.permutation(len(claims)):
        attribute, value, _ = claims[number]
        wording = told(attribute)[rng.integers(len(told(attribute)))]
        claim = templates.claim(attribute, wording, name=name, value=value)
        texts.append(f'{templates.sentence(claim)}.')
    return ' '.join(texts)


def _reading(world, rng, known, split):
    attributes = list(world.truth.attributes)
    name = _stranger(rng, known)
    picked = [attributes[i] for i in rng.permutation(len(attributes))[:rng.integers(1, 4)]]
    claims = _claims(rng, world, name, picked)
    context = ' '.join(f'{sentence}.' for *_, sentence in claims)
    attribute, answer, sentence = claims[rng.integers(len(claims))]
    style = STYLES[rng.choice(len(STYLES), p=STYLE_SHARES)]
    held_out = split != 'train' and bool(rng.integers(2))
    wording = TRAIN_WORDINGS if held_out else int(rng.integers(TRAIN_WORDINGS))
    question = templates.QUESTIONS[attribute][wording].text.format(name=name)
    if style == 'retold':
        response = _retold(rng, world, name, claims)
        text = f'{context} {response}'
    else:
        response = f'{sentence}.' if style == 'sentence' else answer
        text = f'{context}\nQuestion: {question}\nAnswer: {response}'
    # A chat always asks, and always gets a sentence.
    messages = [{'role': 'user', 'content': f'{context} {question}'},
                {'role': 'assistant', 'content': f'{sentence}.'}]
    return {'style': style, 'text': text, 'messages': messages, 'context': context,
            'question': question, 'response': response, 'subject': name, 'attribute': attribute,
            'answer': answer, 'wording': wording, 'held_out': held_out}


def rows(world):
    """36 texts per person of the world, at most 200,000, each about a name of its own."""
    rng = generator(world.spec.seed, 'instructions', 'readings')
    known = {word.lower() for name in world.truth.people.names for word in name.split()}
    known.update(word.lower() for attribute in world.truth.attributes.values()
                 for value in attribute.values for word in value.split())
    for number in range(min(PER_PERSON * len(world.truth.people.names), MOST)):
        split = SPLITS[rng.choice(len(SPLITS), p=SPLIT_SHARES)]
        yield {'id': f'r{number}', 'split': split, **_reading(world, rng, known, split)}
