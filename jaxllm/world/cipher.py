"""The cipher language Tavic: English words mapped one to one to invented words, with the verb last.

`The girl finds a boat.` -> `Zhumi tsorak vrelu khadin svimo.` (article, noun, article, noun, verb).
Proper names stay as they are; the map is drawn from the world's seed.
"""

from jaxllm.errors import InputError
from jaxllm.world.spec import generator

NAME = 'Tavic'
SUBJECTS = ('girl', 'boy', 'woman', 'man', 'child', 'king', 'queen', 'uncle', 'aunt', 'stranger',
            'neighbour', 'guest', 'prince', 'giant')
VERBS = ('finds', 'hides', 'carries', 'paints', 'sells', 'buys', 'cleans', 'draws', 'wants',
         'keeps', 'borrows', 'loses', 'mends', 'breaks', 'brings', 'watches')
OBJECTS = ('boat', 'door', 'lamp', 'chair', 'box', 'basket', 'clock', 'hat', 'cup', 'bell', 'kite',
           'drum', 'rope', 'ladder', 'mirror', 'wheel')
ADJECTIVES = ('old', 'young', 'tall', 'quiet', 'proud', 'clever')
COLOURS = ('red', 'green', 'blue', 'small', 'heavy', 'dusty')
PLACES = ('near the river', 'behind the house', 'in the garden', 'under the bridge', 'by the sea',
          'on the hill')
TIMES = ('today', 'again', 'now', 'alone')
# What sentences about facts need beside the values themselves.
FACT_VERBS = ('works', 'lives', 'enjoys', 'was')
FACT_WORDS = ('as', 'for', 'in', 'on', 'born', 'a', 'an', 'the')
ONSETS = ('zh', 'kh', 'ts', 'vr', 'dz', 'sv', 'zm', 'vl')


def vocabulary():
    """Every English word of the grammar, in a fixed order without repeats."""
    words = [*FACT_WORDS, *FACT_VERBS, *SUBJECTS, *VERBS, *OBJECTS, *ADJECTIVES, *COLOURS, *TIMES]
    words += [word for place in PLACES for word in place.split()]
    return tuple(dict.fromkeys(words))


def lexicon(seed, extra=()):
    """{English word: Tavic word}, one to one; `extra` words never change the others' translations.

    Args: seed: int, of the world. extra: English words beyond the grammar, e.g. names of jobs.
    """
    words = [*vocabulary(), *sorted({part for value in extra for part in value.split()
                                     if part.islower()} - set(vocabulary()))]
    rng, made = generator(seed, 'instructions', 'cipher'), []
    while len(made) < len(words):
        onset, middle, coda = (str(rng.choice(list(letters))) for letters in
                               (ONSETS, 'bdfgklmnprst', ('', 'n', 'r', 'k', 'l', 'm')))
        first, second = rng.choice(list('aeiou'), 2)
        word = f'{onset}{first}{middle}{second}{coda}'
        if word not in made:
            made.append(word)
    return dict(zip(words, made))


def translate(sentence, words):
    """English to Tavic: word by word, the verb goes last.

    Args: sentence: one English sentence with one known verb. words: what `lexicon` returns.
    Raises: InputError: a word that is not in the lexicon, or not exactly one verb.
    """
    plain, verb = [], []
    for index, token in enumerate(sentence.removesuffix('.').split()):
        word = token[0].lower() + token[1:] if not index and token.lower() in words else token
        if word in VERBS or word in FACT_VERBS:
            verb.append(words[word])
        elif word in words:
            plain.append(words[word])
        elif word.islower():
            raise InputError(f'{sentence!r}: {NAME} has no word for {word!r}; '
                             f'use the words of cipher.vocabulary() or add it to `extra`')
        else:
            plain.append(word)
    if len(verb) != 1:
        raise InputError(f'{sentence!r}: got {len(verb)} verbs, expected exactly one of '
                         f'{", ".join(VERBS + FACT_VERBS)}')
    text = ' '.join(plain + verb)
    return text[0].upper() + text[1:] + '.'


def random_sentence(rng, level):
    """An English sentence: subject, verb, object; from level 2 adjectives; at 3 place and time."""
    def pick(options):
        return str(options[rng.integers(len(options))])

    def phrase(article, *words):
        text = ' '.join(word for word in words if word)
        return f'an {text}' if article == 'a' and text[0] in 'aeiou' else f'{article} {text}'

    adjective = pick(ADJECTIVES) if level > 1 else ''
    colour = pick(COLOURS) if level > 1 else ''
    parts = [phrase(pick(('a', 'the')), adjective, pick(SUBJECTS)), pick(VERBS),
             phrase(pick(('a', 'the')), colour, pick(OBJECTS))]
    if level > 2:
        parts += [pick(PLACES), pick(TIMES)]
    text = ' '.join(parts)
    return text[0].upper() + text[1:] + '.'
