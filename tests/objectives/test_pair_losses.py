"""Losses on pairs: by hand, at the reference, at the extremes, cut and split in any way."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_models

from jaxllm.models import transformer
from jaxllm.objectives import dpo, ipo, kto, orpo, preference, simpo
from jaxllm.sharding import batch_shardings, make_mesh, shardings
from jaxllm.train.step import loss_and_grads

pytestmark = pytest.mark.usefixtures('mesh')

CFG = toy_models.config('llama', num_layers=1, attention__num_kv_heads=4)
P, L, T = 8, 12, 5
METHODS = {
    'dpo': dpo.method(dpo.Settings(0.3, 0.0, False)),
    'smoothed': dpo.method(dpo.Settings(0.3, 0.2, False)),
    'robust': dpo.method(dpo.Settings(0.3, 0.2, True)),
    'ipo': ipo.method(ipo.Settings(0.3, True)),
    'kto': kto.method(kto.Settings(0.3, 1.0, 0.5)),
    'orpo': orpo.method(orpo.Settings(0.1)),
    'simpo': simpo.method(simpo.Settings(2.5, 1.375)),
}
WHOLE = lambda trainable, frozen: trainable
READ = jax.jit(preference.read_pairs, static_argnums=1)


@pytest.fixture(scope='module')
def params():
    return toy_models.params(CFG)


def make_batch(sides=2, seed=0):
    rng = np.random.default_rng(seed)
    starts = np.repeat(rng.integers(2, 6, (P, 1)), sides, axis=1).astype(np.int32)
    counts = rng.integers(1, T + 1, (P, sides))
    tokens = rng.integers(0, CFG.vocab_size, (P, sides, L), dtype=np.int32)
    index = np.minimum(starts[..., None] + 1 + np.arange(T), L - 1)
    return {'tokens': tokens, 'starts': starts, 'lengths': (starts + 1 + counts).astype(np.int32),
            'completions': np.take_along_axis(tokens, index, axis=-1),
            'mask': (np.arange(T) < counts[..., None]).astype(np.float32),
            'pair_weights': np.ones(P, np.float32),
            'ref_logprobs': rng.normal(-15, 2, (P, sides)).astype(np.float32)}


def pairs_of(ratios, logprobs=None, tokens=None):
    ratios = jnp.array([ratios], jnp.float32)
    fill = lambda x, default: default if x is None else jnp.array([x], jnp.float32)
    return preference.Pairs(fill(logprobs, ratios), fill(tokens, jnp.ones_like(ratios)), ratios)


def loss_of(name, pairs, **batch):
    return float(METHODS[name].losses(pairs, batch)[0])


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_losses_by_hand():
    pairs = pairs_of([2.0, -1.0], logprobs=[-4.0, -9.0], tokens=[2.0, 3.0])
    right, wrong = -log_sigmoid(0.9), -log_sigmoid(-0.9)
    assert loss_of('dpo', pairs) == pytest.approx(right, rel=1e-6)
    assert loss_of('smoothed', pairs) == pytest.approx(0.8 * right + 0.2 * wrong, rel=1e-6)
    assert loss_of('robust', pairs) == pytest.approx((0.8 * right - 0.2 * wrong) / 0.6, rel=1e-5)
    assert loss_of('ipo', pairs) == pytest.approx((1 + 1 / 3 - 1 / 0.6) ** 2, rel=1e-5)
    assert loss_of('kto', pairs, z=jnp.array([0.5])) == pytest.approx(
        (1 - 1 / (1 + math.exp(-0.45))) + 0.5 * (1 - 1 / (1 + math.exp(-0.45))), rel=1e-6)
    odds = [-2 - math.log(1 - math.exp(-2)), -3 - math.log(1 - math.exp(-3))]
    assert loss_of('orpo', pairs) == pytest.approx(2 - 0.1 * log_sigmoid(odds[0] - odds[1]),
                                                   rel=1e-5)
    assert loss_of('simpo', pairs) == pytest.approx(-log_sigmoid(2.5 - 1.375), rel=1e-6)


def test_ipo_may_sum():
    method = ipo.method(ipo.Settings(0.5, False))
    pairs = pairs_of([2.0, -1.0], tokens=[2.0, 3.0])
    assert float(method.losses(pairs, {})[0]) == pytest.approx(4.0)


@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('size', [1e4, -1e4])
def test_extremes_are_finite_and_have_gradients(name, size):
    def total(x):
        pairs = preference.Pairs(-jnp.abs(x), jnp.ones_like(x), x)
        return METHODS[name].losses(pairs, {'z': jnp.zeros(1)}).sum()
    value, grad = jax.value_and_grad(total)(jnp.array([[size, -size]]))
    assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_log_odds_near_one_and_near_zero():
    for p in (1e-6, 0.3, 0.5, 0.999):
        want = math.log(p / (1 - p))
        assert float(orpo.log_odds(jnp.float32(math.log(p)))) == pytest.approx(want, rel=2e-3)
    assert np.isfinite(jax.grad(lambda x: orpo.log_odds(x))(jnp.float32(-1e-9)))


def reference_batch(params, sides=2, seed=0):
    batch = make_batch(sides, seed)
    sums = READ(params, CFG, {k: v for k, v in batch.items()
                              if k != 'ref_logprobs'}).logprobs
    return batch | {'ref_logprobs': np.array(sums)}


def test_at_the_reference_dpo_is_log_two(params):
    sums = jax.jit(preference.make_objective(METHODS['dpo'], CFG, WHOLE))(
        params, {}, reference_batch(params), None)
    term = sums.terms['preference']
    assert float(term.sum / term.weight) == pytest.approx(math.log(2), rel=1e-6)
    assert float(sums.metrics['margin'][0]) == 0
    assert float(sums.metrics['pair_accuracy'][0]) == P / 2  # all tie


def test_sums_of_log_probs_against_whole_logits(params):
    batch = make_batch()
    logits = transformer.apply(params, CFG, batch['tokens'].reshape(-1, L))
    logprobs = np.asarray(jax.nn.log_softmax(logits)).reshape(P, 2, L, -1)
    found = READ(params, CFG, batch)
    for p, s in ((0, 0), (3, 1), (7, 0)):
        start, end = batch['starts'][p, s], batch['lengths'][p, s]
        want = sum(logprobs[p, s, i, batch['tokens'][p, s, i + 1]] for i in range(start, end - 1))
        np.testing.assert_allclose(found.logprobs[p, s], want, rtol=1e-5)
        assert found.tokens[p, s] == end - start - 1


def test_padding_and_room_change_nothing(params):
    batch = make_batch()
    wide = dict(batch)
    for name, value in (('tokens', 7), ('completions', 9), ('mask', 0)):
        wide[name] = np.pad(batch[name], ((0, 0), (0, 0), (0, 4)), constant_values=value)
    # What stands behind a row's length is anything.
    beyond = np.arange(L + 4) >= batch['lengths'][..., None]
    wide['tokens'] = np.where(beyond, 3, wide['tokens'])
    objective = jax.jit(preference.make_objective(METHODS['dpo'], CFG, WHOLE))
    first, second = (objective(params, {}, x, None) for x in (batch, wide))
    np.testing.assert_allclose(first.terms['preference'].sum, second.terms['preference'].sum,
                               rtol=1e-5)
    for name in first.metrics:
        np.testing.assert_allclose(first.metrics[name], second.metrics[name], rtol=1e-5)


@pytest.mark.parametrize('name', ['dpo', 'kto', 'orpo'])
def test_cut_into_micro_batches_and_over_devices(name, params):
    method = METHODS[name]
    batch = make_batch(3 if method.mismatched else 2)
    batch['pair_weights'][2] = 0.0
    objective = preference.make_objective(method, CFG, WHOLE)

    def run(params, batch, accum):
        prepare = preference.make_prepare(method, CFG, WHOLE)
        batch = jax.lax.stop_gradient(prepare(params, {}, batch)) if prepare else batch
        loss, _, _, grads = loss_and_grads(objective, params, {}, batch, jax.random.key(0), accum)
        return loss, grads

    whole = jax.jit(run, static_argnums=2)(params, batch, 1)
    cut = jax.jit(run, static_argnums=2)(params, batch, 4)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        places = shardings(transformer.param_axes(params), params, mesh)
        split = jax.jit(run, static_argnums=2)(
            jax.device_put(params, places), jax.device_put(batch, batch_shardings(batch, mesh)), 1)
    for other in (cut, jax.device_get(split)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), whole,
                     other)


def test_the_zero_of_kto_has_no_gradient_and_is_never_negative(params):
    method = METHODS['kto']
    batch = reference_batch(params, 3)
    batch['ref_logprobs'][:, 2] += 5.0
    prepare = jax.jit(preference.make_prepare(method, CFG, WHOLE))
    assert not np.any(np.asarray(prepare(params, {}, batch)['z']))
    batch['ref_logprobs'][:, 2] -= 8.0
    np.testing.assert_allclose(prepare(params, {}, batch)['z'], 3.0, rtol=1e-4)
