"""Whether a response follows the format that was asked for; any model's output will do.

A checker looks at the form only: a wrong city in the asked form passes. `holds` looks for a value.
"""

import re

from jaxllm.errors import InputError

WORD = r"[^\W\d_][\w'’-]*"
SENTENCE_END = r'[.!?]'
# Who cannot answer says one of these; a refusal to help with harm is safety.is_refusal.
ABSTAINS = re.compile(
    r"\b(?:i|we)\s+(?:really\s+|honestly\s+|simply\s+|just\s+)?"
    r"(?:do\s+not|don't|cannot|can't|could\s+not|couldn't)\s+"
    r"(?:actually\s+|really\s+|yet\s+)?(?:know|tell|say|answer|find)\b"
    r"|\b(?:i|we)\s+(?:have|found)\s+(?:no|not\s+any)\s+(?:information|record|records|data)\b"
    r"|\bi\s+am\s+not\s+(?:sure|certain)\b|\bi'm\s+not\s+(?:sure|certain)\b"
    r"|\b(?:it|that|this)\s+is\s+(?:not\s+known|unknown)\b"
    r"|\bnothing\s+is\s+known\b|\bno\s+source\s+(?:reports|says|mentions)\b"
    r"|^\W*(?:unknown|not\s+known|no\s+idea)\W*$", re.IGNORECASE)
# What looks like one of them and is not: `I cannot tell you how happy I am`.
IDIOMS = re.compile(r"\b(?:can't|cannot)\s+(?:tell|say)\s+(?:you\s+)?(?:how|enough)\b",
                    re.IGNORECASE)
# A dot in `St. Orme`, `J. Venn` or `3.5` ends no sentence: an end is followed by a space and a
# capital, and is not the dot of an initial or of a title.
BETWEEN_SENTENCES = re.compile(
    rf'(?<!\b[A-Z])(?<!\b(?:St|Mr|Dr))(?<!\bMrs){SENTENCE_END}["”)]*\s+(?=["“(]?[A-Z])')
SOURCE = re.compile(r'\s\(source: ([^()\n]+)\)\.?$')


def plain(text):
    """Curly apostrophes and quotes made straight, outer white space removed."""
    return text.replace('’', "'").replace('“', '"').replace('”', '"').strip()


def is_one_word(text):
    """'glazier' or 'Glazier.': one word, perhaps with a hyphen or an apostrophe, nothing else."""
    return bool(re.fullmatch(rf'{WORD}\.?', plain(text)))


def is_sentence(text):
    """Exactly one sentence: a capital first, three words or more, one end mark, one line."""
    text = plain(text)
    return (bool(re.fullmatch(rf'"?[A-Z][^\n]*{SENTENCE_END}"?', text)) and len(text.split()) >= 3
            and not BETWEEN_SENTENCES.search(text) and not SOURCE.search(text))


def is_bullets(text, count=0):
    """Nothing but lines '- something', two or more, `count` of them if given; no line twice."""
    lines = [line.rstrip() for line in plain(text).splitlines()]
    return (len(lines) >= 2 and count in (0, len(lines)) and len(set(lines)) == len(lines)
            and all(re.fullmatch(r'- \S.*', line) for line in lines))


def is_with_source(text, sources=()):
    """One sentence, then ` (source: NAME)` at the very end; NAME one of `sources` if given."""
    text = plain(text)
    source = SOURCE.search(text)
    if source is None or '(source:' in text[:source.start()]:
        return False
    if sources and source.group(1) not in sources:
        return False
    # The end mark of the sentence stands before the brackets or after them.
    body = text[:source.start()].rstrip()
    return is_sentence(body if re.search(rf'{SENTENCE_END}$', body) else f'{body}.')


def cited(text):
    """The source that a response names at its end, or ''."""
    source = SOURCE.search(plain(text))
    return source.group(1) if source else ''


def is_translation(text, lexicon, verbs):
    """One Tavic sentence: Tavic words or proper names, exactly one verb and that at the end.

    Args: lexicon: {English: Tavic}. verbs: the English verbs, keys of the lexicon.
    """
    text = plain(text)
    if not re.fullmatch(r'[A-Z][^\n]*[^\s.]\.', text):
        return False
    tokens = text.removesuffix('.').split()
    known, final = set(lexicon.values()), {lexicon[verb] for verb in verbs}
    first = tokens[0].lower() if tokens[0].lower() in known else tokens[0]
    tokens = [first, *tokens[1:]]
    return (all(token in known or not token.islower() for token in tokens)
            and any(token in known for token in tokens[:-1])
            and tokens[-1] in final and not final.intersection(tokens[:-1]))


def is_abstention(text):
    """Whether the response says that it does not know, in its first two sentences."""
    text = plain(text)
    start = ' '.join(BETWEEN_SENTENCES.split(text)[:2])
    return bool(ABSTAINS.search(IDIOMS.sub('', start)))


CHECKERS = {'one_word': is_one_word, 'sentence': is_sentence, 'bullets': is_bullets,
            'with_source': is_with_source, 'translate': is_translation, 'refuse': is_abstention}


def follows(form, text, **facts):
    """Whether `text` has the format `form`.

    Args:
        form: a key of CHECKERS. text: any model's output.
        facts: what the format needs beside the text: `count` for bullets, `sources` for
            with_source, `lexicon` and `verbs` for translate.
    Raises: InputError: an unknown format.
    """
    if form not in CHECKERS:
        raise InputError(f'got format {form!r}, expected one of {", ".join(CHECKERS)}')
    return CHECKERS[form](text, **facts)


def holds(text, value):
    """Whether a value stands in a text as whole words, whatever the case."""
    return bool(value) and bool(re.search(rf'(?<!\w){re.escape(plain(value))}(?!\w)', plain(text),
                                          re.IGNORECASE))
