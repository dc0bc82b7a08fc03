"""One program on every mesh: equal numbers, and arrays that lie where they should."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models
from jax.sharding import PartitionSpec as P

from jaxllm.errors import InputError
from jaxllm.models import transformer
from jaxllm.objectives.lm import lm
from jaxllm.sharding import (MESH_AXES, PRESETS, RULES, ShardingConfig, batch_shardings, constrain,
                             make_mesh, mesh_shape, replicated, shardings, spec)
from jaxllm.train import optim, state, step

# Tests on shapes and numbers, not on speed.
_QUICK = {'xla_backend_optimization_level': 0}
_GUARD = step.GuardConfig(spike_factor=0., history=3, max_skips_in_row=5)
# A large eps: Adam's quotient would blow up rounding where a gradient is nearly 0.
_OPTIM = optim.OptimConfig(
    name='adamw', lr=0.05, schedule='constant', warmup_steps=0, decay_share=0., final_lr_share=1.,
    b1=0.9, b2=0.95, eps=1e-2, weight_decay=0.1, clip_norm=1., ema_decay=0.5, muon_momentum=0.95)


def _config():
    return toy_models.config('llama', vocab_size=56, num_layers=2, d_ff=40, attention__head_dim=4,
                             attention__num_heads=8)


def _batch(B=32, L=11):
    rng, tokens_BL = np.random.default_rng(0), toy_models.tokens(_config(), B, L + 1)
    weights_BL = rng.integers(0, 3, (B, L)) * (np.arange(L)[None] < rng.integers(3, L, B)[:, None])
    return {'tokens': tokens_BL[:, :-1], 'targets': tokens_BL[:, 1:],
            'loss_weights': weights_BL.astype(np.float32),
            'segment_ids': np.sort(rng.integers(1, 3, (B, L), dtype=np.int32), axis=1),
            'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
            'num_bytes': np.ones(B, np.float32)}


def _train(mesh, accum):
    """Losses of three steps, the last state, and the shardings it should have."""
    cfg, batch = _config(), _batch()
    with jax.set_mesh(mesh):
        params = toy_models.params(cfg)
        optimizer = optim.make_optimizer(_OPTIM, params)
        places = shardings(transformer.param_axes(params), params, mesh)
        make = lambda p: state.create(p, optimizer, ema=True,
                                      aux={'guard': step.guard_state(_GUARD)})
        places = state.state_shardings(jax.eval_shape(make, params), places, mesh)
        batch_places = batch_shardings(batch, mesh)
        fn = jax.jit(
            step.make_train_step(lm(cfg, chunk_size=4), optimizer, optim.schedule(_OPTIM, 9),
                                 seed=0, accum=accum, clip_norm=1., ema_decay=0.5, guard=_GUARD),
            in_shardings=(places, None, batch_places), out_shardings=(places, replicated(mesh)),
            donate_argnums=0, compiler_options=_QUICK)
        now = jax.device_put(make(jax.tree.map(jnp.asarray, params)), places)
        batch, losses = jax.device_put(batch, batch_places), []
        for _ in range(3):
            now, metrics = fn(now, {}, batch)
            losses.append(float(metrics['loss']))
    return losses, now, places


@pytest.fixture(scope='module')
def one_device():
    losses, now, _ = _train(make_mesh(devices=jax.devices()[:1]), accum=1)
    return losses, jax.device_get(now)


@pytest.mark.parametrize('preset', PRESETS)
def test_every_mesh_trains_the_same_and_leaves_arrays_where_they_belong(one_device, preset):
    mesh = make_mesh(ShardingConfig(preset=preset))
    assert mesh.size == 8
    losses, now, places = _train(mesh, accum=2 if preset == 'dp_fsdp_tp' else 1)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    assert losses[0] - losses[2] > 0.1
    # The moments are gradients, and the parameters what became of them.
    for got, want in zip(jax.tree.leaves(now), jax.tree.leaves(one_device[1]), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
    jax.tree.map(lambda x, place: _equivalent(x, place), now, places)
    _check_memory(now, mesh)


def _equivalent(x, place):
    assert x.sharding.is_equivalent_to(place, x.ndim), (x.sharding, place)


def _check_memory(now, mesh):
    """Each copy of the parameters is split over fsdp and tensor; only the norms, and heads that do
    not divide, are not. Moments and average are as small per device as the parameters are."""
    def local_size(tree):
        return sum(x.addressable_shards[0].data.size for x in jax.tree.leaves(tree))
    ways, size = mesh.shape['fsdp'] * mesh.shape['tensor'], transformer.num_params(now.trainable)
    assert size / ways <= local_size(now.trainable) < size / ways + 0.2 * size * (ways > 1) + 1
    # The two moments and Adam's count.
    assert local_size(now.opt_state) == 2 * local_size(now.trainable) + 1
    assert local_size(now.ema) == local_size(now.trainable)


def test_moments_lie_with_their_parameters_under_muon():
    mesh = make_mesh(ShardingConfig(preset='fsdp_tp'))
    with jax.set_mesh(mesh):
        shapes = toy_models.shapes(_config())
        config = optim.OptimConfig(**{**vars(_OPTIM), 'name': 'muon'})
        optimizer = optim.make_optimizer(config, shapes)
        tree = jax.eval_shape(lambda p: state.create(p, optimizer, ema=False, aux={}), shapes)
        params = shardings(transformer.param_axes(shapes), shapes, mesh)
        places = state.state_shardings(tree, params, mesh)
    want = {'tokens': P('tensor', 'fsdp'), 'up': P(None, 'fsdp', 'tensor'),
            'o': P(None, 'tensor', None, 'fsdp')}
    found = {name: 0 for name in want}
    for path, place in jax.tree_util.tree_leaves_with_path(places.opt_state):
        names = jax.tree_util.keystr(path)
        for name, axes in want.items():
            if f"['{name}']" in names:
                assert place.spec == axes, names
                found[name] += 1
    assert found == {'tokens': 2, 'up': 1, 'o': 1}  # Adam's two moments, Muon's one


def _activation_specs(cfg, mesh):
    """{module: PartitionSpec of its output}, of the compiled forward and backward pass, when only
    what the model says about its activations can split them: every input is replicated."""
    seen = {}

    def watch(next_fun, args, kwargs, context):
        out = next_fun(*args, **kwargs)
        name = context.module.name
        if name in ('up', 'q', 'down') and context.method_name == '__call__':
            jax.debug.inspect_array_sharding(
                out, callback=lambda place: seen.__setitem__(name, place))
        return out

    def loss(params, batch):
        with nn.intercept_methods(watch):
            return lm(cfg)(params, {}, batch, None).terms['lm'].sum

    with jax.set_mesh(mesh):
        jax.jit(jax.grad(loss), in_shardings=replicated(mesh), compiler_options=_QUICK).lower(
            toy_models.shapes(cfg), _batch()).compile()
        hidden = jax.jit(lambda p, t: transformer.apply_hidden(p, cfg, t),
                         in_shardings=replicated(mesh), compiler_options=_QUICK)
        seen['hidden'] = hidden.lower(toy_models.shapes(cfg),
                                      _batch()['tokens']).compile().output_shardings
    return seen


def test_activations_are_split_inside_the_model():
    mesh = make_mesh(ShardingConfig(preset='dp_fsdp_tp'))
    seen = _activation_specs(_config(), mesh)
    rows = ('data', 'fsdp')
    for name, ndim, want in (('up', 3, P(rows, None, 'tensor')), ('down', 3, P(rows, None, None)),
                             ('q', 4, P(rows, None, 'tensor', None)),
                             ('hidden', 3, P(rows, None, None))):
        place = jax.sharding.NamedSharding(mesh, want)
        assert seen[name].is_equivalent_to(place, ndim), (name, seen[name])


def test_a_misspelt_axis_is_an_error():
    with jax.set_mesh(make_mesh()):
        with pytest.raises(ValueError, match="unknown logical axis 'bacth'; known: batch, "):
            constrain(jnp.zeros((8, 3)), 'bacth', None)
        with pytest.raises(ValueError, match='1 logical axes'):
            constrain(jnp.zeros((8, 3)), 'batch')


def test_no_mesh_is_an_error():
    with pytest.raises(ValueError, match='jax.set_mesh'):
        constrain(jnp.zeros((8, 3)), 'batch', None)
    with pytest.raises(ValueError, match='jax.set_mesh'):
        jax.jit(lambda x: constrain(x, 'batch', None))(jnp.zeros((8, 3)))


@pytest.fixture
def mesh():
    return make_mesh(ShardingConfig(preset='dp_fsdp_tp'))


@pytest.mark.parametrize('axes, shape, want', [
    (('batch', 'seq', 'd_model'), (8, 11, 16), P(('data', 'fsdp'), None, None)),
    ((None, 'seq', 'd_model'), (8, 11, 16), P(None, None, 'fsdp')),
    (('rows', 'seq', 'd_model'), (8, 11, 16), P('data', None, 'fsdp')),
    (('layers', 'd_model', 'd_ff'), (3, 16, 40), P(None, 'fsdp', 'tensor')),
    (('d_model', 'kv_heads', 'head_dim'), (16, 2, 6), P('fsdp', 'tensor', None)),
    (('d_model', 'kv_heads', 'head_dim'), (16, 3, 6), P('fsdp', None, None)),
    (('vocab', 'd_model'), (56, 16), P('tensor', 'fsdp'))])
def test_specs_by_hand(mesh, axes, shape, want):
    assert spec(axes, shape, mesh) == want


@pytest.mark.parametrize('axes, shape, message', [
    (('batch', 'seq'), (6, 11), 'batch=6 does not divide over 4 devices'),
    (('vocab', 'd_model'), (41, 16), 'vocab=41 .* a multiple of 2'),
    (('d_model', 'heads', 'head_dim'), (16, 3, 6), 'heads=3')])
def test_sizes_that_do_not_divide_are_errors(mesh, axes, shape, message):
    with pytest.raises(InputError, match=message):
        spec(axes, shape, mesh)


def test_batches_are_split_by_rows(mesh):
    # Three rows: one process's part need not divide over the devices of all.
    batch = {'a': np.zeros((8, 11)), 'b': np.zeros(12), 'c': np.zeros((3, 2, 3))}
    specs = {name: place.spec for name, place in batch_shardings(batch, mesh).items()}
    rows = ('data', 'fsdp')
    assert specs == dict.fromkeys('abc', P(rows))


@pytest.mark.parametrize('config, devices, want', [
    ({'preset': 'dp'}, 8, {'data': 8}),
    ({'preset': 'fsdp'}, 6, {'fsdp': 6}),
    ({'preset': 'fsdp_tp'}, 8, {'fsdp': 4, 'tensor': 2}),
    ({'preset': 'dp_fsdp_tp'}, 16, {'data': 2, 'fsdp': 4, 'tensor': 2}),
    ({'preset': 'fsdp_tp'}, 1, {}),
    ({'preset': 'dp_fsdp_tp'}, 2, {'data': 2}),
    ({'preset': 'fsdp_tp'}, 3, {'fsdp': 3}),
    ({'preset': 'fsdp', 'tensor': 4}, 8, {'fsdp': 2, 'tensor': 4}),
    ({'preset': 'fsdp', 'data': -1, 'fsdp': 2}, 8, {'data': 4, 'fsdp': 2})])
def test_mesh_shapes_by_hand(config, devices, want):
    sizes = mesh_shape(ShardingConfig(**config), devices)
    assert {axis: n for axis, n in sizes.items() if n > 1} == want
    assert tuple(sizes) == MESH_AXES


@pytest.mark.parametrize('config, devices, message', [
    ({'preset': 'ddp'}, 8, 'ddp.*use one of dp, fsdp'),
    ({'tensor': 3}, 8, 'does not fit 8 devices'),
    ({'preset': 'fsdp', 'fsdp': 4}, 8, 'does not fit 8 devices'),
    ({'preset': 'dp', 'fsdp': -1}, 8, 'data and fsdp are both -1'),
    ({'fsdp': -2}, 8, 'sharding.fsdp=-2')])
def test_impossible_meshes_are_errors(config, devices, message):
    with pytest.raises(InputError, match=message):
        mesh_shape(ShardingConfig(**config), devices)


def test_rules_name_mesh_axes_that_exist():
    assert {a for axes in RULES.values() for a in axes} <= set(MESH_AXES)
    mesh = types.SimpleNamespace(shape=dict.fromkeys(MESH_AXES, 2))
    for axis in RULES:
        assert spec((axis,), (8,), mesh) is not None
