"""What the filters of text go by: every threshold, with a default that was measured."""

import dataclasses
import pathlib

from jaxllm.errors import InputError

STEPS = ('exact', 'quality', 'spam', 'unsafe', 'near')
WORLD = 'world'


def _check(name, value, true, expected):
    if not true:
        raise InputError(f'clean.{name}={value} is not usable; it must be {expected}')


@dataclasses.dataclass(frozen=True)
class NearConfig:
    """See near.NearIndex; a pair of likeness 0.8 is compared with probability 0.924."""
    least: float = 0.8         # Jaccard similarity of near copies
    bands: int = 14
    rows: int = 8
    short_words: int = 50      # texts of fewer words are compared by characters

    def __post_init__(self):
        _check('near.least', self.least, 0 < self.least <= 1, 'above 0 and at most 1')
        _check('near.bands', self.bands, self.bands >= 1, 'at least 1')
        _check('near.rows', self.rows, self.rows >= 1, 'at least 1')
        _check('near.short_words', self.short_words, self.short_words >= 5,
               'at least 5, the words of a shingle')


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """A text is dropped if it is below a `min_` or above a `max_`; see quality.problem.

    Looser than Gopher's and C4's limits, which are for web pages: they ask for 50 words, for stop
    words and for sentences, which a text of 14 words or a table need not have.
    """
    min_words: int = 3
    min_letters: float = 0.5         # of the characters that are no space
    min_word_length: float = 2.5     # mean, in letters
    max_word_length: float = 12.0
    max_repeated: float = 0.5        # of the words, in 3-grams that came before in the text
    max_repeated_lines: float = 0.6  # of the characters, in lines that came before
    max_capitals: float = 0.7        # of the letters
    max_garbled: float = 0.01        # of the characters: decoding gone wrong, control characters

    def __post_init__(self):
        _check('quality.min_words', self.min_words, self.min_words >= 0, '0 or more')
        for name in ('min_letters', 'max_repeated', 'max_repeated_lines', 'max_capitals',
                     'max_garbled'):
            value = getattr(self, name)
            _check(f'quality.{name}', value, 0 <= value <= 1, 'a share from 0 to 1')
        _check('quality.min_word_length', self.min_word_length,
               0 <= self.min_word_length < self.max_word_length, 'below max_word_length')


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """Attributes:
        steps: of STEPS, in the order in which they look; the first that objects drops a text.
        spam, unsafe: probability from which the classifier's verdict drops a text.
        labels: what the classifier learns from: 'world' or a JSON-lines file, see labelled.py.
        window: texts that copies are looked for among, the latest ones: what bounds the memory,
            about 3 kB per text with `near`.
        examples: of what was dropped, kept per reason.
        run: a run whose cleaned texts are taken, such as that of the tokenizer; it must have
            cleaned the same sources in the same way. '' = none.
    """
    steps: tuple = STEPS
    near: NearConfig = NearConfig()
    quality: QualityConfig = QualityConfig()
    spam: float = 0.7
    unsafe: float = 0.7
    labels: str = WORLD
    window: int = 1_000_000
    examples: int = 5
    run: str = ''

    def __post_init__(self):
        if not self.steps or len(set(self.steps)) < len(self.steps):
            raise InputError(f'clean.steps={self.steps} is empty or names a filter twice; use '
                             f'some of {", ".join(STEPS)}, or no data.clean at all')
        for name in self.steps:
            if name not in STEPS:
                raise InputError(f'clean.steps: {name!r} is unknown; use some of '
                                 f'{", ".join(STEPS)}')
        for name in ('spam', 'unsafe'):
            value = getattr(self, name)
            _check(name, value, 0 < value <= 1, 'a probability above 0')
        _check('window', self.window, self.window >= 1, 'at least 1')
        _check('examples', self.examples, self.examples >= 0, '0 or more')
        if self.judges and self.labels != WORLD and not pathlib.Path(self.labels).is_file():
            raise InputError(f'clean.labels={self.labels!r} is no file; expected {WORLD!r} or '
                             'JSON lines of {"text": ..., "label": "ok", "spam" or "unsafe"}')

    @property
    def judges(self):
        """The steps that need the classifier."""
        return tuple(step for step in self.steps if step in ('spam', 'unsafe'))
