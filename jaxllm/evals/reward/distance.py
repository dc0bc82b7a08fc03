"""How far a text is from what a reward model was trained on, by what the model itself sees.

    d(x)^2 = (h - mu)^T (S + eps * tr(S) / D * I)^-1 (h - mu) / D

h is the hidden state that the head reads, mu and S its mean and covariance over training responses;
d is about 1 on them. A reward is one number of h, so that much which is strange leaves no trace in
it; the distance looks at all of h.

Ref: Lee et al. 2018 (arXiv 1807.03888), with one class.
"""

import dataclasses

import numpy as np

from jaxllm.errors import InputError

RIDGE = 1e-3  # eps: directions that training hardly uses count, and do not count without end


@dataclasses.dataclass(frozen=True)
class Seen:
    """mu [D] and the inverse of the covariance [D, D] of training responses, float64."""
    mean_D: np.ndarray
    precision_DD: np.ndarray

    def distance(self, features_ND):
        """float64 [N]: d of each row."""
        centred_ND = np.asarray(features_ND, np.float64) - self.mean_D
        squared_N = np.einsum('ND,DE,NE->N', centred_ND, self.precision_DD, centred_ND)
        return np.sqrt(squared_N / len(self.mean_D))


def fit(features_ND):
    """The `Seen` of hidden states of training responses.

    Raises:
      InputError: fewer than two rows, or rows that are all the same.
    """
    features_ND = np.asarray(features_ND, np.float64)
    if len(features_ND) < 2:
        raise InputError(f'{len(features_ND)} training response(s); a covariance takes two or more')
    covariance_DD = np.atleast_2d(np.cov(features_ND, rowvar=False))
    scale, D = np.trace(covariance_DD) / features_ND.shape[1], features_ND.shape[1]
    if not scale > 0:
        raise InputError(f'the hidden states of {len(features_ND)} training responses are all the '
                         'same, so that nothing can be far from them; is the reward model trained?')
    return Seen(features_ND.mean(axis=0),
                np.linalg.inv(covariance_DD + RIDGE * scale * np.eye(D)))
