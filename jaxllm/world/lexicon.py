"""Finds what a text asserts: known values, people and sources, negated or not, word by word."""

import re
from typing import NamedTuple

_TOKENS = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)*|[.,;:!?\n]")
_ARTICLES = {'a', 'an', 'the'}
_SENTENCE_ENDS = {'.', '!', '?', '\n'}
_CLAUSE_ENDS = _SENTENCE_ENDS | {',', ';', ':', 'but', 'and', 'however'}
# Before a value, in its clause, these mean that the value is not asserted.
_NEGATORS = {'not', 'never', 'no', 'nor', 'neither', 'without', 'cannot', 'unlike', 'whether', 'if',
             'unknown', 'unclear', 'false', 'untrue', 'wrong', 'incorrect', 'deny', 'denies',
             'denied', 'instead'}
_COPULAS = {'is', 'was', 'are', 'were'}
_DENIALS = {'not', 'never', 'wrong', 'false', 'incorrect', 'untrue'}
# 'no doubt' and 'not only' do not negate what follows them.
_NOT_NEGATING = re.compile(r"\b(?:no doubt|without (?:a |any )?doubt|not only|no question)\b")


class Hit(NamedTuple):
    """A known name in a text. `about`: the person named before it in its sentence, or ''."""

    kind: str
    name: str
    sentence: int
    asserted: bool
    about: str


def tokens(text):
    """Lower-case words and the punctuation that ends clauses; `'s` is dropped.

    >>> tokens("Mara's no baker, is she?")
    ['mara', 'no', 'baker', ',', 'is', 'she', '?']
    """
    found = _TOKENS.findall(text.lower().replace('\u2019', "'"))
    return [t.removesuffix("'s") for t in found] if "'" in text or '\u2019' in text else found


def _phrase(name):
    words = tokens(name)
    return tuple(words[1:] if len(words) > 1 and words[0] in _ARTICLES else words)


class Lexicon:
    """Known names of several kinds, found in a text as whole words, the longest first.

    Args:
        names: {kind: {name as written: canonical name}}, for example the aliases of a source.
    """

    def __init__(self, names):
        self._entries, lengths = {}, {}
        for kind, table in names.items():
            for written, canonical in table.items():
                phrase = _phrase(written)
                if phrase:
                    self._entries.setdefault(phrase, []).append((kind, canonical))
                    lengths.setdefault(phrase[0], set()).add(len(phrase))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def _match(self, words, i):
        for length in self._lengths[words[i]]:
            entries = self._entries.get(tuple(words[i:i + length]))
            if entries:
                return length, entries
        return 1, ()

    def read(self, text):
        """All known names in `text`, and its number of sentences.

        A name is asserted unless its clause negates it before ('is not a baker', 'whether she is
        a baker') or right after ('baker is wrong'), or its sentence is a question.

        Returns: (list of Hit, number of sentences)
        """
        lowered = text.lower()
        if 'rather than' in lowered:
            lowered = lowered.replace('rather than', 'instead')
        words = tokens(_NOT_NEGATING.sub('surely', lowered))
        hits, sentence, begun, negated, about, i = [], 0, False, False, '', 0
        questions = set()
        while i < len(words):
            word = words[i]
            if word in _CLAUSE_ENDS:
                negated = False
                if word in _SENTENCE_ENDS:
                    if word == '?':
                        questions.add(sentence)
                    sentence, begun, about = sentence + begun, False, ''
                i += 1
                continue
            begun = True
            if word in _NEGATORS or word.endswith("n't"):
                negated = True
            length, entries = self._match(words, i) if word in self._lengths else (1, ())
            if entries:
                asserted = not negated and not _denied_after(words, i + length)
                for kind, name in entries:
                    hits.append(Hit(kind, name, sentence, asserted, about))
                    if kind == 'person':
                        about = name
            i += length
        if questions:
            hits = [h._replace(asserted=h.asserted and h.sentence not in questions) for h in hits]
        return hits, sentence + begun


def _denied_after(words, i):
    following = words[i:i + 2]
    if not following:
        return False
    if following[0] in ("isn't", "wasn't", "aren't", "weren't"):
        return True
    return len(following) == 2 and following[0] in _COPULAS and following[1] in _DENIALS
