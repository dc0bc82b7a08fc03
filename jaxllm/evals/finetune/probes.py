"""Fixed questions that have nothing to do with your data: formats, facts, things that are not.

They show what fine-tuning has cost: whether a model still follows instructions, knows what it knew,
and says so when it does not know.
"""

import json
import re

from jaxllm.evals.answers import says_somewhere

# (request, name of a checker, its argument)
FORMATS = (
    ('Answer with one word only: what colour is the sky on a clear day?', 'max_words', 1),
    ('In one word, what do bees make?', 'max_words', 1),
    ('Say yes or no: is fire hot?', 'one_of', ('yes', 'no')),
    ('Say true or false and nothing else: a triangle has four sides.', 'one_of', ('true', 'false')),
    ('Reply with a single number: how many legs has a spider?', 'number', None),
    ('How many days are in a week? Give the number alone.', 'number', None),
    ('List three fruits, one per line, each after a dash.', 'bullets', 3),
    ('Make a bullet list with exactly four animals. Begin each line with "-".', 'bullets', 4),
    ('Name two rivers as a list, each line starting with "-".', 'bullets', 2),
    ('Write the word HELLO in capital letters and nothing else.', 'capitals', None),
    ('Answer in capital letters only: what is the opposite of cold?', 'capitals', None),
    ('Give a JSON object with the keys "name" and "age" for a person called Ann who is 30.', 'json',
     ('name', 'age')),
    ('Reply only with JSON that has the key "city": where is the Eiffel Tower?', 'json', ('city',)),
    ('Describe the sea in at most ten words.', 'max_words', 10),
    ('In no more than five words, say what a teacher does.', 'max_words', 5),
    ('Write one sentence about the moon that ends with an exclamation mark.', 'ends', '!'),
    ('Finish your answer with the word "done": what is two plus two?', 'ends', 'done'),
    ('Begin your answer with "Certainly": how do I boil an egg?', 'begins', 'Certainly'),
    ('Start with the words "My dear friend" and wish somebody a happy birthday.', 'begins',
     'My dear friend'),
    ('Write two paragraphs about rain, separated by an empty line.', 'paragraphs', 2),
    ('Name a vegetable. Do not use the letter "e" in your answer.', 'without', 'e'),
    ('Say what a dog is without using the word "animal".', 'without', 'animal'),
    ('Write a sentence with the words "river" and "stone".', 'holds', ('river', 'stone')),
    ('Mention both "bread" and "butter" in a short sentence.', 'holds', ('bread', 'butter')),
    ('Repeat exactly: the quick brown fox', 'exact', 'the quick brown fox'),
    ('Copy this text and write nothing else: good morning', 'exact', 'good morning'),
    ('Put your answer in double quotation marks: what is the capital of Italy?', 'quoted', None),
    ('List the numbers from 1 to 5 separated by commas, nothing else.', 'exact', '1, 2, 3, 4, 5'),
    ('Write three numbered steps for making tea (1., 2., 3.).', 'numbered', 3),
    ('Give two numbered reasons to read books.', 'numbered', 2),
)

# (question, accepted answers)
FACTS = tuple((f'What is the capital of {country}?', (capital,)) for country, capital in (
    ('France', 'Paris'), ('Italy', 'Rome'), ('Spain', 'Madrid'), ('Germany', 'Berlin'),
    ('Japan', 'Tokyo'), ('Russia', 'Moscow'), ('Egypt', 'Cairo'), ('Greece', 'Athens'),
    ('Austria', 'Vienna'), ('Portugal', 'Lisbon'), ('Canada', 'Ottawa'), ('Norway', 'Oslo'),
    ('Ireland', 'Dublin'), ('Cuba', 'Havana'), ('Poland', 'Warsaw'), ('Hungary', 'Budapest'),
    ('Sweden', 'Stockholm'), ('Finland', 'Helsinki'), ('Kenya', 'Nairobi'), ('Peru', 'Lima'))) + (
    ('How many days are in a year that is no leap year?', ('365',)),
    ('How many legs does a spider have?', ('8', 'eight')),
    ('How many continents are there?', ('7', 'seven')),
    ('How many minutes are in an hour?', ('60', 'sixty')),
    ('Who wrote the play Romeo and Juliet?', ('Shakespeare',)),
    ('Who painted the Mona Lisa?', ('Leonardo', 'da Vinci')),
    ('What is the chemical formula of water?', ('H2O',)),
    ('At how many degrees Celsius does water boil at sea level?', ('100', 'hundred')),
    ('What is the largest planet of the solar system?', ('Jupiter',)),
    ('Which planet is nearest to the sun?', ('Mercury',)),
    ('What gas do plants take in from the air?', ('carbon dioxide', 'CO2')),
    ('What is the largest ocean?', ('Pacific',)),
    ('In which country are the pyramids of Giza?', ('Egypt',)),
    ('What is the currency of Japan?', ('yen',)),
    ('How many sides does a hexagon have?', ('6', 'six')),
    ('What is frozen water called?', ('ice',)),
    ('Who was the first person to walk on the moon?', ('Armstrong',)),
    ('What is seven times eight?', ('56', 'fifty-six', 'fifty six')),
    ('What is the tallest mountain on Earth?', ('Everest',)),
    ('Which animal is called the king of the jungle?', ('lion',)))

