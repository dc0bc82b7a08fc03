"""Adapters: what they compute, by hand and merged; what is trained, and that nothing else is."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_models

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.models import lora, transformer
from jaxllm.models.layers import Linear
from jaxllm.objectives.lm import lm
from jaxllm.sharding import PRESETS, ShardingConfig, batch_shardings, make_mesh, shardings
from jaxllm.train import optim, state, step

pytestmark = pytest.mark.usefixtures('mesh')

CONFIG = lora.LoraConfig(rank=3, alpha=7., targets=('*',), rslora=False, dora=False,
                         train_embeddings=False, base='float32')
_QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def _config(**changes):
    return dataclasses.replace(CONFIG, **changes)


def _params(cfg):
    return jax.tree.map(jnp.asarray, toy_models.params(cfg))


def _adapter(params, config, seed=0):
    """An adapter after some training, as it were: from numpy, so that nothing is compiled."""
    shapes = jax.eval_shape(lambda p: lora.init_adapter(jax.random.key(0), p, config), params)
    rng = np.random.default_rng(seed)

    def fill(path, x):
        noise = rng.normal(size=x.shape).astype(np.float32)
        return 1 + np.abs(noise) / 4 if path[-1].key == 'magnitude' else noise / 4
    return jax.tree_util.tree_map_with_path(fill, shapes)


def _init(params, config):
    return jax.jit(lambda p: lora.init_adapter(jax.random.key(0), p, config))(params)


def _digests(tree):
    return [hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for x in jax.tree.leaves(tree)]


def _logits(cfg):
    tokens_BL = toy_models.tokens(cfg, 2, 7)
    return jax.jit(lambda params: transformer.apply(params, cfg, tokens_BL))


# One layer, against numpy.

def _layer(rslora, dora):
    """q of one layer: 5 inputs, 2 heads of 4; (x, leaves in float64, the scale)."""
    rng = np.random.default_rng(0)
    leaves = {'kernel': (5, 2, 4), 'bias': (2, 4), 'lora_a': (5, 3), 'lora_b': (3, 2, 4)}
    if dora:
        leaves['magnitude'] = (2, 4)
    leaves = {name: rng.normal(size=shape) for name, shape in leaves.items()}
    return rng.normal(size=(1, 7, 5)), leaves, 7 / 3 ** 0.5 if rslora else 7 / 3


@pytest.mark.parametrize('rslora', [False, True])
@pytest.mark.parametrize('dora', [False, True])
def test_a_layer_and_its_gradients_by_hand(rslora, dora):
    """The gradients of DoRA treat |W + s A B| as a constant."""
    x, w, s = _layer(rslora, dora)
    v = w['kernel'] + s * np.einsum('dr,rhc->dhc', w['lora_a'], w['lora_b'])
    scale = w['magnitude'] / np.sqrt((v ** 2).sum(0)) if dora else np.ones((2, 4))
    y = np.einsum('bld,dhc->blhc', x, v) * scale + w['bias']
    dy = np.random.default_rng(1).normal(size=y.shape)
    dz = dy * scale
    want = {'lora_a': s * np.einsum('bld,blhc,rhc->dr', x, dz, w['lora_b']),
            'lora_b': s * np.einsum('bld,dr,blhc->rhc', x, w['lora_a'], dz)}
    if dora:
        want['magnitude'] = (dz * np.einsum('bld,dhc->blhc', x, v)).sum((0, 1)) / w['magnitude']

    layer = Linear((2, 4), ('batch', 'seq', 'heads', 'head_dim'), True)
    base = {'q': {name: jnp.float32(w[name]) for name in ('kernel', 'bias')}}
    adapter = {'q': {name: jnp.float32(w[name]) for name in want}}

    def loss(adapter):
        params = lora.combine(base, adapter, _config(rslora=rslora, dora=dora))['q']
        got = layer.apply({'params': params}, jnp.float32(x))
        return jnp.sum(got * jnp.float32(dy)), got
    (_, got), grads = jax.value_and_grad(loss, has_aux=True)(adapter)
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)
    assert set(grads['q']) == set(want)
    for name, value in want.items():
        np.testing.assert_allclose(grads['q'][name], value, rtol=1e-4, atol=1e-4, err_msg=name)


# Whole models.

@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_fresh_adapter_changes_nothing(dtype):
    """Not a bit; DoRA divides by a norm that it has just multiplied with."""
    cfg = toy_models.config('llama', dtype=dtype)
    params, logits = _params(cfg), _logits(cfg)
    fresh = logits(lora.combine(params, _init(params, CONFIG), CONFIG))
    np.testing.assert_array_equal(fresh, logits(params))
    config = _config(dora=True)
    fresh = logits(lora.combine(params, _init(params, config), config))
    np.testing.assert_allclose(fresh, logits(params), atol=1e-5 if dtype == 'float32' else 0.05)


@pytest.mark.parametrize('family,changes,model', [
    ('llama', {}, {}),
    # Two groups of (local, global), and a tail.
    ('gemma2', dict(dora=True, base='nf4'), dict(num_layers=5)),
    ('gpt2', dict(rslora=True, base='int8', train_embeddings=True), dict(tie_embeddings=False)),
    ('qwen3', dict(dora=True, targets=('attention/[qv]', 'mlp/down'), train_embeddings=True), {}),
    ('llama', dict(base='bfloat16', targets=('attention/*',)), {}),
])
def test_merged_is_combined(family, changes, model):
    cfg, config = toy_models.config(family, **model), _config(**changes)
    params, logits = _params(cfg), _logits(cfg)
    base = lora.prepare_base(params, config)
    adapter = _adapter(base, config)
    before = _digests(base), _digests(params)
    combined = logits(lora.combine(base, adapter, config))
    merged = lora.merge(base, adapter, config)
    np.testing.assert_allclose(logits(merged), combined, atol=1e-5)
    assert np.abs(combined - logits(base)).max() > 0.3
    # A plain model again, and the base as it was.
    assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params)
    assert (_digests(base), _digests(params)) == before


def test_adapters_share_the_base():
    cfg = toy_models.config('llama')
    base = lora.prepare_base(_params(cfg), _config(base='nf4'))
    config = _config(base='nf4', train_embeddings=True)
    trees = [lora.combine(base, _adapter(base, config, seed), config) for seed in range(2)]
    flat = lambda tree: {jax.tree_util.keystr(path): x for path, x
                         in jax.tree_util.tree_leaves_with_path(tree)}
    base, (one, two) = flat(base), map(flat, trees)
    for path, x in base.items():
        if path == "['embed']['tokens']":
            assert one[path] is not x and one[path] is not two[path]
        else:
            assert one[path] is x and two[path] is x, path
    new = set(one) - set(base)
    assert len(new) == 2 * 7 and all(path.endswith(("['lora_a']", "['lora_b']")) for path in new)


def test_another_remat_computes_the_same_gradients():
    config = _config(dora=True, base='nf4', targets=('attention/[qo]', 'mlp/down'))
    results = []
    for remat in ('none', 'full'):
        cfg = toy_models.config('llama', remat=remat)
        base = lora.prepare_base(_params(cfg), config)
        adapter = _adapter(base, config)
        results.append(jax.jit(jax.value_and_grad(_loss(cfg, config)))(adapter, base))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def _loss(cfg, config):
    # 14 rows in all, which is the size of no axis of a kernel.
    tokens_BL = toy_models.tokens(cfg, 2, 8)

    def loss(adapter, base):
        params = lora.combine(base, adapter, config)
        logits_BLV = transformer.apply(params, cfg, tokens_BL[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits_BLV, tokens_BL[:, 1:]).mean()
    return loss


def test_decoding_with_an_adapter_writes_what_the_merged_model_writes():
    cfg = toy_models.config('llama', num_layers=2)
    config = _config(dora=True, base='int8', targets=('attention/*',))
    base = lora.prepare_base(_params(cfg), config)
    adapter = _adapter(base, config)
    greedy = decode.SamplingConfig(temperature=0., max_new_tokens=9)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6]]
    write = lambda params: decode.generate(params, cfg, prompts, greedy)
    got = write(lora.combine(base, adapter, config))
    want = write(lora.merge(base, adapter, config))
    assert got.tokens == want.tokens
    for a, b in zip(got.logprobs, want.logprobs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


# What is trained.

def _results(jaxpr):
    """Shapes of the results of all matrix products of a jaxpr, in loops and calls as well."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == 'dot_general':
            yield eqn.outvars[0].aval.shape
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, 'eqns')
                                     or hasattr(x, 'jaxpr')):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from _results(inner)


