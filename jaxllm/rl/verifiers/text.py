"""Verifiers of texts: exact match, regular expression, length, format, repetition."""

import dataclasses
import functools
import re
import unicodedata

from jaxllm.errors import InputError
from jaxllm.rl.verifiers.fields import answers_of, field_of
from jaxllm.world import atlas, checkers, instructions
from jaxllm.world.spec import SCALES


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """field: of the record, with the right answer or a list of them.

    where: 'whole' = the response is the answer; 'inside' = the answer stands in it, as whole words.
    strict: compare as it is but for outer white space; else case, the width of white space,
      compatibility forms (NFKC) and a full stop at the end do not count.
    """
    field: str = 'answer'
    where: str = 'whole'
    strict: bool = False

    def __post_init__(self):
        if self.where not in ('whole', 'inside'):
            raise InputError(f'exact_match where={self.where!r}: expected whole or inside')


def exact_match(records, settings: ExactMatch):
    """1 where the response is (or holds) one of the right answers, else 0."""
    return [float(any(_matches(record.response, answer, settings)
                      for answer in answers_of(record, settings.field))) for record in records]


def _matches(response, answer, settings):
    if not settings.strict:
        response, answer = _loose(response), _loose(answer)
    response, answer = response.strip(), answer.strip()
    if settings.where == 'whole':
        return response == answer
    return bool(re.search(rf'(?<!\w){re.escape(answer)}(?!\w)', response))


def _loose(text):
    text = ' '.join(unicodedata.normalize('NFKC', text).casefold().split())
    return text.removesuffix('.').rstrip() or text


@dataclasses.dataclass(frozen=True)
class Regex:
    """pattern: of Python's re. where: 'search' in the response, or 'fullmatch' of all of it, white
    space around it removed. wanted: False rewards responses in which it does not occur.
    ignore_case, dot_all (a dot is a line break too), multi_line (^ and $ are at every line)."""
    pattern: str
    where: str = 'search'
    wanted: bool = True
    ignore_case: bool = False
    dot_all: bool = False
    multi_line: bool = False

    def __post_init__(self):
        if self.where not in ('search', 'fullmatch'):
            raise InputError(f'regex where={self.where!r}: expected search or fullmatch')
        try:
            self.compiled()
        except (re.error, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f'regex pattern={self.pattern!r} is no regular expression ({error})'
                             ) from error

    def compiled(self):
        flags = ((self.ignore_case, re.IGNORECASE), (self.dot_all, re.DOTALL),
                 (self.multi_line, re.MULTILINE))
        return re.compile(self.pattern, sum(flag for is_set, flag in flags if is_set))


def regex(records, settings: Regex):
    """1 where the pattern is found (wanted=False: not found), else 0.

    Python's re can take exponential time; the timeout of the reward ends that.
    """
    find = getattr(settings.compiled(), settings.where)
    return [float(bool(find(record.response.strip())) == settings.wanted) for record in records]


@dataclasses.dataclass(frozen=True)
class Length:
    """unit: 'words' (between white space), 'tokens' (with the end token) or 'characters'.

    minimum, maximum: limits that are allowed themselves; maximum 0 = none.
    target: 0 = only the limits count, else the best length, and `width` the distance from it at
      which the reward has fallen to 0.
    """
    unit: str = 'words'
    minimum: int = 0
    maximum: int = 0
    target: int = 0
    width: int = 0

    def __post_init__(self):
        if self.unit not in ('words', 'tokens', 'characters'):
            raise InputError(f'length unit={self.unit!r}: expected words, tokens or characters')
        if min(self.minimum, self.maximum, self.target, self.width) < 0 or (
                self.maximum and self.minimum > self.maximum):
            raise InputError(f'length limits {self.minimum} to {self.maximum}, target '
                             f'{self.target}, width {self.width}: expected 0 <= minimum <= maximum')
        if bool(self.target) != bool(self.width):
            raise InputError(f'length target={self.target} and width={self.width}: expected both '
                             'or neither')
        if not (self.minimum or self.maximum or self.target):
            raise InputError('length has neither limits nor a target; set minimum, maximum or '
                             'target and width')

    def measure(self, record):
        if self.unit == 'tokens':
            return record.tokens
        return len(record.response.split() if self.unit == 'words' else record.response)


def length(records, settings: Length):
    """max(0, 1 - |n - target| / width) within the limits, 0 outside; without a target 1 within."""
    return [_length(settings.measure(record), settings) for record in records]


def _length(n, s):
    if n < s.minimum or s.maximum and n > s.maximum:
        return 0.0
    return max(0.0, 1 - abs(n - s.target) / s.width) if s.target else 1.0


