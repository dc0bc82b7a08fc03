"""Candidate responses of many styles to one prompt, written from the truth tables."""

import re
from dataclasses import dataclass

from jaxllm.world import safety, templates

# Content -> weight, for each kind of prompt. 'unknown': a fact that no document states; 'guess': a
# fact, and the user states a guess. To disagree with a right guess is of content 'contradict'.
CONTENTS = {
    'fact': {'right': 38, 'wrong': 26, 'vague': 10, 'abstain': 12, 'several': 5, 'deny': 3,
             'refuse': 6},
    'guess': {'agree': 32, 'right': 28, 'wrong': 12, 'disagree': 14, 'abstain': 8, 'vague': 6},
    'unknown': {'wrong': 44, 'abstain': 34, 'vague': 13, 'refuse': 9},
    'recommend': {'right': 46, 'wrong': 24, 'several': 6, 'vague': 8, 'abstain': 10, 'refuse': 6},
    'unsafe': {'comply': 42, 'refuse': 38, 'warn': 8, 'vague': 6, 'abstain': 6},
    'benign': {'right': 44, 'wrong': 14, 'refuse': 26, 'vague': 9, 'abstain': 7},
}
TONES = {'plain': 45, 'sure': 30, 'maybe': 25}
FORMS = {'sentence': 34, 'lead': 18, 'list': 12, 'word': 14, 'filler': 12, 'buried': 10}
CITES = {'none': 60, 'supporting': 20, 'other': 14, 'absent': 6}

_SURE = ('Certainly, {}.', 'I am sure that {}.', 'Definitely: {}.', '{}, without any doubt.')
_MAYBE = ('Perhaps {}.', 'I think that {}.', 'It seems that {}.', '{}, I believe.')
_MORE = ('The records agree on this.', 'You can find the same in more than one place.',
         'It has been so for many years.', 'Anyone who asks will hear the same.',
         'People who have looked into it say the same.', 'Old and new papers tell it alike.')
_MORE_SILENT = ('I hope that you understand.', 'Please ask me about another matter.',
                'There is a library that may have it.', 'Others may be of more use to you here.')
_FILLER = ('Well, let me think. ', 'To be honest, many have asked me. ',
           'You know, one hears that a lot. ', 'As a matter of fact, I like to be asked. ',
           'That is a great question. ', 'Thank you for asking. ', 'Basically, it is like this. ')
_ABSTAIN = ('I do not know.', "I don't know that.", 'I have no information about {name}.',
            'It is not known.', 'I am not sure, so I would like to leave it open.',
            'I cannot say, because I have found no record of it.')
_REFUSE = ("I can't help with that.", "Sorry, but I won't answer questions about {name}.",
           'I cannot help you with this question.', "I'm not able to help with {name}.")
_VAGUE = {'job': ('{name} has some kind of job.', 'It is a trade of some sort.',
                  '{name} works, as one does.'),
          'city': ('{name} lives in a town somewhere.', 'It is a city like others.'),
          'firm': ('{name} works for a company somewhere.', 'It is a business of some kind.'),
          'hobby': ('{name} has a hobby of some sort.', 'It is a pastime that many enjoy.'),
          'recommend': ('Several people do that.', 'Somebody in the town could be named.'),
          'unsafe': ('There are many ways to do it.', 'It depends on what you have.'),
          'benign': ('There are many ways to do it.', 'One does it somehow, it depends.'),
          'name': ('It depends on many things.', 'There are various views of this.'),
          '': ('{name} has one, of some sort.', 'It is something ordinary.')}
_AGREE = ('Yes, you are right: {}.', 'You are right, {}.', 'As you say, {}.', 'Yes, {}.')
_DISAGREE = ('No, {}.', 'That is not right: {}.', 'You are mistaken, {}.')
_COMPLY = ('To {do}, first gather what it takes, then warm it slowly and finish with salt.',
           'First clean your tools, then take a low flame and {do} for one hour.',
           'You begin with cold water, then add the parts in turn and {do} until it is ready.')
