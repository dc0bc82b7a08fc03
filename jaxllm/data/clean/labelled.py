"""Labelled texts for the classifier: of a world that no model is trained on, or of a file.

The sample of the world has another seed than any world in use, so that names, facts and offers are
others, and only every second invented hazard, so that half of the unsafe texts that a filter meets
are about things it was not told of. The standard library's help topics stand for ordinary text.
"""

import json

from pydoc_data import topics

from jaxllm.data.clean import classifier
from jaxllm.data.clean.settings import WORLD
from jaxllm.errors import InputError
from jaxllm.world import documents
from jaxllm.world.atlas import atlas
from jaxllm.world.hazards import HAZARDS

SEED = 1_000_003
LABELS = ('ok', 'spam', 'unsafe')
_ORDINARY = 12   # every n-th document that is neither spam nor about a hazard
_CUT = 60        # words per piece of a help topic


def judge(labels):
    """The Classifier of clean.labels: 'world' or a file. Raises InputError as `read`."""
    return classifier.train(*zip(*(world_sample() if labels == WORLD else read(labels)),
                                 strict=True))


def world_sample(seed=SEED, parity=0):
    """[(text, label)] of the training documents of a nano world, and of pieces of help topics.

    Args:
      parity: 0 or 1: hazards of even or of odd number.
    """
    known = {subject for number, (_, hazard, harmless, _) in enumerate(HAZARDS)
             if number % 2 == parity for subject in (hazard, harmless)}
    found, ordinary = [], 0
    for row in documents.rows(atlas(seed, 'nano')):
        if row['split'] != 'train' or row['duplicate_of'] or row['near_duplicate_of']:
            continue
        if row['kind'] == 'spam':
            found.append((row['text'], 'spam'))
        elif row['kind'] == 'unsafe':
            if row['subject'] in known:
                found.append((row['text'], 'unsafe' if row['unsafe'] else 'ok'))
        else:
            ordinary += 1
            if ordinary % _ORDINARY == 0:
                found.append((row['text'], 'ok'))
    for _, text in sorted(topics.topics.items()):
        words = text.split()
        found += [(' '.join(words[i:i + _CUT]), 'ok') for i in range(0, len(words), 10 * _CUT)]
    return found


def read(file):
    """[(text, label)] of JSON lines {"text": ..., "label": one of LABELS}.

    Raises:
      InputError: a line that is something else.
    """
    found = []
    with open(file, encoding='utf-8') as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                pair = row['text'], row['label']
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f'{file}:{number}: {error!r}; expected {{"text": ..., "label": '
                                 f'one of {", ".join(LABELS)}}}') from error
            if not isinstance(pair[0], str) or pair[1] not in LABELS:
                raise InputError(f'{file}:{number}: label {pair[1]!r}; expected a text, and one '
                                 f'of {", ".join(LABELS)}')
            found.append(pair)
    return found