@pytest.mark.parametrize('base', ['float32', 'nf4'])
@pytest.mark.parametrize('dora', [False, True])
def test_nothing_of_a_kernels_shape_is_computed(base, dora):
    """Neither W + A B nor a gradient by W, in the forward pass and in the backward one."""
    cfg = toy_models.config('llama', d_ff=22)
    config = _config(base=base, dora=dora)
    params = toy_models.shapes(cfg)
    frozen = jax.eval_shape(lambda p: lora.prepare_base(p, config), params)
    adapter = jax.eval_shape(lambda p: lora.init_adapter(jax.random.key(0), p, config), params)
    kernels = {leaves['kernel'].shape[1:] for _, leaves in lora.linears(params)}
    assert len(kernels) == 5  # q; k and v; o; up and gate; down
    # A product may have its axes in another order.
    kernels = {tuple(sorted(shape)) for shape in kernels}
    seen = lambda fun, *args: {tuple(sorted(shape)) for shape in _results(
        jax.make_jaxpr(fun)(*args).jaxpr)}
    assert not kernels & seen(jax.value_and_grad(_loss(cfg, config)), adapter, frozen)
    full = lambda params: _loss(cfg, config)({}, params)
    assert kernels <= seen(jax.grad(full), params)


def _batch(cfg, B, L):
    tokens_BL = toy_models.tokens(cfg, B, L + 1)
    return {'tokens': tokens_BL[:, :-1], 'targets': tokens_BL[:, 1:],
            'loss_weights': np.ones((B, L), np.float32), 'segment_ids': np.ones((B, L), np.int32),
            'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
            'num_bytes': np.ones(B, np.float32)}


