"""A verifier of numbers: the number of a response against the right one, in exact arithmetic."""

import dataclasses
import math
import re
from fractions import Fraction

from jaxllm.errors import InputError
from jaxllm.rl.verifiers.fields import answers_of

_DIGITS = r'(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,100}(?!\d))'
# 1,234.5  -3  .5  2/3  1 1/2  6e-3  50%: no part of a word, a version or a date.
_NUMBER = re.compile(rf'''
    (?<![\w.,/]) (?<!\d[-\u2212])
    (?P<sign>(?<![\w)])[-+\u2212])? [$\u20ac\u00a3]? \s?
    (?: (?P<whole>\d{{1,9}}) \s (?=\d{{1,9}}/\d) )?
    (?: (?P<top>{_DIGITS}) \s?/\s? (?P<bottom>\d{{1,100}})(?!\d)
      | (?P<decimal>{_DIGITS}(?:\.\d{{1,100}})?|\.\d{{1,100}})
        (?:[eE](?P<exponent>[-+]?\d{{1,3}}))? )
    (?P<percent>\s?%)?
    (?! \w | /\d | \.\d | ,\d | [-\u2212]\d )''', re.VERBOSE)
_LATEX_FRACTION = re.compile(r'\\[dt]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}')
_BOXED = re.compile(r'\\boxed\s*\{')


@dataclasses.dataclass(frozen=True)
class Number:
    """field: of the record, with the right number or a list of them.

    where: which number of the response counts: 'last', the 'only' one (two different numbers are
      wrong), or the last one 'boxed' as \\boxed{...}.
    absolute, relative: tolerances; right is |x - answer| <= max(absolute, relative * |answer|).
    """
    field: str = 'answer'
    where: str = 'last'
    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self):
        if self.where not in ('last', 'only', 'boxed'):
            raise InputError(f'number where={self.where!r}: expected last, only or boxed')
        if not (0 <= self.absolute < math.inf and 0 <= self.relative < math.inf):
            raise InputError(f'number tolerances absolute={self.absolute}, '
                             f'relative={self.relative}: expected finite numbers from 0')


def number(records, settings: Number):
    """1 where the number of the response is right, else 0; no number is wrong.

    Numbers are integers with or without thousands separators (1,234), decimals (.5, 1.50, 6e-3),
    fractions (3/4, 1 1/2, \\frac{3}{4}), with a sign (a hyphen between digits is none), a currency
    before or a percent sign behind, which means hundredths. 1/2 and 0.5 are equal.
    """
    return [float(_is_right(record, settings)) for record in records]


def _is_right(record, settings):
    found = read_number(record.response, settings.where)
    if found is None:
        return False
    for text in answers_of(record, settings.field):
        right = read_number(text, 'only')
        if right is None:
            raise InputError(f'the field {settings.field!r} of a record is {text!r}, which is not '
                             'one number')
        if abs(found - right) <= max(Fraction(settings.absolute),
                                     Fraction(settings.relative) * abs(right)):
            return True
    return False


def read_number(text, where='last'):
    """The Fraction that a text gives as its last, only or boxed number, or None."""
    if where == 'boxed':
        text = _last_boxed(text)
    found = numbers_in(text)
    if not found or where != 'last' and len(set(found)) > 1:
        return None
    return found[-1]


def numbers_in(text):
    """All numbers of a text as Fractions, in order."""
    text = text.replace('\\%', '%').replace('\\$', '$').replace('\\,', '').replace('{,}', ',')
    text = _LATEX_FRACTION.sub(r'\1/\2', text)
    return [value for value in map(_value, _NUMBER.finditer(text)) if value is not None]


def _value(match):
    plain = lambda name: match[name].replace(',', '')
    if match['top']:
        if not int(match['bottom']):
            return None
        value = int(match['whole'] or 0) + Fraction(int(plain('top')), int(match['bottom']))
    else:
        value = Fraction(plain('decimal')) * Fraction(10) ** int(match['exponent'] or 0)
    value = value / 100 if match['percent'] else value
    return -value if match['sign'] in ('-', '\u2212') else value


def _last_boxed(text):
    """What stands in the braces of the last complete \\boxed{...}, or ''."""
    for start in reversed([match.end() for match in _BOXED.finditer(text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += (text[end] == '{') - (text[end] == '}')
            if not depth:
                return text[start:end]
    return ''
