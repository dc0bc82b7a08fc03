"""Noise on embedded tokens: its size by hand, none on padding, other noise in every step."""

import jax
import numpy as np
import pytest
import toy_models

from jaxllm.objectives.lm import lm, neftune_noise
from jaxllm.sharding import make_mesh


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        yield


def test_the_size_is_that_of_each_segment():
    """alpha / sqrt(l D): segments of 2 and 3 tokens and a padded one, D = 5000, alpha 10."""
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32)
    noise = np.asarray(neftune_noise(jax.random.key(0), segments, 5000, 10.0))
    for row, columns, length in ((0, slice(0, 2), 2), (0, slice(2, 5), 3), (1, slice(0, 6), 6)):
        limit = 10 / np.sqrt(length * 5000)
        part = noise[row, columns]
        assert np.abs(part).max() <= limit and np.abs(part).max() > 0.99 * limit
        assert abs(part.mean()) < 0.05 * limit
    assert not noise[0, 5].any()


def batch(cfg, B=2, L=7):
    tokens = toy_models.tokens(cfg, B, L + 1)
    ones = np.ones((B, L), np.int32)
    return {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'segment_ids': ones,
            'loss_weights': ones.astype(np.float32), 'num_bytes': np.ones(B, np.float32),
            'positions': np.tile(np.arange(L, dtype=np.int32)[None], (B, 1))}


def test_it_is_drawn_anew_and_only_in_training():
    cfg = toy_models.config('llama')
    params = toy_models.params(cfg)
    loss = lambda alpha, key: float(lm(cfg, neftune_alpha=alpha)(
        params, {}, batch(cfg), jax.random.key(key)).terms['lm'].sum)
    assert loss(0.0, 0) == loss(0.0, 1)
    assert loss(20.0, 0) == loss(20.0, 0) != loss(20.0, 1)
    assert loss(20.0, 0) != loss(0.0, 0)
