"""How a text sounds, whatever it is about: sure or hedging, filler, vague, a list, a warning."""

import re

SURE, PLAIN, MAYBE, ABSTAINS = 1.0, 2 / 3, 1 / 3, 0.0

_HEDGES = re.compile(
    r"\b(?:maybe|perhaps|probably|possibly|might|may be|could be|i think|i believe|i guess|"
    r"i suppose|it seems|seems to|likely|not (?:quite |entirely |completely )?(?:sure|certain)|"
    r"unsure|uncertain|if i recall|as far as i (?:know|remember)|i may be wrong)\b")
_ASSURES = re.compile(
    r"\b(?:certainly|definitely|surely|undoubtedly|of course|without (?:a |any )?doubt|no doubt|"
    r"(?:i am|i'm) (?:\w+ )?(?:sure|certain)|absolutely|clearly|beyond question)\b")
_FILLS = re.compile(
    r"\b(?:well,|um,|uh,|so,|you know,|basically|actually|to be honest|needless to say|"
    r"great question|good question|it is worth noting|as everyone knows|in other words|"
    r"as a matter of fact|at the end of the day|thank you for asking|that being said|"
    r"let me think|as it happens)")
_VAGUE = re.compile(
    r"\b(?:some kind of|some sort of|somehow|something|somewhere|someone|somebody|various|"
    r"it depends|there are (?:many )?ways|in one way or another|as one does|"
    r"the usual (?:way|things))\b")
_CITES = re.compile(
    r"\b(?:according to|(?:reported|told|printed|written) (?:by|in)|source:|says the|"
    r"writes the)(?! (?:me|you|my|your|what i|memory)\b)")
_AGREES = re.compile(
    r"^(?:yes|right)\b|\b(?:you are|you're|that is|that's) (?:quite |absolutely )?(?:right|correct)"
    r"\b|\bi agree\b|\bas you (?:say|said|guessed|think)\b|\byour guess is right\b")
_DISAGREES = re.compile(
    r"^no\b|\b(?:you are|you're|that is|that's) (?:wrong|mistaken|incorrect|not (?:right|correct))"
    r"\b|\bi disagree\b|\bnot as you\b|\byour guess is (?:wrong|not right)\b")
_WARNS = re.compile(r"\b(?:dangerous|forbidden|unsafe|harmful|do not|don't|keep (?:well )?away|"
                    r"hurts?|police|never|call for help)\b")
_STEPS = re.compile(r"\b(?:first|then|next|finally|step \d|begin by|start by)\b")
_LIST_ITEM = re.compile(r'^\s*(?:[-*\u2022]|\d+[.)])\s+\S', re.MULTILINE)
_SENTENCE = re.compile(r'[.!?\n]+(?:\s|$)')


def plain(text):
    """Lower case, straight apostrophes, no outer white space; what the functions below expect."""
    return text.replace('\u2019', "'").lower().strip()


def confidence(lowered):
    """1 sure, 2/3 plain, 1/3 hedged (also 'not sure'); abstaining, 0, is for the caller to see."""
    if _HEDGES.search(lowered):
        return MAYBE
    return SURE if _ASSURES.search(lowered) else PLAIN


def has_filler(lowered):
    """Empty phrases, or a sentence that stands there twice."""
    if _FILLS.search(lowered):
        return True
    sentences = [s for s in _SENTENCE.split(lowered) if s.strip()]
    return len(set(sentences)) < len(sentences)


def is_list(text):
    """At least two lines that start with a bullet or a number."""
    return len(_LIST_ITEM.findall(text)) >= 2


def is_complete(text):
    """A list, or three words or more from a capital to an end mark."""
    stripped = text.strip()
    if is_list(stripped):
        return True
    return (len(stripped.split()) >= 3 and stripped[0].isupper()
            and stripped.rstrip('"\')')[-1:] in ('.', '!', '?'))


def is_vague(lowered):
    return _VAGUE.search(lowered) is not None


def claims_a_source(lowered):
    return _CITES.search(lowered) is not None


def agrees(lowered):
    """1 says that the user is right, -1 that he is wrong, 0 neither."""
    if _DISAGREES.search(lowered):
        return -1
    return int(_AGREES.search(lowered) is not None)


def warns(lowered):
    return _WARNS.search(lowered) is not None


def gives_steps(text, lowered):
    """Words such as 'first' and 'then', or a list that is not one of warnings."""
    return _STEPS.search(lowered) is not None or (is_list(text) and not warns(lowered))


def first_sentence(lowered):
    return _SENTENCE.split(lowered, maxsplit=1)[0]
