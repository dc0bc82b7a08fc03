"""Conversations of two to four turns: follow-ups by pronoun, other topics and back, system prompts.

Each turn asks one fact of one person; a turn that says 'they' is about the person named last. The
right reply to a question about an unknown person is to say so. All people of a conversation belong
to its split; `treated` says that an intervention changed documents about one of them, whose facts
the replies still tell as the tables have them.
"""

import numpy as np

from jaxllm.world import templates
from jaxllm.world.instructions import ABSTENTIONS, told
from jaxllm.world.questions import asked
from jaxllm.world.spec import SPLITS, generator
from jaxllm.world.templates import TRAIN_WORDINGS

FIELDS = {'id': 'str', 'split': 'str', 'messages': 'messages', 'turns': 'int', 'form': 'str',
          'subjects': 'list[str]', 'attributes': 'list[str]', 'answers': 'list[str]',
          'links': 'list[str]', 'wording': 'int', 'held_out': 'bool', 'treated': 'bool'}
FORMS = ('sentence', 'value')
# form: system prompts; the last wording of everything in this file is held out.
SYSTEM = {
    'sentence': ('You answer in one full sentence.', 'Give every answer as one sentence.',
                 'You are a clerk. Reply with a whole sentence.',
                 'A full sentence is what every reply should be.'),
    'value': ('You answer with the bare fact and nothing else.',
              'Give short answers, no sentences.',
              'You are a clerk. Reply with the fact alone.',
              'Nothing but the fact itself belongs in a reply.')}
# attribute: follow-ups about the person named last.
FOLLOW_UPS = {
    'job': ('And what is their job?', 'What do they do for a living?', 'What trade do they follow?',
            'And how do they earn money?'),
    'city': ('And where do they live?', 'In which city do they live?', 'What is their home town?',
             'And which city is home to them?'),
    'firm': ('And who employs them?', 'Which firm do they work for?', 'What is their employer?',
             'And whose payroll are they on?'),
    'hobby': ('And what is their hobby?', 'What do they do for fun?',
              'Which pastime do they enjoy?', 'And how do they like to spend free time?'),
    'born': ('And when were they born?', 'What is their birth date?',
             'On which day were they born?', 'And which date is their birthday?')}
SWITCHES = ('Now to somebody else. {question}', 'Another person, please. {question}',
            'Let us turn to another person. {question}', 'On to the next person. {question}')
# A turn that returns to the first person names them and then asks by pronoun.
BACK = ('Back to {name}. {question}', 'Once more about {name}. {question}',
        'Let us return to {name}. {question}', 'One more thing on {name}. {question}')
PER_PERSON = 2


def _reply(rng, attribute, name, value, form):
    """A right reply: the value alone, a sentence that states it, or that it is not known."""
    if not value:
        number = 0 if form == 'value' else rng.integers(len(ABSTENTIONS))
        return ABSTENTIONS[number].format(name=name)
    wording = told(attribute)[rng.integers(len(told(attribute)))]
    claim = templates.claim(attribute, wording, name=name, value=value)
    return value if form == 'value' else f'{templates.sentence(claim)}.'


def _links(rng, turns):
    """How each turn goes on: open, then pronoun, switch (at most once), back (after a switch)."""
    links = ['open']
    while len(links) < turns:
        if 'switch' not in links:
            options = ('pronoun', 'pronoun', 'switch')
        elif 'back' not in links:
            options = ('pronoun', 'pronoun', 'back')
        else:
            options = ('pronoun',)
        links.append(options[rng.integers(len(options))])
    return links


def _question(link, wording, attribute, name):
    question = templates.QUESTIONS[attribute][wording].text.format(name=name)
    if link == 'pronoun':
        return FOLLOW_UPS[attribute][wording]
    if link == 'back':
        follow_up = FOLLOW_UPS[attribute][wording].removeprefix('And ')
        return BACK[wording].format(name=name, question=templates.sentence(follow_up))
    return SWITCHES[wording].format(question=question) if link == 'switch' else question


def _conversation(world, people, wording, rng):
    """One conversation about the people (first, other)."""
    truth = world.truth
    attributes, links = list(truth.attributes), _links(rng, int(rng.integers(2, 5)))
    form, system = FORMS[rng.integers(2)], bool(rng.integers(2))
    form = form if system else 'sentence'
    messages = [{'role': 'system', 'content': SYSTEM[form][wording]}] if system else []
    left = [list(rng.permutation(len(attributes))) for _ in people]
    now, subjects, about, answers, treated = 0, [], [], [], False
    for link in links:
        now = {'switch': 1, 'back': 0}.get(link, now)
        person, attribute = people[now], attributes[left[now].pop()]
        name = truth.people.names[person]
        value = truth.attributes[attribute].values[truth.people.values[attribute][person]]
        answer = value if truth.people.planned[person] else ''
        treated = treated or bool(truth.people.treated[person])
        messages += [
            {'role': 'user', 'content': _question(link, wording, attribute, name)},
            {'role': 'assistant', 'content': _reply(rng, attribute, name, answer, form)}]
        subjects.append(name)
        about.append(attribute)
        answers.append(answer)
    return {'messages': messages, 'turns': len(links), 'form': form, 'subjects': subjects,
            'attributes': about, 'answers': answers, 'links': links, 'wording': wording,
            'held_out': wording >= TRAIN_WORDINGS, 'treated': treated}


def rows(world):
    """Two conversations that begin with each person; outside train the second is held out."""
    rng = generator(world.spec.seed, 'instructions', 'conversations')
    split = np.asarray(world.truth.people.split)
    members = [[p for p in asked(world) if split[p] == number] for number in range(len(SPLITS))]
    for p in asked(world):
        same = members[split[p]]
        for number in range(PER_PERSON):
            other = p
            while other == p:
                other = same[rng.integers(len(same))]
            wording = int(rng.integers(TRAIN_WORDINGS))
            if number and split[p] != SPLITS.index('train'):
                wording = TRAIN_WORDINGS
            yield {'id': f'c{p}-{number}', 'split': SPLITS[split[p]],
                   **_conversation(world, (p, other), wording, rng)}