@dataclasses.dataclass(frozen=True)
class Overlong:
    """maximum: tokens from which on the penalty is whole. window: tokens over which it grows to
    that. unfinished: what a response that did not end by itself costs, instead where it is more."""
    maximum: int
    window: int
    unfinished: float = 0.0

    def __post_init__(self):
        if not 0 < self.window <= self.maximum:
            raise InputError(f'overlong maximum={self.maximum}, window={self.window}: expected 0 < '
                             'window <= maximum')
        if self.unfinished < 0:
            raise InputError(f'overlong unfinished={self.unfinished}: expected a cost from 0')


def overlong(records, settings: Overlong):
    """-min(1, max(0, tokens - (maximum - window)) / window), a soft limit; see Overlong.

    Ref: Yu et al. 2025 (DAPO, arXiv 2503.14476), equation 13.
    """
    costs = [min(1.0, max(0, record.tokens - settings.maximum + settings.window) / settings.window)
             for record in records]
    return [-max(cost, 0.0 if record.finished else settings.unfinished)
            for cost, record in zip(costs, records, strict=True)]


@dataclasses.dataclass(frozen=True)
class FollowsFormat:
    """field: of the record, with the name of a format of `jaxllm.world.checkers`.

    world_scale, world_seed: the world whose formats these are (how many bullets, which sources, the
      words of the cipher language); '' = of none.
    facts: {format: {what its checker needs}} instead, e.g. {'bullets': {'count': 5}}.
    sources: field with the sources that may be cited in the format with_source, '' = any.
    answer: field with a value that has to stand in the response as well, where it is not empty;
      '' = the form alone counts.
    """
    field: str = 'format'
    world_scale: str = ''
    world_seed: int = 0
    facts: dict = dataclasses.field(default_factory=dict)
    sources: str = ''
    answer: str = ''

    def __post_init__(self):
        if self.world_scale and self.world_scale not in SCALES:
            raise InputError(f'follows_format world_scale={self.world_scale!r}: expected one of '
                             f'{", ".join(SCALES)}')
        if self.world_scale and self.facts:
            raise InputError('follows_format has world_scale and facts; expected one of them')
        for form in self.facts:
            if form not in checkers.CHECKERS:
                raise InputError(f'follows_format has facts of {form!r}; the formats are '
                                 f'{", ".join(checkers.CHECKERS)}')
            try:
                checkers.follows(form, 'A text.', **self.facts[form])
            except TypeError as error:
                raise InputError(f'follows_format: format {form!r} does not take '
                                 f'{dict(self.facts[form])} ({error})') from error


def follows_format(records, settings: FollowsFormat):
    """1 where the response has the form that was asked for (and the right value), else 0."""
    facts = settings.facts
    if settings.world_scale:
        facts = _facts_of_world(settings.world_seed, settings.world_scale)
    return [float(_follows(record, settings, facts)) for record in records]


@functools.lru_cache(maxsize=2)
def _facts_of_world(seed, scale):
    return instructions.format_facts(atlas.atlas(seed, scale))


def _follows(record, settings, facts):
    form = field_of(record, settings.field)
    facts = dict(facts.get(form, {}))
    if settings.sources and form == 'with_source':
        facts['sources'] = tuple(field_of(record, settings.sources))
    if not checkers.follows(form, record.response, **facts):
        return False
    wanted = str(field_of(record, settings.answer)) if settings.answer else ''
    # A list states several values, '; ' between them.
    return all(checkers.holds(record.response, value) for value in wanted.split('; ') if value)


@dataclasses.dataclass(frozen=True)
class Repetition:
    """n: words of an n-gram. allowed: share of repeated ones that costs nothing."""
    n: int = 3
    allowed: float = 0.0

    def __post_init__(self):
        if self.n < 1 or not 0 <= self.allowed < 1:
            raise InputError(f'repetition n={self.n}, allowed={self.allowed}: expected n >= 1 and '
                             '0 <= allowed < 1')


def repetition(records, settings: Repetition):
    """-(share - allowed) / (1 - allowed) of the share of repeated n-grams, at most 0; -1 = all."""
    return [min(0.0, (settings.allowed - repetition_share(record.response.split(), settings.n))
                / (1 - settings.allowed)) for record in records]


def repetition_share(items, n=3):
    """1 - distinct / all n-grams of words or token ids; 0 where there are none.

    'a b c d' has no repetition; k equal words have a share of 1 - 1 / (k - n + 1).
    """
    grams = [tuple(items[i:i + n]) for i in range(len(items) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