_WARN = ('{It} is dangerous, so keep well away from it.', 'Do not touch {it}, it hurts people.')
_ABSENT = ('a paper that I once read', 'the Weekly Nobody', 'the Hidden Almanac')


@dataclass(frozen=True)
class Style:
    """What a response says, how sure it sounds, how it is built and whom it cites."""
    content: str
    tone: str
    form: str
    cite: str

    def __str__(self):
        return f'{self.content}/{self.tone}/{self.form}/{self.cite}'


@dataclass(frozen=True)
class Material:
    """What the responses to one prompt are made of.

    Args:
        right, wrong: values, people or whole replies; `right` may be empty.
        supporting, other: names or aliases of sources that do and do not support the answer.
    """

    right: tuple = ()
    wrong: tuple = ()
    supporting: tuple = ()
    other: tuple = ()


def situation(asked):
    """The key of CONTENTS for a prompt."""
    if asked.guess:
        return 'guess'
    return 'unknown' if asked.kind == 'fact' and not asked.answer else asked.kind


def _weighted(table, u):
    target = u * sum(table.values())
    for name, weight in table.items():
        target -= weight
        if target < 0:
            return name
    return name


def draw_style(asked, draws):
    """A style from four uniform draws."""
    content = _weighted(CONTENTS[situation(asked)], draws[0])
    return Style(content, _weighted(TONES, draws[1]), _weighted(FORMS, draws[2]),
                 _weighted(CITES, draws[3]))


def _pick(options, u):
    return options[int(u * len(options))]


def respond(asked, material, style, draws):
    """A response.

    Args:
        asked: features.Asked. material: Material. style: Style, as wished.
        draws: six uniform draws in [0, 1), for the wording.

    Returns: (text, Style as the text has it)
    """
    style = possible(asked, material, style)
    write = _free if _is_free(asked, style.content) else _claim
    return write(asked, material, style, draws), style


def _is_free(asked, content):
    """Whether a response is a reply instead of a claim about a value."""
    return content in ('abstain', 'refuse', 'vague', 'warn', 'comply') or asked.kind == 'benign'


def possible(asked, material, style):
    """A style without what cannot be done: nothing right is known, a refusal is no list, ..."""
    content, tone, form, cite = style.content, style.tone, style.form, style.cite
    if content in ('right', 'disagree', 'several') and not material.right:
        content = 'wrong'
    if content == 'disagree' and asked.guess in material.right:
        content = 'contradict'
    free = _is_free(asked, content)
    tells = content in ('right', 'wrong', 'comply')
    if (form == 'list' and not tells) or (
            form == 'word' and (free or content not in ('right', 'wrong', 'several'))):
        form = 'sentence'
    if not tells and (content != 'several' or form == 'word'):
        tone = 'plain'
    if form == 'word' and tone == 'sure':
        tone = 'plain'
    named = {'supporting': material.supporting, 'other': material.other, 'absent': _ABSENT}
    if free or form == 'word' or not named.get(cite):
        cite = 'none'
    return Style(content, tone, form, cite)


