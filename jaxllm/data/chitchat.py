"""Human ratings of conversations as comparisons: which of several talks on one topic was better?

In chitchat-dataset two strangers talk about a given question, and each conversation as a whole has
one rating of 1 to 10 for witty, interesting and upbeat (of 5,988 of 7,168). More than half of the
ratings are the slider's default, 5 for all three, and say nothing; they are left out. What most
ratings say is whether there was a conversation at all: their correlation with the logarithm of its
length is 0.65. So that a reward model has to read, only conversations of two people with at least
EXCERPT characters take part, and of each only its beginning, whole messages up to that length.
"""

import hashlib
from collections.abc import Iterator

EXCERPT = 400   # characters of a conversation that are shown
TOGETHER = 4    # conversations that are compared
_DEFAULT = 5.0  # of the rating sliders


def rated(talks: dict) -> Iterator[dict]:
    """Records {id, prompt, responses, scores, holdout_group} of {id: talk}.

    The topic is the prompt, excerpts are the responses, the mean of the three ratings is the score.
    Each conversation is in one record only, so that records can be held out alone, though there are
    but 34 topics.
    """
    by_topic = {}
    for key, talk in talks.items():
        ratings = [float(x) for x in (talk.get('ratings') or {}).values()]
        if ratings and any(x != _DEFAULT for x in ratings) and talk.get('prompt'):
            text = excerpt(talk['messages'])
            if text:
                by_topic.setdefault(talk['prompt'], []).append(
                    (hashlib.sha256(key.encode()).hexdigest(), text, sum(ratings) / len(ratings)))
    for topic, found in sorted(by_topic.items()):
        found.sort()
        for first in range(0, len(found) - TOGETHER + 1, TOGETHER):
            keys, texts, scores = zip(*found[first:first + TOGETHER], strict=True)
            if len(set(texts)) == TOGETHER:
                name = f'{topic} {keys[0][:12]}'
                yield {'id': name, 'prompt': topic, 'responses': list(texts),
                       'scores': list(scores), 'holdout_group': name}


def excerpt(groups) -> str:
    """The first whole messages of a conversation, at most EXCERPT characters and one message more;
    '' if it is shorter, or of one person."""
    lines, size, names = [], 0, {}
    for message in (message for group in groups for message in group):
        text = ' '.join(message['text'].split())
        if text:
            who = names.setdefault(message['sender'], 'AB'[min(len(names), 1)])
            lines.append(f'{who}: {text[:EXCERPT]}')
            size += len(lines[-1])
        if size >= EXCERPT:
            return '\n'.join(lines) if len(names) == 2 else ''
    return ''