_OPTIM = optim.OptimConfig(
    name='adamw', lr=0.03, schedule='constant', warmup_steps=0, decay_share=0., final_lr_share=1.,
    b1=0.9, b2=0.95, eps=1e-2, weight_decay=0.1, clip_norm=1., ema_decay=0.0, muon_momentum=0.95)


_SPREAD = dict(vocab_size=56, num_layers=2, d_ff=48, attention__head_dim=4,
               attention__num_heads=8)


@pytest.fixture(scope='module')
def trained():
    """(config, model, base, adapter, objective, batch) of a DoRA on an nf4 base."""
    config = _config(dora=True, base='nf4', train_embeddings=True,
                     targets=('attention/[qo]', 'mlp/down'))
    cfg = toy_models.config('llama', **_SPREAD)
    objective = lm(cfg, chunk_size=4)

    def adapted(adapter, frozen, batch, rng):
        return objective(lora.combine(frozen, adapter, config), None, batch, rng)
    base = jax.device_get(lora.prepare_base(_params(cfg), config))
    return base, _adapter(base, config), adapted, _batch(cfg, 16, 5)


def test_a_step_changes_the_adapter_alone(trained):
    base, adapter, objective, batch = trained
    guard, optimizer = step.GuardConfig(0., 3, 5), optim.make_optimizer(_OPTIM, adapter)
    base, before = jax.tree.map(jnp.asarray, base), _digests(base)
    now = jax.jit(lambda adapter: state.create(
        adapter, optimizer, ema=False, aux={'guard': step.guard_state(guard)}))(adapter)
    fn = jax.jit(step.make_train_step(objective, optimizer, optim.schedule(_OPTIM, 9), seed=0,
                                      accum=2, clip_norm=1., guard=guard), donate_argnums=0,
                 compiler_options=_QUICK)
    losses = []
    for _ in range(2):
        now, metrics = fn(now, base, batch)
        losses.append(float(metrics['loss']))
    assert losses[1] < losses[0] - 0.01
    assert _digests(base) == before
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, now.trainable, adapter)
    assert all(jax.tree.leaves(moved))
    # Token table; q 16 -> 32, o 32 -> 16, down 48 -> 16 of two layers: A, B and magnitudes.
    size = 56 * 16 + 2 * (3 * (16 + 32 + 32 + 16 + 48 + 16) + 32 + 16 + 16)
    assert lora.num_trainable(now.trainable) == size
    # Adam's moments and its count, and none for the base.
    assert sum(x.size for x in jax.tree.leaves(now.opt_state)) == 2 * size + 1


def _gradients(trained, mesh):
    base, adapter, objective, batch = trained

    def loss(adapter, base, batch):
        term = objective(adapter, base, batch, None).terms['lm']
        return term.sum / term.weight
    with jax.set_mesh(mesh):
        places = [shardings(lora.adapter_axes(x), x, mesh) for x in (adapter, base)]
        places += [batch_shardings(batch, mesh)]
        fn = jax.jit(jax.value_and_grad(loss), compiler_options=_QUICK,
                     in_shardings=tuple(places))
        return fn(*jax.device_put((adapter, base, batch), tuple(places)))