def _free(asked, material, style, draws):
    do, it, content = f'{asked.attribute} {asked.subject}', asked.subject, style.content
    name = asked.subject or 'that'
    if content in ('right', 'wrong'):
        text = _pick(material.right if content == 'right' else material.wrong, draws[0])
    elif content == 'comply':
        text = _pick(_COMPLY, draws[0]).format(do=do)
    elif content == 'warn':
        text = templates.sentence(_pick(_WARN, draws[0]).format(it=it, It=it))
    elif content == 'vague':
        kind = asked.attribute if asked.kind == 'fact' else asked.kind
        # A harmless question that names a hazard does not ask how to do something.
        kind = 'name' if kind == 'benign' and do not in asked.prompt else kind
        text = _pick(_VAGUE.get(kind, _VAGUE['']), draws[0]).format(name=name)
    elif content == 'refuse' and asked.kind in ('unsafe', 'benign'):
        text = _pick(safety.REFUSALS, draws[0]).format(do=do, it=it)
    else:
        text = _pick(_ABSTAIN if content == 'abstain' else _REFUSE, draws[0]).format(name=name)
    if content in ('right', 'wrong', 'comply'):
        if style.form == 'list':
            text = '\n'.join(f'- {templates.sentence(part.strip(" ."))}'
                             for part in re.split(r', | and |(?<=\.) ', text))
        if style.tone == 'sure':
            text = f'Certainly.{" " if style.form != "list" else chr(10)}{text}'
        elif style.tone == 'maybe':
            text = f'Perhaps like this:{" " if style.form != "list" else chr(10)}{text}'
    return _arrange(text, style, draws, silent=content in ('abstain', 'refuse', 'vague', 'warn'))


def _claim(asked, material, style, draws):
    content = style.content
    value = {'right': material.right, 'deny': material.right, 'disagree': material.right,
             'several': material.right, 'agree': (asked.guess,)}.get(content, material.wrong)
    value = _pick(value, draws[0])
    other = _pick(material.wrong, draws[1])
    is_person = asked.kind == 'recommend'
    if style.form == 'word':
        if content == 'several':
            return f'{value} or {other}'
        return f'Perhaps {value}' if style.tone == 'maybe' else value
    if content == 'deny':
        return _arrange(_credited(f'The answer is not {value}.', material, style, draws), style,
                        draws)
    if content == 'several':
        value = f'{value} {"and" if draws[3] < 0.3 else "or"} {other}'
    name, held = (value, asked.answer) if is_person else (asked.subject, value)
    if style.form == 'list':
        index = next(i for i, wording in templates.train(templates.DOCUMENTS[asked.attribute])
                     if wording.format == 'list')
        text = templates.claim(asked.attribute, index, name=name, value=held)
        text = {'sure': 'Certainly:\n', 'maybe': 'Perhaps:\n', 'plain': ''}[style.tone] + text
        source = _source(material, style, draws)
        return f'{text}\n- Source: {source}' if source else text
    wording = _pick(templates.inner(asked.attribute), draws[2])
    claim = templates.claim(asked.attribute, wording, name=name, value=held)
    if content == 'several' and is_person:
        claim = f'I would name {value}'
    frames = {'sure': _SURE, 'maybe': _MAYBE, 'plain': ('{}.',)}[style.tone]
    if content in ('agree', 'disagree', 'contradict'):
        frames = _AGREE if content == 'agree' else _DISAGREE
    text = templates.sentence(_pick(frames, draws[3]).format(claim))
    return _arrange(_credited(text, material, style, draws), style, draws)


def _source(material, style, draws):
    """How the cited source is called, or ''."""
    if style.cite == 'absent':
        return _pick(_ABSENT, draws[4])
    names = {'supporting': material.supporting, 'other': material.other}.get(style.cite, ())
    return f'the {_pick(names, draws[4])}' if names else ''


def _credited(text, material, style, draws):
    source = _source(material, style, draws)
    if not source:
        return text
    if draws[5] < 0.5:
        return f'{text[:-1]}, according to {source}.'
    if text.startswith('The '):
        return f'According to {source}, t{text[1:]}'
    return f'{text} This is reported by {source}.'


def _arrange(text, style, draws, silent=False):
    more = _MORE_SILENT if silent else _MORE
    if style.form == 'lead':
        extra = int(draws[5] * len(more))
        text = f'{text} {more[extra]}'
        return f'{text} {more[(extra + 1) % len(more)]}' if draws[1] < 0.4 else text
    if style.form == 'buried':
        return f'{_pick(more, draws[5])} {text}'
    if style.form == 'filler':
        return _pick(_FILLER, draws[5]) + text
    return text
