"""Adapters: what they compute, what they leave alone, what is trained."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.models import lora, quantize, transformer
from jaxllm.objectives.base import assembled
from jaxllm.objectives.lm import lm
from jaxllm.sharding import PRESETS, ShardingConfig, make_mesh, shardings
from jaxllm.train import optim
from jaxllm.train.state import create, state_shardings
from jaxllm.train.step import GuardConfig, guard_state, make_train_step

GUARD = GuardConfig(spike_factor=0.0, history=3, max_skips_in_row=3)


def settings(**changes):
    return lora.LoraConfig(**dict(rank=3, alpha=6.0, targets=('*',), rslora=False, dora=False,
                                  train_embeddings=False, base='float32') | changes)


def random_adapter(params, cfg, seed=1):
    """An adapter that changes something: B is not 0."""
    fresh = lora.init_adapter(jax.random.key(seed), params, cfg)
    rng = np.random.default_rng(seed)
    fill = lambda path, x: (rng.normal(size=x.shape).astype(np.float32) / 4
                            if path[-1].key == 'lora_b' else np.asarray(x))
    return jax.tree_util.tree_map_with_path(fill, fresh)


def hashes(tree):
    return [hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for x in jax.tree.leaves(tree)]


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        yield


@pytest.mark.parametrize('family', ['llama', 'gemma3', 'gpt2'])
@pytest.mark.parametrize('dora', [False, True])
def test_a_fresh_adapter_changes_nothing(family, dora):
    cfg = toy_models.config(family)
    params, tokens = toy_models.params(cfg), toy_models.tokens(cfg, 2, 7)
    spec = settings(dora=dora)
    adapter = lora.init_adapter(jax.random.key(0), params, spec)
    got = transformer.apply(lora.combine(params, adapter, spec), cfg, tokens)
    want = transformer.apply(params, cfg, tokens)
    if dora:  # x (m / ||W||) is x * 1 up to rounding
        np.testing.assert_allclose(got, want, atol=2e-5)
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('family', ['llama', 'gemma2', 'gemma3', 'gpt2', 'qwen3'])
@pytest.mark.parametrize('kind', [{}, {'dora': True}, {'rslora': True}, {'base': 'int8'},
                                  {'base': 'nf4'}, {'targets': ('attention/q', 'mlp/*')}], ids=str)
def test_merged_is_beside(family, kind):
    cfg = toy_models.config(family)
    params, tokens, spec = toy_models.params(cfg), toy_models.tokens(cfg, 2, 9), settings(**kind)
    base = lora.prepare_base(params, spec)
    adapter = random_adapter(base, spec)
    before = hashes(base)
    beside = transformer.apply(lora.combine(base, adapter, spec), cfg, tokens)
    merged = lora.merge(base, adapter, spec)
    np.testing.assert_allclose(beside, transformer.apply(merged, cfg, tokens), atol=3e-5)
    assert not np.allclose(beside, transformer.apply(quantize.dequantize(base), cfg, tokens),
                           atol=1e-2)
    assert hashes(base) == before
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
    assert shapes(merged) == shapes(params)


def test_the_scale_by_hand():
    """One linear layer: W = 0, x A = 5, B = 2: alpha / r = 2 gives 20, alpha / sqrt(r) gives 40."""
    a, b = jnp.full((5, 4), 0.25), jnp.full((4, 3), 2.0)
    base = {'mlp': {'up': {'kernel': jnp.zeros((5, 3))}}}
    adapter = {'mlp': {'up': {'lora_a': a, 'lora_b': b}}}
    x = jnp.full((5,), 4.0)  # x A = 5 in each of 4 columns
    for rslora, scale in ((False, 2.0), (True, 4.0)):
        spec = settings(rank=4, alpha=8.0, rslora=rslora)
        merged = lora.merge(base, adapter, spec)['mlp']['up']['kernel']
        np.testing.assert_allclose(x @ merged, np.full(3, scale * 5 * 2 * 4), rtol=1e-6)


def test_dora_by_hand():
    """V = W + s A B; a column's length is its magnitude, whatever V's is."""
    rng = np.random.default_rng(0)
    w, a, b = rng.normal(size=(6, 5)), rng.normal(size=(6, 3)), rng.normal(size=(3, 5))
    m = np.abs(rng.normal(size=5))
    spec = settings(dora=True)
    f32 = lambda x: np.asarray(x, np.float32)
    merged = lora.merge({'mlp': {'up': {'kernel': f32(w)}}},
                        {'mlp': {'up': {'lora_a': f32(a), 'lora_b': f32(b), 'magnitude': f32(m)}}},
                        spec)['mlp']['up']['kernel']
    v = w + 2.0 * a @ b
    np.testing.assert_allclose(merged, m * v / np.linalg.norm(v, axis=0), rtol=1e-5)


def test_dora_norm_carries_no_gradient():
    """With it constant, the gradient of sum(y) by B is that of the scaled low-rank path alone."""
    cfg = toy_models.config('llama')
    params, spec = toy_models.params(cfg), settings(dora=True, targets=('mlp/up',))
    adapter, tokens = random_adapter(params, spec), toy_models.tokens(cfg, 1, 5)
    from jaxllm.models.layers import Linear
    leaves = jax.tree.map(lambda x: x[0], lora.combine(params, adapter, spec)['layers']['layer_0'][
        'mlp']['up'])
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 5, cfg.d_model)), jnp.float32)
    del tokens

    def total(b):
        out = Linear((cfg.d_ff,), ('batch', 'seq', 'd_ff'), False).apply(
            {'params': leaves | {'lora_b': b}}, x)
        return out.sum()
    w, a, b = (np.asarray(leaves[n], np.float64) for n in ('kernel', 'lora_a', 'lora_b'))
    factor = np.asarray(leaves['magnitude']) / np.linalg.norm(w + a @ b, axis=0)
    want = np.asarray(x, np.float64).reshape(-1, cfg.d_model).sum(0) @ a
    np.testing.assert_allclose(jax.grad(total)(leaves['lora_b']), want[:, None] * factor[None],
                               rtol=2e-4)


def _batch(cfg, B=8, L=6):
    tokens = toy_models.tokens(cfg, B, L + 1)
    weights = np.random.default_rng(5).integers(0, 2, (B, L)).astype(np.float32)
    return {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'loss_weights': weights,
            'segment_ids': np.ones((B, L), np.int32),
            'positions': np.tile(np.arange(L, dtype=np.int32)[None], (B, 1)),
            'num_bytes': np.ones(B, np.float32)}


def _step(cfg, spec, base, accum=1):
    """(step, state, frozen) of a run that trains an adapter."""
    adapter = jax.tree.map(jnp.asarray, random_adapter(base, spec))
    config = optim.OptimConfig(name='adamw', lr=0.1, schedule='constant', warmup_steps=0,
                               decay_share=0.0, final_lr_share=0.0, b1=0.9, b2=0.95, eps=1e-8,
                               weight_decay=0.1, clip_norm=0.0, ema_decay=0.0, muon_momentum=0.95)
    optimizer = optim.make_optimizer(config, adapter)
    objective = assembled(lm(cfg), lambda t, f: lora.combine(f['base'], t, spec))
    step = make_train_step(objective, optimizer, optim.schedule(config, 10), seed=0, guard=GUARD,
                           accum=accum)
    return step, create(adapter, optimizer, ema=False, aux={'guard': guard_state(GUARD)}), {
        'base': base}


@pytest.mark.parametrize('kind', [{}, {'dora': True}, {'base': 'nf4'}, {'train_embeddings': True}],
                         ids=str)
def test_only_the_adapter_is_trained(kind):
    cfg, spec = toy_models.config('llama'), settings(**kind)
    base = lora.prepare_base(toy_models.params(cfg), spec)
    step, state, frozen = _step(cfg, spec, base)
    before = hashes(base)
    new, metrics = jax.jit(step)(state, frozen, _batch(cfg))
    assert hashes(base) == before and np.isfinite(metrics['loss'])
    sizes = {x.shape for x in jax.tree.leaves(state.opt_state)}
    own = {x.shape for x in jax.tree.leaves(state.trainable)}
    assert sizes <= own | {()}
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.trainable, new.trainable)
    assert all(jax.tree.leaves(moved))


def test_no_gradient_of_a_kernel_is_computed():
    """No matrix product of a step has a result of the shape of an adapted kernel."""
    cfg, spec = toy_models.config('llama'), settings()
    base = toy_models.params(cfg)
    step, state, frozen = _step(cfg, spec, base)
    text = jax.jit(step).lower(state, frozen, _batch(cfg)).as_text()
    shapes = {leaves['kernel'].shape[1:] for leaves in quantize.linears(base).values()}
    assert shapes
    products = [line for line in text.splitlines() if 'dot_general' in line]
    results = {tuple(map(int, line.rsplit('tensor<', 1)[1].split('xf32')[0].split('x')))
               for line in products if 'xf32' in line.rsplit('tensor<', 1)[1]}
    assert products and not results & shapes
    # The check sees them where all weights are trained.
    whole = jax.jit(jax.grad(lambda p: lm(cfg)(p, {}, _batch(cfg), None).terms['lm'].sum))
    text = whole.lower(base).as_text()
    results = {tuple(map(int, line.rsplit('tensor<', 1)[1].split('xf32')[0].split('x')))
               for line in text.splitlines()
               if 'dot_general' in line and 'xf32' in line.rsplit('tensor<', 1)[1]}
    assert results & shapes


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('base', ['float32', 'nf4', 'int8'])
def test_eight_devices_are_as_one(preset, base):
    cfg = toy_models.config('llama', d_model=32, d_ff=64, attention__num_heads=8,
                            attention__num_kv_heads=8, attention__head_dim=8, vocab_size=48)
    spec = settings(base=base)
    frozen = lora.prepare_base(toy_models.params(cfg), spec)
    step, state, constants = _step(cfg, spec, frozen, accum=1)
    batch = _batch(cfg)
    _, want = jax.jit(step)(state, constants, batch)
    eight = make_mesh(ShardingConfig(preset))
    with jax.set_mesh(eight):
        places = shardings(transformer.param_axes(frozen), frozen, eight)
        constants = {'base': jax.device_put(frozen, places)}
        own = shardings(transformer.param_axes(state.trainable), state.trainable, eight)
        state = jax.device_put(state, state_shardings(jax.eval_shape(lambda: state), own, eight))
        _, got = jax.jit(step)(state, constants, batch)
    for name in ('loss', 'grad_norm'):
        np.testing.assert_allclose(got[name], want[name], rtol=2e-5)


def test_accumulation_changes_nothing():
    cfg, spec = toy_models.config('llama'), settings()
    base = toy_models.params(cfg)
    results = []
    for accum in (1, 4):
        step, state, frozen = _step(cfg, spec, base, accum)
        results.append(jax.jit(step)(state, frozen, _batch(cfg))[1])
    for name in ('loss', 'grad_norm'):
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5)


@pytest.mark.parametrize('kind', [{}, {'base': 'nf4'}], ids=str)
def test_decoding_with_an_adapter(kind):
    cfg, spec = toy_models.config('gemma3'), settings(**kind)
    base = lora.prepare_base(toy_models.params(cfg), spec)
    adapter = random_adapter(base, spec)
    sampling = decode.SamplingConfig(max_new_tokens=6, temperature=0.0)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6]]
    beside = decode.generate(lora.combine(base, adapter, spec), cfg, prompts, sampling)
    merged = decode.generate(lora.merge(base, adapter, spec), cfg, prompts, sampling)
    assert beside.tokens == merged.tokens
    np.testing.assert_allclose(beside.logprobs, merged.logprobs, atol=1e-4)


def test_changing_adapters_shares_the_base():
    cfg, spec = toy_models.config('llama'), settings()
    base = jax.tree.map(jnp.asarray, toy_models.params(cfg))
    tokens = toy_models.tokens(cfg, 1, 6)
    first, second = (random_adapter(base, spec, seed) for seed in (1, 2))
    logits = [np.asarray(transformer.apply(lora.combine(base, x, spec), cfg, tokens))
              for x in (first, second, first)]
    np.testing.assert_array_equal(logits[0], logits[2])
    assert (logits[0] != logits[1]).any()
    combined = lora.combine(base, first, spec)
    for path, leaves in quantize.linears(base).items():
        node = combined
        for name in path:
            node = node[name]
        assert node['kernel'] is leaves['kernel']


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_and_bfloat16(remat):
    cfg = toy_models.config('gemma2', remat=remat, dtype='bfloat16')
    plain = toy_models.config('gemma2')
    spec = settings()
    base = toy_models.params(cfg)
    step, state, frozen = _step(cfg, spec, base)
    exact, _, _ = _step(plain, spec, base)
    got, want = (jax.jit(f)(state, frozen, _batch(cfg))[1] for f in (step, exact))
    np.testing.assert_allclose(got['loss'], want['loss'], rtol=2e-2)


@pytest.mark.parametrize('changes, message', [
    ({'targets': ('attention/query',)}, "'attention/query' fits no layer; the layers are attention"),
    ({'rank': 17}, 'lora.rank=17 is more than'),
    ({'rank': -1}, 'lora.rank=-1 must be at least 1'),
    ({'alpha': 0.0}, 'lora.alpha=0.0 must be positive'),
    ({'base': 'int4'}, 'int4.*float32, bfloat16, int8, nf4'),
    ({'rank': 0, 'base': 'nf4'}, 'lora.rank=0 trains them all'),
    ({'targets': ()}, 'expected patterns'),
], ids=str)
def test_what_cannot_be(changes, message):
    cfg = toy_models.config('llama')
    with pytest.raises(InputError, match=message):
        lora.target_paths(toy_models.params(cfg), settings(**changes))