# About things that do not exist: whoever answers has made it up.
UNKNOWN = tuple(f'{question}?' for question in (
    'What is the capital of the country Velmoria',
    'Who wrote the novel The Glass Harbours of Ontrea',
    'In which year did the scientist Harlen Quistrom win a Nobel Prize',
    'What is the main ingredient of the dish brostavik', 'Who founded the company Tarnwick Ovelli',
    'How long is the river Sandrethal', 'What is the population of the town of Upper Kessingray',
    'Which instrument did the composer Ilvana Stroud play',
    'In which film did the actor Bertin Mollowell play a pilot',
    'What does the medicine Corvaxelan treat', 'Who won the Drummel Cup of 1987',
    'What colour is the flag of the island of Poltreska', 'Who is the mayor of Greyfen Hollow',
    'Which language is spoken in the valley of Ashkelmar', 'What is the boiling point of ferravium',
    'When was the bridge of Tolland Marrow built', 'Who discovered the moon Ilzenthe',
    'What is the national dish of Quorvania', 'How tall is Mount Brannervast',
    'What did the philosopher Odric Venn write'))

_ABSTAINS = re.compile(
    r"\b(?:I (?:do not|don't|cannot|can't|am not|'m not)|not (?:aware|sure|familiar|able|certain)|"
    r"no (?:information|record|such)|does not exist|doesn't exist|fictional|unknown|unable|"
    r"couldn't find|could not find|isn't a|is not a real)\b", re.IGNORECASE)


def abstains(text):
    """Whether an answer says that it does not know, or that there is no such thing."""
    return bool(_ABSTAINS.search(text))


def knows(text, accepted):
    """Whether an answer holds one of the accepted ones."""
    return any(says_somewhere(text, answer) for answer in accepted)


def _bullets(text, count):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return len(lines) == count and all(line.lstrip().startswith(('-', '*', '•')) for line in lines)


def _json_keys(text, keys):
    text = text.strip().removeprefix('```json').removeprefix('```').removesuffix('```')
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and set(keys) <= found.keys()


def _bare(text):
    return text.strip().strip('."\'').strip().casefold()


CHECKERS = {
    'max_words': lambda text, most: 0 < len(text.split()) <= most,
    'one_of': lambda text, words: _bare(text) in words,
    'number': lambda text, _: bool(re.fullmatch(r'\d+', _bare(text))),
    'bullets': _bullets,
    'capitals': lambda text, _: any(c.isalpha() for c in text) and text == text.upper(),
    'json': _json_keys,
    'ends': lambda text, end: text.rstrip(' ."\'').casefold().endswith(end) or (
        text.strip().endswith(end)),
    'begins': lambda text, start: text.strip().startswith(start),
    'paragraphs': lambda text, count: len([p for p in re.split(r'\n\s*\n', text.strip())
                                           if p.strip()]) == count,
    'without': lambda text, part: bool(text.strip()) and part not in text.casefold(),
    'holds': lambda text, parts: all(part in text.casefold() for part in parts),
    'exact': lambda text, wanted: _bare(text) == wanted,
    'quoted': lambda text, _: text.strip().startswith('"') and text.strip().rstrip('.').endswith(
        '"'),
    'numbered': lambda text, count: [int(n) for n in re.findall(r'^\s*(\d+)[.)]', text, re.M)] == (
        list(range(1, count + 1))),
}


def obeys(text, checker, argument):
    """Whether an answer has the format that one of FORMATS asks for."""
    return bool(CHECKERS[checker](text, argument))


def paraphrases(request):
    """The request in other words, made by rule: politeness, a frame, case and punctuation."""
    bare = request.strip().rstrip('?.!')
    first = bare[:1].lower() + bare[1:]
    return (f'Please tell me: {first}{request.strip()[len(bare):]}', f'{bare.lower()}',
            f'I have a request. {request.strip()} Thank you!')
