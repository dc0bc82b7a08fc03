"""A small classifier of text: logistic regression on hashed words and pairs of words.

    p(label | text) = sigmoid(w . x + b),  x_f = 1 / sqrt(n) for each of the n features f of a text

One such regression per label, against all the rest, with an L2 penalty. A feature is a word in
lower case (with digits as 0 and the punctuation of advertisements as words) or a pair of adjacent
ones. The vector of a text has length 1, so that a few words of a long text weigh little.
"""

import dataclasses
import functools
import re
import zlib

import numpy as np
import scipy.optimize
import scipy.sparse
import scipy.special

from jaxllm.errors import InputError

_SIZE = 1 << 16
_WORD = re.compile(r"[^\W\d_]+|\d+|[!$%]")
_PENALTY = 1e-3


@dataclasses.dataclass(frozen=True)
class Classifier:
    """weights: {label: [65,536] float32}; biases: {label: float}."""
    weights: dict
    biases: dict

    def probability(self, text, label):
        """p(label | text)."""
        found = features(text)
        value = self.biases[label] + float(self.weights[label][found].sum()) / len(found)**0.5
        return float(1 / (1 + np.exp(-np.clip(value, -30, 30))))


@functools.lru_cache(maxsize=1)  # one text is asked about once per label
def features(text):
    """Sorted distinct numbers of the features of a text, at least one."""
    words = []
    for match in _WORD.finditer(text):
        word = match.group()
        if word.isupper() and len(word) > 3:
            words.append('CAPITALS')
        words.append('0' if word.isdigit() else word.lower())
    pairs = [f'{a} {b}' for a, b in zip(['', *words], [*words, ''])]
    return np.unique([zlib.crc32(name.encode()) % _SIZE for name in (*words, *pairs)])


def train(texts, labels):
    """The Classifier of labelled texts; the same for the same texts in the same order.

    Args:
      texts: str each.
      labels: one per text; 'ok' is what no regression is for.

    Raises:
      InputError: no text of 'ok', or none of anything else.
    """
    kinds = sorted(set(labels) - {'ok'})
    if not kinds or 'ok' not in labels:
        raise InputError(f'the labelled texts have the labels {sorted(set(labels))}; expected '
                         "'ok' and at least one other")
    found = [features(text) for text in texts]
    sizes = np.array([len(x) for x in found])
    # Features that no text has keep the weight 0, which the penalty would give them anyway.
    columns, places = np.unique(np.concatenate(found), return_inverse=True)
    matrix = scipy.sparse.csr_matrix(
        (np.repeat(1 / np.sqrt(sizes), sizes), places, np.concatenate([[0], np.cumsum(sizes)])),
        (len(texts), len(columns)))
    weights, biases = {}, {}
    for kind in kinds:
        weights[kind] = np.zeros(_SIZE, np.float32)
        weights[kind][columns], biases[kind] = _fit(
            matrix, np.array([x == kind for x in labels], float))
    return Classifier(weights, biases)


def _fit(matrix, targets):
    """(weights, bias) of the least penalised cross-entropy; both classes weigh the same."""
    weight = np.where(targets == 1, 0.5 / targets.sum(), 0.5 / (1 - targets).sum())

    def loss(point):
        value = matrix @ point[:-1] + point[-1]
        gradient = weight * (scipy.special.expit(value) - targets)
        total = weight @ (np.logaddexp(0, value) - targets * value)
        slope = np.append(matrix.T @ gradient + _PENALTY * point[:-1], gradient.sum())
        return total + _PENALTY / 2 * (point[:-1] @ point[:-1]), slope

    found = scipy.optimize.minimize(loss, np.zeros(matrix.shape[1] + 1), jac=True,
                                    method='L-BFGS-B', options={'maxiter': 100}).x
    return found[:-1].astype(np.float32), float(found[-1])
