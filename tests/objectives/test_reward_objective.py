"""The reward objective: where it reads, that padding is nothing, and that sums are sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm.models import heads, transformer
from jaxllm.objectives.reward import RewardConfig, reward
from jaxllm.sharding import batch_shardings, make_mesh, shardings
from jaxllm.train.step import loss_and_grads

pytestmark = pytest.mark.usefixtures('mesh')

CFG = toy_models.config('llama', num_layers=1, attention__num_kv_heads=4)
B, S, L = 8, 3, 11
SCORES = jax.jit(heads.scores, static_argnums=1)
HIDDEN = jax.jit(transformer.apply_hidden, static_argnums=1)


@pytest.fixture(scope='module')
def params():
    return heads.init_reward(jax.random.key(3), CFG, toy_models.params(CFG))


def batch(seed=0):
    rng = np.random.default_rng(seed)
    ranks = np.array([[1, 2, 3], [1, 2, 0], [2, 1, 1], [3, 1, 2], [1, 0, 2], [1, 1, 2], [0, 0, 0],
                      [2, 1, 3]], np.int32)
    lengths = np.where(ranks > 0, rng.integers(2, L + 1, (B, S)), 0).astype(np.int32)
    return {'tokens': rng.integers(0, CFG.vocab_size, (B, S, L), dtype=np.int32),
            'lengths': lengths, 'ranks': ranks, 'margins': np.zeros(B, np.float32)}


def objective(kind='plackett_luce', **changes):
    return reward(CFG, RewardConfig(**dict(kind=kind, margin='none', centering=0.01) | changes))


def sums_of(kind, params):
    return jax.jit(objective(kind))(params, {}, batch(), jax.random.key(0))


def test_the_score_is_the_head_at_the_last_valid_token(params):
    row, length = toy_models.tokens(CFG, 1, L), 7
    hidden = HIDDEN(params['model'], CFG, row[:, :length])
    want = np.dot(np.asarray(hidden)[0, -1], params['head']['kernel']) + params['head']['bias']
    got = SCORES(params, CFG, row, jnp.asarray([length]))
    np.testing.assert_allclose(got, [want], rtol=1e-5)
    assert got.dtype == jnp.float32
    every = jax.jit(heads.values, static_argnums=1)(params, CFG, row[:, :length])
    assert every.shape == (1, length) and every.dtype == jnp.float32
    np.testing.assert_allclose(every[0, -1], got[0], rtol=1e-5)


@pytest.mark.parametrize('pad', [0, 1, 8])
@pytest.mark.parametrize('pad_id', [0, 5])
def test_padding_on_either_side_changes_nothing(params, pad, pad_id):
    """Token 5 is the end of text here: it pads, ends the row and stands in the prompt as well."""
    rows = toy_models.tokens(CFG, 2, 6)
    rows[:, 2] = rows[:, 5] = 5
    lengths, fill = jnp.asarray([6, 4]), np.full((2, pad), pad_id, np.int32)
    want = SCORES(params, CFG, rows, lengths)
    right = SCORES(params, CFG, np.concatenate([rows, fill], 1), lengths)
    left = SCORES(params, CFG, np.concatenate([fill, rows], 1), lengths,
                  jnp.full(2, pad, jnp.int32))
    np.testing.assert_allclose(right, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(left, want, rtol=1e-5, atol=1e-6)
    assert abs(want[0] - want[1]) > 1e-3


def test_the_head_begins_small():
    head = heads.init_head(jax.random.key(0), 4095)
    np.testing.assert_allclose(np.std(head['kernel']), 1 / 64, rtol=0.05)
    assert head['bias'].shape == () and head['kernel'].dtype == jnp.float32


def test_the_head_is_float32_in_a_bfloat16_model(params):
    cfg = toy_models.config('llama', num_layers=1, attention__num_kv_heads=4,
                            dtype='bfloat16')
    row = toy_models.tokens(cfg, 1, L)
    hidden = HIDDEN(params['model'], cfg, row)
    want = np.dot(np.asarray(hidden[0, -1], np.float64), np.asarray(params['head']['kernel']))
    got = SCORES(params, cfg, row, jnp.asarray([L]))
    np.testing.assert_allclose(got, [want], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind, weight', [('plackett_luce', 10), ('all_pairs', 7)])
def test_sums_and_weights(params, kind, weight):
    """Decisions: 2 + 1 + 2 + 2 + 1 + 2 + 0 + 2 less those that tie at the end."""
    sums = sums_of(kind, params)
    ranks = batch()['ranks']
    decided = sum(any(0 < a < b for b in row) for row in ranks for a in row)
    assert float(sums.terms[kind].weight) == (decided if kind == 'plackett_luce' else weight)
    assert float(sums.terms['centering'].weight) == 7
    assert sums.terms['centering'].coef == 0.01
    right, total = sums.metrics['accuracy']
    assert float(total) == sum(0 < a < b for row in ranks for a in row for b in row)
    assert 0 <= float(right) <= float(total)
    np.testing.assert_allclose(float(sums.metrics['reward'][1]), (ranks > 0).sum())


def test_what_pads_is_not_seen(params):
    """Other tokens behind the ends, and other absent responses: the same loss and gradients."""
    one, two = batch(), batch()
    index = np.arange(L)[None, None]
    two['tokens'] = np.where(index < two['lengths'][:, :, None], two['tokens'], 5)
    two = {key: np.pad(x, [(0, 0), (0, 1)] + [(0, 4)] * (x.ndim - 2)) if x.ndim > 1 else x
           for key, x in two.items()}
    run = jax.jit(lambda x: loss_and_grads(objective(), params, {}, x, jax.random.key(0)))
    losses = [run(x) for x in (one, two)]
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(x[3]) for x in losses), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('kind', ['plackett_luce', 'all_pairs', 'bradley_terry'])
def test_accumulation_and_devices_change_nothing(params, kind):
    data = batch()
    if kind == 'bradley_terry':
        data = {key: x[:, :2] if x.ndim > 1 else x + np.arange(B, dtype=np.float32) % 4
                for key, x in data.items()}
    loss = objective(kind, margin='large' if kind == 'bradley_terry' else 'none')
    run = jax.jit(lambda *args, accum=1: loss_and_grads(loss, *args, accum=accum),
                  static_argnames='accum')
    want = run(params, {}, data, jax.random.key(0))
    results = [run(params, {}, data, jax.random.key(0), accum=4)]
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        places = shardings(transformer.param_axes(params), params, mesh)
        results.append(run(jax.device_put(params, places), {},
                           jax.device_put(data, batch_shardings(data, mesh)), jax.random.key(0)))
    for got in results:
        np.testing.assert_allclose(got[0], want[0], rtol=2e-6)
        for a, b in zip(jax.tree.leaves(got[3]), jax.tree.leaves(want[3]), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-7)
        assert float(got[1]['accuracy'][1]) == float(want[1]['accuracy'][1])


def test_learning_an_order(params):
    """Some steps down the gradient order one batch as it is ranked."""
    data, loss = batch(), objective()
    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.1 * g, p, loss_and_grads(
        loss, p, {}, data, jax.random.key(0))[3]))
    measure = jax.jit(loss)
    before = measure(params, {}, data, jax.random.key(0)).metrics['accuracy'][0]
    for _ in range(30):
        params = step(params)
    right, total = measure(params, {}, data, jax.random.key(0)).metrics['accuracy']
    assert float(right) > float(before) and float(right) > 0.9 * float(total)


def test_weight_decay_and_muon_know_the_head(params):
    from jaxllm.train import optim
    settings = dict(lr=1.0, schedule='constant', warmup_steps=0, decay_share=0.3,
                    final_lr_share=0.0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.5, clip_norm=1.0,
                    ema_decay=0.0, muon_momentum=0.95)
    tree = {'policy': params['model'], 'value': params}
    axes = transformer.param_axes(tree)
    assert axes['value']['head'] == {'kernel': ('d_model',), 'bias': ()}
    assert axes['policy']['embed'] == axes['value']['model']['embed']
    for name in ('adamw', 'muon'):
        optimizer = optim.make_optimizer(optim.OptimConfig(name=name, **settings), tree)
        zero = jax.tree.map(jnp.zeros_like, tree)
        directions, _ = optimizer.update(zero, optimizer.init(tree), tree)
        head = directions['value']['head']
        np.testing.assert_allclose(head['kernel'], 0.5 * params['head']['kernel'], rtol=1e-5)
        assert float(head['bias']) == 0
    untied = toy_models.config('llama', tie_embeddings=False)
    whole = toy_models.shapes(untied)
    axes = transformer.param_axes({'model': whole})['model']['head']
    assert axes['kernel'] == ('vocab', 'd_model')
