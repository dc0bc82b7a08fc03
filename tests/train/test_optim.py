"""Optimisers against updates computed by hand, schedules at their corners."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.train import optim

pytestmark = pytest.mark.usefixtures('mesh')

CONFIG = optim.OptimConfig(
    name='adamw', lr=0.5, schedule='cosine', warmup_steps=4, decay_share=0.25, final_lr_share=0.1,
    b1=0.9, b2=0.96, eps=1e-3, weight_decay=0.3, clip_norm=1.0, ema_decay=0.0, muon_momentum=0.95)


def _lr(steps, **changes):
    lr = optim.schedule(dataclasses.replace(CONFIG, **changes), num_steps=24)
    return [float(lr(jnp.int32(step))) for step in steps]


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_warm_up_is_linear_and_never_zero(name):
    np.testing.assert_allclose(_lr(range(5), schedule=name), [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    assert _lr([0], schedule=name, warmup_steps=0) == [0.5]


def test_schedules_by_hand():
    """Of 24 steps 4 are warm-up: step 14 is the middle of the other 20; 'wsd' decays from 18 on."""
    steps = [4, 14, 18, 21, 24, 30]
    for name, want in (('cosine', [0.5, 0.275, None, None, 0.05, 0.05]),
                       ('linear', [0.5, 0.275, 0.185, None, 0.05, 0.05]),
                       ('wsd', [0.5, 0.5, 0.5, 0.275, 0.05, 0.05]),
                       ('constant', [0.5] * 6)):
        for step, got, value in zip(steps, _lr(steps, schedule=name), want, strict=True):
            assert value is None or np.isclose(got, value, rtol=1e-5), (name, step, got)
    # A quarter through the cosine: 0.1 + 0.9 * (1 + cos(pi / 4)) / 2 of the peak.
    np.testing.assert_allclose(_lr([9]), [0.5 * (0.1 + 0.45 * (1 + 2 ** -0.5))], rtol=1e-5)


def test_a_warm_up_as_long_as_the_run_is_an_error():
    with pytest.raises(InputError, match='warmup_steps=24'):
        _lr([0], warmup_steps=24)


@pytest.mark.parametrize('wrong', [
    {'name': 'sgd'}, {'schedule': 'step'}, {'lr': 0.}, {'eps': 0.}, {'b1': 1.}, {'ema_decay': 1.},
    {'decay_share': 1.5}, {'final_lr_share': -0.1}, {'warmup_steps': -1}, {'weight_decay': -1.},
    {'clip_norm': -1.}])
def test_values_that_make_no_sense_are_errors(wrong):
    with pytest.raises(InputError, match=f'optim.{next(iter(wrong))}'):
        dataclasses.replace(CONFIG, **wrong)


def _model():
    # Norms, biases, embeddings, positions and matrices; the stacked norms have two axes.
    cfg = toy_models.config('gpt2', num_layers=2)
    return jax.tree.map(jnp.asarray, toy_models.params(cfg))


def _directions(config, params, gradients):
    """Directions of the last of a list of gradients."""
    optimizer = optim.make_optimizer(config, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grads in gradients:
        directions, state = update(grads, state, params)
    return directions


def _random_like(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)


def _decays(path):
    return path[-1].key in ('kernel', 'tokens', 'positions')


def test_adamw_by_hand():
    """Two steps of m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, both freed of their bias, and
    decay that does not pass through the moments."""
    params = _model()
    one, two = _random_like(params, 0), _random_like(params, 1)
    seen = {True: 0, False: 0}

    def check(path, direction, p, g, h):
        m, v = 0.9 * 0.1 * g + 0.1 * h, 0.96 * 0.04 * g ** 2 + 0.04 * h ** 2
        want = (m / (1 - 0.9 ** 2)) / (np.sqrt(v / (1 - 0.96 ** 2)) + 1e-3)
        if _decays(path):
            want = want + 0.3 * p
        seen[_decays(path)] += 1
        np.testing.assert_allclose(direction, want, rtol=1e-4, atol=1e-5, err_msg=str(path))

    jax.tree_util.tree_map_with_path(check, _directions(CONFIG, params, [one, two]), params, one,
                                     two)
    assert seen == {True: 8, False: 12}


def _matrix(path, x):
    """A layer's weight [in, out], how Muon should see it."""
    name = path[-2].key
    return np.reshape(x, (-1, x.shape[-1]) if name in ('o', 'down') else (x.shape[0], -1))


@pytest.fixture(scope='module')
def muon(mesh):
    """(parameters, gradients, directions) without weight decay."""
    del mesh
    params = _model()
    # Gradients of ill-conditioned matrices, and a first layer a thousand times as steep.
    grads = jax.tree.map(lambda g: np.linspace(0.1, 1, g.shape[-1]) * np.array(g),
                         _random_like(params, 0))
    grads['layers'] = jax.tree.map(
        lambda g: g * jnp.array([1e3, 1.]).reshape(2, *[1] * (g.ndim - 1)), grads['layers'])
    config = dataclasses.replace(CONFIG, name='muon', weight_decay=0., eps=1e-8)
    return params, grads, _directions(config, params, [grads])


def _leaves(*trees):
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(trees[0])]
    return zip(paths, *(jax.tree.leaves(tree) for tree in trees), strict=True)


def test_muon_orthogonalises_each_layer(muon):
    """u v^T of g = u s v^T, times 0.2 sqrt(max(in, out)): the size that AdamW's updates have."""
    checked = 0
    for path, grads, directions in _leaves(muon[1], muon[2]):
        if path[0].key != 'layers' or path[-1].key != 'kernel':
            continue
        for grad, direction in zip(grads, directions, strict=True):
            grad, direction = _matrix(path, grad), _matrix(path, direction)
            scale = 0.2 * max(grad.shape) ** 0.5
            sizes = np.linalg.svd(direction, compute_uv=False) / scale
            assert 0.6 < sizes.min() and sizes.max() < 1.3, (path, sizes)  # five rough iterations
            u, _, vt = np.linalg.svd(grad, full_matrices=False)
            cosine = np.vdot(u @ vt, direction) / np.linalg.norm(u @ vt) / np.linalg.norm(direction)
            assert cosine > 0.98, (path, cosine)
            checked += 1
    assert checked == 12


def test_muon_leaves_the_other_parameters_to_adam(muon):
    for path, grads, directions in _leaves(muon[1], muon[2]):
        if path[0].key != 'layers' or path[-1].key != 'kernel':
            # Adam's first direction is the sign of the gradient.
            np.testing.assert_allclose(directions, np.sign(grads), atol=1e-3, err_msg=str(path))


def test_muon_decays_matrices_and_embeddings_alone(muon):
    params, grads, plain = muon
    config = dataclasses.replace(CONFIG, name='muon', eps=1e-8)
    for path, p, a, b in _leaves(params, plain, _directions(config, params, [grads])):
        np.testing.assert_allclose(b - a, 0.3 * p if _decays(path) else 0 * p, atol=1e-5)