@pytest.fixture(scope='module')
def one_device(trained):
    return _gradients(trained, make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize('preset', PRESETS)
def test_every_mesh_computes_the_same(trained, one_device, preset):
    mesh = make_mesh(ShardingConfig(preset=preset))
    assert mesh.size == 8
    for a, b in zip(*map(jax.tree.leaves, (_gradients(trained, mesh), one_device)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_leaves_lie_where_the_kernel_lies():
    mesh = make_mesh(ShardingConfig(preset='fsdp_tp'))
    config = _config(dora=True, base='nf4')
    with jax.set_mesh(mesh):
        params = toy_models.shapes(toy_models.config('llama', **_SPREAD))
        tree = jax.eval_shape(lambda p: lora.combine(
            lora.prepare_base(p, config), lora.init_adapter(jax.random.key(0), p, config), config),
            params)
        places = shardings(lora.adapter_axes(tree), tree, mesh)
    layer = jax.tree.map(lambda x: tuple(x.spec), places['layers']['layer_0'])
    assert layer['attention']['o'] == {
        'kernel_nf4': (None, 'tensor', None, 'fsdp'),
        'kernel_absmax': (None, 'tensor', None, 'fsdp'),
        'lora_a': (None, 'tensor', None, None), 'lora_b': (None, None, 'fsdp'),
        'magnitude': (None, 'fsdp')}
    assert layer['mlp']['up'] == {
        'kernel_nf4': (None, 'fsdp', 'tensor'), 'kernel_absmax': (None, None, 'tensor'),
        'lora_a': (None, 'fsdp', None), 'lora_b': (None, None, 'tensor'),
        'magnitude': (None, 'tensor')}


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_weight_decay_is_for_matrices(name):
    """And Muon leaves the factors to AdamW, whose first direction is the gradient's sign."""
    params = toy_models.shapes(toy_models.config('llama'))
    adapter = jax.eval_shape(lambda p: lora.init_adapter(
        jax.random.key(0), p, _config(dora=True, train_embeddings=True)), params)
    adapter = jax.tree.map(lambda x: np.full(x.shape, 10., np.float32), adapter)
    grads = jax.tree.map(np.ones_like, adapter)
    optimizer = optim.make_optimizer(dataclasses.replace(_OPTIM, name=name, eps=1e-9), adapter)
    directions, _ = jax.jit(lambda adapter, grads: optimizer.update(
        grads, optimizer.init(adapter), adapter))(adapter, grads)
    for path, x in jax.tree_util.tree_leaves_with_path(directions):
        np.testing.assert_allclose(x, 1 if path[-1].key == 'magnitude' else 2, rtol=1e-5)


# Making one.

def test_the_start_of_an_adapter():
    cfg = toy_models.config('llama', d_model=48)
    params = _params(cfg)
    adapter = _init(params, _config(rank=12, dora=True))
    for path, leaves in lora.linears(params):
        kernel = np.float64(leaves['kernel'])
        axes = lora.input_axes(path)
        inputs, new = np.prod([kernel.shape[i] for i in axes]), adapter
        for part in path:
            new = new[part]
        # Uniform in +-1 / sqrt(inputs).
        assert np.abs(new['lora_a']).max() <= inputs ** -0.5
        np.testing.assert_allclose(np.std(new['lora_a']), (3 * inputs) ** -0.5, rtol=0.1)
        assert np.all(new['lora_b'] == 0)
        np.testing.assert_allclose(new['magnitude'], np.sqrt((kernel ** 2).sum(axes)), rtol=1e-5)
    firsts = [np.asarray(x).ravel()[0] / np.abs(x).max()
              for path, x in jax.tree_util.tree_leaves_with_path(adapter)
              if path[-1].key == 'lora_a']
    assert len(set(firsts)) == 7  # no key is used twice


def test_embeddings_are_copies():
    """The trainer gives the buffers of what it trains away."""
    params = _params(toy_models.config('llama', tie_embeddings=False))
    adapter = lora.init_adapter(jax.random.key(0), params, _config(train_embeddings=True))
    for got, want in ((adapter['embed']['tokens'], params['embed']['tokens']),
                      (adapter['head']['kernel'], params['head']['kernel'])):
        np.testing.assert_array_equal(got, want)
        got.delete()
        assert not want.is_deleted()
    assert set(adapter) == {'layers', 'embed', 'head'}


def test_magnitudes_are_those_of_the_stored_base():
    params = _params(toy_models.config('llama'))
    config = _config(dora=True, base='nf4')
    one, two = _init(params, config), _init(lora.prepare_base(params, config), config)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    plain = _init(params, _config(dora=True))
    q = lambda tree: tree['layers']['layer_0']['attention']['q']['magnitude']
    assert np.abs(q(one) - q(plain)).max() > 1e-3


@pytest.mark.parametrize('wrong,message', [
    (dict(targets=('attention/q', 'mlp/fc')), "'mlp/fc' matches no layer; there are attention/k, "),
    (dict(rank=13), 'rank=13 must be from 1 to 12, .* attention/k .16 x 12'),
    (dict(rank=0), 'rank=0 must be from 1'),
])
def test_an_adapter_that_does_not_fit_the_model_is_an_error(wrong, message):
    params = toy_models.shapes(toy_models.config('llama'))
    with pytest.raises(InputError, match=message):
        lora.init_adapter(jax.random.key(0), params, _config(**wrong))


@pytest.mark.parametrize('wrong', [
    dict(rank=-1), dict(alpha=0.), dict(alpha=float('inf')), dict(targets=()),
    dict(targets='attention/q'), dict(base='int4')])
def test_values_that_make_no_sense_are_errors(wrong):
    with pytest.raises(InputError, match=f'lora.{next(iter(wrong))}='):
        _config(**wrong)
