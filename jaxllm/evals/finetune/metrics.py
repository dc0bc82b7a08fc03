"""How good an answer is against a reference: the measure is chosen from the training answers."""

import collections
import dataclasses
import json
import re

from jaxllm.evals.answers import normalise

MEASURES = {
    'label': 'the same label (exact match)',
    'number': 'the same number',
    'json': 'share of the fields of the JSON that are right',
    'text': 'words in common with the reference answer (ROUGE-L F1)',
}
_NUMBER = re.compile(r'[-+]?\d[\d,]*(?:\.\d+)?')


def measure_for(answers):
    """Which of MEASURES suits, by the training answers alone.

    'json' if nine in ten parse as JSON; 'number' if nine in ten are a number and at most three
    words more; 'label' if there are at most 20 different ones, each of at most five words, on
    average five times; else 'text'.
    """
    most = 0.9 * len(answers)
    if sum(_json(x) is not None for x in answers) >= most:
        return 'json'
    if sum(_number(x) is not None and len(x.split()) <= 4 for x in answers) >= most:
        return 'number'
    different = {normalise(x) for x in answers}
    if (len(different) <= 20 and len(answers) >= 5 * len(different)
            and all(len(x.split()) <= 5 for x in different)):
        return 'label'
    return 'text'


def score(measure, answer, reference):
    """From 0 to 1 by one of MEASURES."""
    if measure == 'label':
        return float(normalise(answer) == normalise(reference))
    if measure == 'number':
        return float(_number(answer) is not None and _number(answer) == _number(reference))
    if measure == 'json':
        return _fields_right(_json(answer), _json(reference))
    return rouge_l(answer, reference)


def _number(text):
    found = _NUMBER.search(text)
    return float(found[0].replace(',', '')) if found else None


def _json(text):
    text = text.strip().removeprefix('```json').removeprefix('```').removesuffix('```')
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, (dict, list)) else None


def _fields_right(answer, reference):
    if answer is None or reference is None or type(answer) is not type(reference):
        return 0.0
    if isinstance(reference, list):
        return float(answer == reference)
    keys = answer.keys() | reference.keys()
    right = sum(key in answer and key in reference and answer[key] == reference[key]
                for key in keys)
    return right / len(keys) if keys else 1.0


def rouge_l(answer, reference):
    """F1 of the longest common subsequence of words (Lin 2004), beta = 1."""
    a, b = normalise(answer).split(), normalise(reference).split()
    if not a or not b:
        return float(a == b)
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b))


@dataclasses.dataclass(frozen=True)
class Shape:
    """What most training answers look like: the instruction that they follow silently."""
    starts_with: str
    ends_with: str
    lines: str       # 'one', 'several' or ''
    json: bool
    max_words: int   # 95% of the answers are no longer, with a quarter to spare


def shape_of(answers):
    """The Shape that at least nine in ten training answers have."""
    most = 0.9 * len(answers)
    firsts = collections.Counter(x.split()[0] for x in answers if x.split())
    lasts = collections.Counter(x.rstrip()[-1] for x in answers if x.rstrip())
    first, count_first = firsts.most_common(1)[0]
    last, count_last = lasts.most_common(1)[0]
    one = sum('\n' not in x.strip() for x in answers)
    words = sorted(len(x.split()) for x in answers)
    return Shape(first if count_first >= most else '', last if count_last >= most else '',
                 'one' if one >= most else 'several' if len(answers) - one >= most else '',
                 sum(_json(x) is not None for x in answers) >= most,
                 int(1.25 * words[int(0.95 * (len(words) - 1))]) + 1)


def follows(shape, answer):
    """Whether an answer has the Shape."""
    text = answer.strip()
    return bool(text) and (
        (not shape.starts_with or text.split()[0] == shape.starts_with)
        and (not shape.ends_with or text[-1] == shape.ends_with)
        and (not shape.lines or ('\n' in text) == (shape.lines == 'several'))
        and (not shape.json or _json(text) is not None)
        and len(text.split()) <= shape.max_words)


def describe(shape):
    """A Shape in words."""
    parts = [f'begin with {shape.starts_with!r}' if shape.starts_with else '',
             f'end with {shape.ends_with!r}' if shape.ends_with else '',
             {'one': 'have one line', 'several': 'have several lines', '': ''}[shape.lines],
             'are JSON' if shape.json else '', f'have at most {shape.max_words} words']
    return ', '.join(filter(None, parts))
