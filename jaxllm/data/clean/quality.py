"""Whether a text is broken: no language, repetition, a decoding that went wrong.

Ref: the rules of Rae et al. 2021 (Gopher, arXiv 2112.11446, A1.1) and Raffel et al. 2020 (C4, arXiv
1910.10683, 2.2), those that make sense for texts of a dozen words.
"""

import re
import unicodedata

_GRAM = 3
_LEAST_REPETITION = 10  # words: shorter texts repeat nothing worth mentioning
# Thai, Lao, Khmer, Japanese and Chinese write no spaces between words, so that no rule about words
# applies to a text in them.
_UNSPACED = re.compile('[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]')
_UNSPACED_SHARE = 0.3
_LETTERS = re.compile(r'[^\W\d_]+')
# UTF-8 that was read as Windows-1252 or Latin-1, and what a decoder puts for bytes it cannot read.
_MOJIBAKE = re.compile('[\u00c2\u00c3][\u0080-\u00bf\u0152-\u0192\u2010-\u2122]'
                       '|\u00e2[\u0080\u20ac][\u0080-\u00bf\u0090-\u0192\u2010-\u2122]|\ufffd')


def problem(text, config):
    """Why a text is broken, 'kind: number', or ''.

    Args:
      text: str.
      config: settings.QualityConfig.
    """
    visible = [char for char in text if not char.isspace()]
    letters = [char for char in visible if char.isalpha()]
    share = len(letters) / max(len(visible), 1)
    if share < config.min_letters:
        return f'few letters: {share:.2f}'
    garbled = garbled_share(text)
    if garbled > config.max_garbled:
        return f'garbled: {garbled:.3f}'
    capitals = sum(map(str.isupper, letters)) / max(len(letters), 1)
    if capitals > config.max_capitals:
        return f'capitals: {capitals:.2f}'
    if len(_UNSPACED.findall(text)) <= _UNSPACED_SHARE * len(letters):
        if why := _words_problem(text, config):
            return why
    lines = repeated_lines(text)
    return f'repeated lines: {lines:.2f}' if lines > config.max_repeated_lines else ''


def _words_problem(text, config):
    words, runs = text.split(), _LETTERS.findall(text)
    if len(words) < config.min_words:
        return f'too short: {len(words)} words'
    length = sum(map(len, runs)) / max(len(runs), 1)
    if not config.min_word_length <= length <= config.max_word_length:
        return f'word length: {length:.1f}'
    repeated = repeated_words(words)
    return f'repetition: {repeated:.2f}' if repeated > config.max_repeated else ''


def garbled_share(text):
    """Share of characters in wrong decodings, and of control characters."""
    wrong = sum(match.end() - match.start() for match in _MOJIBAKE.finditer(text))
    control = sum(unicodedata.category(char) in ('Cc', 'Co', 'Cn') and char not in '\n\t\r\f'
                  for char in text)
    return (wrong + control) / max(len(text), 1)


def repeated_words(words):
    """Share of the 3-grams of a text that came before in it; 0 for texts of under 10 words."""
    if len(words) < _LEAST_REPETITION:
        return 0.0
    grams = list(zip(*(words[i:] for i in range(_GRAM))))
    return 1 - len(set(grams)) / len(grams)


def repeated_lines(text):
    """Share of the characters of a text in lines of letters that came before in it."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if any(map(str.isalpha, line))]
    seen, again = set(), 0
    for line in lines:
        again += len(line) if line in seen else 0
        seen.add(line)
    return again / max(sum(map(len, lines)), 1)
