"""One step of Adam, opened: by hand, by the optimizer, and as the train step takes it."""

import dataclasses

import jax
import numpy as np
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.evals import adam
from jaxllm.objectives.lm import lm
from jaxllm.sharding import ShardingConfig, make_mesh
from jaxllm.train import state as states
from jaxllm.train.optim import OptimConfig, make_optimizer
from jaxllm.train.step import GuardConfig, guard_state, make_train_step

B, L, LR = 8, 7, 0.02
CFG = toy_models.config('llama', num_layers=2)
OPTIM = OptimConfig('adamw', LR, 'constant', 0, 0.0, 0.0, 0.9, 0.95, 1e-8, 0.1, 0.3, 0.0, 0.95)


def make_batch(seed):
    rng = np.random.default_rng(seed)
    tokens_BL1 = rng.integers(0, CFG.vocab_size, (B, L + 1), dtype=np.int32)
    return {'tokens': tokens_BL1[:, :-1], 'targets': tokens_BL1[:, 1:],
            'segment_ids': np.ones((B, L), np.int32),
            'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
            'loss_weights': np.ones((B, L), np.float32), 'num_bytes': np.full(B, 9.0, np.float32)}


@pytest.fixture(scope='module')
def setup():
    """(mesh, objective, optimizer, state after two steps, batch, the state after a third)."""
    mesh = make_mesh(ShardingConfig(preset='dp'))
    with jax.set_mesh(mesh):
        params = jax.tree.map(jax.numpy.asarray, toy_models.params(CFG))
        objective, optimizer = lm(CFG), make_optimizer(OPTIM, params)
        guard = GuardConfig(0.0, 5, 3)
        step = jax.jit(make_train_step(objective, optimizer, lambda step: np.float32(LR), seed=0,
                                       clip_norm=OPTIM.clip_norm, guard=guard))
        state = states.create(params, optimizer, ema=False, aux={'guard': guard_state(guard)})
        for seed in range(2):
            state, _ = step(state, {}, make_batch(seed))
        batch = make_batch(2)
        after, metrics = step(state, {}, batch)
        return mesh, objective, optimizer, state, batch, after, metrics


@pytest.fixture(scope='module')
def one(setup):
    mesh, objective, optimizer, state, batch, _, _ = setup
    with jax.set_mesh(mesh):
        return adam.adam_step(state.trainable, state.opt_state, objective, batch, optimizer, OPTIM,
                              LR)


def test_by_hand_on_numbers():
    """The first step moves by lr * sign(g), whatever the size of g, and by the decay."""
    param, mu, nu = adam.adam_by_hand([2.0, -1.0], [1e-3, -5.0], [0, 0], [0, 0], 1, lr=0.1, b1=0.9,
                                      b2=0.99, eps=0.0, weight_decay=0.5)
    np.testing.assert_allclose(param, [2 - 0.1 - 0.1, -1 + 0.1 + 0.05])
    np.testing.assert_allclose(mu, [1e-4, -0.5])
    np.testing.assert_allclose(nu, [1e-8, 0.25])
    # Second step, by hand: m = 0.9 * 0.1 + 0.1 * 2, v = 0.99 * 0.01 + 0.01 * 4.
    param, _, _ = adam.adam_by_hand(1.0, 2.0, 0.1, 0.01, 2, lr=0.1, b1=0.9, b2=0.99, eps=0.5,
                                    weight_decay=0.0)
    assert param == pytest.approx(1 - 0.1 * (0.29 / 0.19) / ((0.0499 / 0.0199) ** 0.5 + 0.5))


def test_numpy_equals_optax(one):
    assert 0 < one.difference < 1e-6
    assert one.count == 3
    wrong = dataclasses.replace(one, by_hand=one.before)
    assert wrong.difference > 1e-3


def test_it_is_the_step_that_training_takes(setup, one):
    after, metrics = jax.device_get(setup[5:])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one.after,
                 after.trainable)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one.nu,
                 after.opt_state[0].nu)
    assert one.loss_before == pytest.approx(float(metrics['loss']), rel=1e-5)
    assert one.loss_after < one.loss_before
    norm = np.sqrt(sum((g ** 2).sum() for g in jax.tree.leaves(one.grad)))
    assert norm == pytest.approx(OPTIM.clip_norm, rel=1e-4) and metrics['grad_norm'] > 0.3


def test_numbers_of_single_parameters(one):
    path = 'layers/layer_0/mlp/up/kernel'
    part = one.pick(path)
    assert part['before'].shape == (2, 16, 20) == part['after'].shape
    rows = one.numbers(path, 3)
    assert abs(rows[0]['gradient g']) == pytest.approx(np.abs(part['grad']).max())
    for row in rows:
        assert row['change'] == pytest.approx(row['after'] - row['before'])
        assert row['change'] == pytest.approx(-LR * (row['direction'] + 0.1 * row['before']),
                                              abs=1e-6)
        assert row['direction'] == pytest.approx(row['mean m'] / row['root of mean square'],
                                                 rel=1e-4)
    with pytest.raises(InputError, match="no 'nothing' among layer_0"):
        one.pick('layers/nothing')


def test_repeated_steps_learn_the_batch_by_heart(setup, one):
    mesh, objective, optimizer, state, batch, _, _ = setup
    with jax.set_mesh(mesh):
        losses, others = adam.repeat_steps(state.trainable, state.opt_state, objective, batch,
                                           make_batch(3), optimizer, OPTIM, LR, count=4)
    assert losses.shape == others.shape == (5,)
    np.testing.assert_allclose(losses[:2], [one.loss_before, one.loss_after], rtol=1e-5)
    assert (np.diff(losses) < 0).all() and others[-1] - losses[-1] > others[0] - losses[0]


def test_other_optimizers_are_refused(setup):
    _, objective, optimizer, state, batch, _, _ = setup
    with pytest.raises(InputError, match='muon'):
        adam.adam_step(state.trainable, state.opt_state, objective, batch, optimizer,
                       dataclasses.replace(OPTIM, name='muon'), LR)
