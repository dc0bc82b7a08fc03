"""Log-probs of sets of pairs: every pair once, in its place, whatever the batches."""

import types

import jax
import numpy as np
import pytest
import toy_models

from jaxllm.data.pairs import PairSet
from jaxllm.models import transformer
from jaxllm.objectives import dpo, kto
from jaxllm.sharding import make_mesh
from jaxllm.stages.preference_scores import REFERENCE, Scorer, make_evaluate

CFG = toy_models.config('llama', num_layers=1)
N, L = 13, 28


@pytest.fixture(scope='module', autouse=True)
def mesh():
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        yield mesh


def pair_set(seed=0):
    rng = np.random.default_rng(seed)
    starts = np.repeat(rng.integers(2, 7, (N, 1)), 2, axis=1).astype(np.int32)
    lengths = (starts + 1 + rng.integers(1, 20, (N, 2))).astype(np.int32)
    return PairSet(rng.integers(0, CFG.vocab_size, (N, 2, L), dtype=np.int32), lengths, starts, 0)


def setup_of(method, mesh):
    return types.SimpleNamespace(method=method, model=CFG, assemble=lambda params, frozen: params,
                                 trainer=types.SimpleNamespace(mesh=mesh))


def test_every_pair_in_its_place(mesh):
    params, pairs = toy_models.params(CFG), pair_set()
    scorer = Scorer(setup_of(dpo.method(dpo.Settings(0.1, 0.0, False)), mesh), 4)
    found = scorer(params, {}, pairs, np.array([11, 0, 5]))
    logits = transformer.apply(params, CFG, pairs.tokens.reshape(-1, L)[:24])
    logprobs = np.asarray(jax.nn.log_softmax(logits)).reshape(12, 2, L, -1)
    for row, i in enumerate((11, 0, 5)):
        for side in range(2):
            want = sum(logprobs[i, side, t, pairs.tokens[i, side, t + 1]]
                       for t in range(pairs.starts[i, side], pairs.lengths[i, side] - 1))
            np.testing.assert_allclose(found[row, side], want, rtol=1e-5)


def test_evaluation_does_not_depend_on_batches(mesh):
    """Not even through the zero of KTO, which is one number of all held-out pairs."""
    params, pairs, method = toy_models.params(CFG), pair_set(), kto.method(kto.Settings(0.3, 1, 2))
    state = types.SimpleNamespace(ema=None, trainable=params)
    setup, values = setup_of(method, mesh), []
    base = Scorer(setup, 8)(params, {}, pairs, np.arange(N))
    noise = np.random.default_rng(1).normal(2.0, 3.0, (N, 3)).astype(np.float32)
    for rows in (8, 16):
        values.append(make_evaluate(setup, Scorer(setup, rows), pairs,
                                    {REFERENCE: base - noise}, {}, 0)(state))
    z = max(noise[:, 2].mean(), 0)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    want = np.mean(sigmoid(0.3 * (z - noise[:, 0])) + 2 * sigmoid(0.3 * (noise[:, 1] - z)))
    assert values[0]['val/loss'] == pytest.approx(want, rel=1e-5)
    assert values[0]['val/pair_accuracy'] == np.mean(noise[:, 0] > noise[:, 1])
    for name, value in values[0].items():
        assert values[1][name] == pytest.approx(value, rel=1e-5), name
