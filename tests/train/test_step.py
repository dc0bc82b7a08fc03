"""The train step: accumulation, hooks, clipping, averages, the guard and float32 master weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.objectives.base import LossSums, Term
from jaxllm.objectives.lm import lm
from jaxllm.train import state as train_state
from jaxllm.train import step as train_step

pytestmark = pytest.mark.usefixtures('mesh')

GUARD = train_step.GuardConfig(spike_factor=3.0, history=3, max_skips_in_row=5)


def regression(trainable, frozen, batch, rng):
    """sum w (x k + b - y)^2 / sum w + 0.5 * sum v |x k + b| / sum v."""
    del frozen, rng
    out_B = batch['x_BD'] @ trainable['kernel'] + trainable['bias']
    fit = jnp.sum(batch['w_B'] * (out_B - batch['y_B']) ** 2)
    return LossSums({'fit': Term(fit, batch['w_B'].sum()),
                     'size': Term(jnp.sum(batch['v_B'] * jnp.abs(out_B)), batch['v_B'].sum(), 0.5)},
                    {'error': (fit, batch['w_B'].sum())})


def _batch(B=12, D=5, seed=0):
    rng = np.random.default_rng(seed)
    w_B = rng.integers(0, 4, B).astype(np.float32)
    w_B[::4] = 0  # the first micro-batch of four weighs nothing
    return {'x_BD': rng.normal(size=(B, D)).astype(np.float32),
            'y_B': rng.normal(size=B).astype(np.float32),
            'w_B': w_B, 'v_B': rng.uniform(size=B).astype(np.float32)}


def _trainable(D=5):
    return {'kernel': jnp.arange(1., D + 1) / D, 'bias': jnp.array(0.25)}


def _by_hand(params, batch):
    """(loss, {parameter: gradient}) of `regression` in float64."""
    x, y, w, v = (np.float64(batch[name]) for name in ('x_BD', 'y_B', 'w_B', 'v_B'))
    k, b = np.float64(params['kernel']), np.float64(params['bias'])
    out = x @ k + b
    slope = 2 * w * (out - y) / w.sum() + 0.5 * v * np.sign(out) / v.sum()
    loss = (w * (out - y) ** 2).sum() / w.sum() + 0.5 * (v * np.abs(out)).sum() / v.sum()
    return loss, {'kernel': slope @ x, 'bias': slope.sum()}


def _run(batches, *, objective=regression, optimizer=None, lr=0.1, state=None, ema_decay=0.0,
         aux=None, **options):
    """States after each batch and their metrics; directions are the gradients by default."""
    optimizer = optimizer or optax.trace(0.0)
    step = jax.jit(train_step.make_train_step(
        objective, optimizer, lambda step: jnp.float32(lr), seed=0, guard=GUARD,
        ema_decay=ema_decay, **options))
    state = state or train_state.create(_trainable(), optimizer, ema=ema_decay > 0,
                                        aux={'guard': train_step.guard_state(GUARD)} | (aux or {}))
    states, metrics = [state], []
    for batch in batches:
        state, values = step(state, {}, batch)
        states.append(state)
        metrics.append({name: float(x) for name, x in values.items()})
        assert all(x.dtype == jnp.float32 for x in values.values())
    return states, metrics


@pytest.mark.parametrize('accum', [1, 2, 4, 12])
def test_loss_and_update_are_those_of_the_whole_batch(accum):
    (before, after), (metrics,) = _run([_batch()], accum=accum)
    loss, grads = _by_hand(before.trainable, _batch())
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
    for name, grad in grads.items():
        np.testing.assert_allclose(before.trainable[name] - after.trainable[name], 0.1 * grad,
                                   rtol=2e-5, atol=1e-6)
    norm = np.sqrt(sum((g ** 2).sum() for g in grads.values()))
    np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics['update_norm'], 0.1 * norm, rtol=1e-5)
    np.testing.assert_allclose(metrics['loss'],
                               metrics['terms/fit'] + 0.5 * metrics['terms/size'], rtol=1e-5)
    np.testing.assert_allclose(metrics['error'], metrics['terms/fit'], rtol=1e-5)
    assert metrics['lr'] == np.float32(0.1) and metrics['skips'] == 0


def test_accum_that_does_not_divide_the_batch_is_an_error():
    with pytest.raises(InputError, match='12.*accum=5'):
        _run([_batch()], accum=5)


def _lm_batch(cfg, B=8, L=13):
    rng, tokens_BL = np.random.default_rng(1), toy_models.tokens(cfg, B, L + 1)
    weights_BL = rng.integers(0, 3, (B, L)) * (np.arange(L)[None] < np.arange(3, 3 + B)[:, None])
    return {'tokens': tokens_BL[:, :-1], 'targets': tokens_BL[:, 1:],
            'loss_weights': weights_BL.astype(np.float32),
            'segment_ids': np.ones((B, L), np.int32),
            'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
            'num_bytes': np.arange(1, B + 1, dtype=np.float32)}


@pytest.fixture(scope='module')
def accumulated(mesh):
    """{accum: (loss, metrics, terms, gradients, compiled text)} of a language model."""
    del mesh
    cfg = toy_models.config('llama', num_layers=2)
    params, batch = toy_models.params(cfg), _lm_batch(cfg)
    out = {}
    for accum in (1, 2, 4):
        fn = jax.jit(lambda p, b, accum=accum: train_step.loss_and_grads(
            lm(cfg, z_loss=1e-3, chunk_size=5), p, {}, b, jax.random.key(0), accum))
        compiled = fn.lower(params, batch).compile()
        out[accum] = *compiled(params, batch), compiled.as_text()
    return out


@pytest.mark.parametrize('accum', [2, 4])
def test_accumulation_changes_no_gradient_of_a_model(accumulated, accum):
    *one, _ = accumulated[1]
    *many, _ = accumulated[accum]
    assert float(one[0]) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 jax.tree.leaves(one), jax.tree.leaves(many))


def test_weighing_the_micro_batches_beforehand_is_free(accumulated):
    """The loop over micro-batches has the same matrix products as one batch; a pass for the weights
    that the compiler kept would add those of a whole forward pass."""
    dots = {accum: len(re.findall(r' dot\(', text)) for accum, (*_, text) in accumulated.items()}
    assert dots[1] == dots[2] == dots[4] > 20


def test_gradients_are_clipped_to_a_global_norm():
    (before, after), (metrics,) = _run([_batch()], clip_norm=0.01)
    _, grads = _by_hand(before.trainable, _batch())
    norm = np.sqrt(sum((g ** 2).sum() for g in grads.values()))
    np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-5)  # before clipping
    np.testing.assert_allclose(metrics['update_norm'], 0.1 * 0.01, rtol=1e-5)
    np.testing.assert_allclose(before.trainable['bias'] - after.trainable['bias'],
                               0.1 * 0.01 * grads['bias'] / norm, rtol=1e-2)
    (_, unclipped), _ = _run([_batch()], clip_norm=1e4)
    np.testing.assert_allclose(before.trainable['bias'] - unclipped.trainable['bias'],
                               0.1 * grads['bias'], rtol=1e-5)


def test_moving_average_of_the_parameters():
    states, _ = _run([_batch(), _batch(seed=1)], ema_decay=0.75)
    average = states[0].trainable['kernel']
    for decay, state in zip((1 / 10, 2 / 11), states[1:], strict=True):  # below 0.75 so early
        average = decay * average + (1 - decay) * state.trainable['kernel']
    np.testing.assert_allclose(states[2].ema['kernel'], average, rtol=1e-6)


def _same(a, b):
    return all(np.array_equal(x, y) for x, y in
               zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e30])
def test_a_step_without_finite_gradient_changes_nothing(bad):
    broken = _batch(seed=1)
    broken['y_B'] = np.full(12, bad, np.float32)
    states, metrics = _run(
        [_batch(), broken, broken, _batch(seed=2)], optimizer=optax.scale_by_adam(), ema_decay=0.9,
        aux={'gain': jnp.float32(1)},
        update_aux=lambda aux, metrics: aux | {'gain': aux['gain'] + metrics['loss']})
    one, two = states[1], states[3]
    for part in ('trainable', 'opt_state', 'ema'):
        assert _same(getattr(one, part), getattr(two, part)), part
        assert not _same(getattr(one, part), getattr(states[4], part)), part
    assert one.aux['gain'] == two.aux['gain'] and np.isfinite(states[4].aux['gain'])
    assert int(two.step) == 3
    assert [m['skipped'] for m in metrics] == [0, 1, 1, 0]
    assert [m['skips'] for m in metrics] == [0, 1, 2, 2]
    assert [m['skips_in_row'] for m in metrics] == [0, 1, 2, 0]
    np.testing.assert_array_equal(one.aux['guard']['norms'], two.aux['guard']['norms'])


def test_a_spike_is_skipped_once_the_history_is_full():
    def scaled(factor):
        return _batch() | {'w_B': _batch()['w_B'], 'y_B': np.full(12, factor, np.float32)}

    # lr 0: equal batches have equal gradients, of about 2 * factor.
    factors = [10, 1000, 10, 10, 1000, 10, 20, 1000]
    states, metrics = _run([scaled(f) for f in factors], lr=0.0)
    assert [m['skipped'] for m in metrics] == [0, 0, 0, 0, 1, 0, 0, 1]
    assert [m['skips_in_row'] for m in metrics] == [0, 0, 0, 0, 1, 0, 0, 1]
    norms = np.array([m['grad_norm'] for m in metrics])
    # A ring of the last three accepted norms, those of steps 3, 5 and 6 (counting from 0).
    np.testing.assert_array_equal(np.sort(states[-1].aux['guard']['norms']),
                                  np.sort(norms[[3, 5, 6]]).astype(np.float32))


@pytest.mark.parametrize('accum', [1, 3])
def test_a_penalty_counts_once(accum):
    penalty = lambda trainable, frozen: 2.0 * jnp.sum(trainable['kernel'] ** 2)
    (before, after), (metrics,) = _run([_batch()], accum=accum, penalty=penalty)
    loss, grads = _by_hand(before.trainable, _batch())
    k = before.trainable['kernel']
    np.testing.assert_allclose(metrics['loss'], loss + 2 * jnp.sum(k ** 2), rtol=1e-5)
    np.testing.assert_allclose(k - after.trainable['kernel'], 0.1 * (grads['kernel'] + 4 * k),
                               rtol=1e-4)


@pytest.mark.parametrize('accum', [1, 3])
def test_prepare_sees_the_whole_batch_and_has_no_gradient(accum):
    def prepare(trainable, frozen, batch):  # targets relative to the batch's mean prediction
        out_B = batch['x_BD'] @ trainable['kernel'] * frozen['scale']
        return batch | {'y_B': batch['y_B'] + out_B.mean()}

    step = jax.jit(train_step.make_train_step(
        regression, optax.identity(), lambda step: jnp.float32(0.1), seed=0, guard=GUARD,
        accum=accum, prepare=prepare))
    before = train_state.create(_trainable(), optax.identity(), ema=False,
                                aux={'guard': train_step.guard_state(GUARD)})
    batch, frozen = _batch(), {'scale': jnp.float32(3)}
    after, metrics = step(before, frozen, batch)
    loss, grads = _by_hand(before.trainable, prepare(before.trainable, frozen, batch))
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
    np.testing.assert_allclose(before.trainable['kernel'] - after.trainable['kernel'],
                               0.1 * grads['kernel'], rtol=1e-4)


def test_randomness_differs_between_steps_and_micro_batches():
    def noisy(trainable, frozen, batch, rng):
        del frozen
        noise = jax.random.normal(rng)
        total = noise * jnp.sum(trainable['kernel']) * 0
        return LossSums({'fit': Term(total, jnp.float32(1))}, {'noise': (noise, jnp.float32(1)),
                                                               'square': (noise ** 2, 1.0)})

    _, (first, second) = _run([_batch()] * 2, objective=noisy, accum=2)
    _, (again, _) = _run([_batch()] * 2, objective=noisy, accum=2)
    assert first['noise'] == again['noise'] != second['noise']
    # Two different draws a, b: the mean of squares is not the square of the mean.
    assert abs(first['square'] / 2 - first['noise'] ** 2) > 1e-3


def test_master_weights_stay_float32_under_bfloat16_compute():
    cfg = toy_models.config('llama', num_layers=1, dtype='bfloat16')
    params = jax.tree.map(jnp.asarray, toy_models.params(cfg))
    state = train_state.create(params, optax.scale_by_sign(), ema=False,
                               aux={'guard': train_step.guard_state(GUARD)})
    states, metrics = _run([_lm_batch(cfg)] * 2, objective=lm(cfg), state=state, lr=1e-6,
                           optimizer=optax.scale_by_sign())
    assert metrics[0]['skips'] == 0
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(states[2].trainable), strict=True):
        assert new.dtype == jnp.float32
        assert np.all(np.abs(new - old) < 3e-6)
    scale = params['final_norm']['scale'], states[2].trainable['final_norm']['scale']
    # A bfloat16 weight near 1 moves in steps of 2^-8 and would have stayed where it was.
    assert np.abs(scale[0] - scale[1]).max() > 1e-6
    assert np.array_equal(scale[0].astype(jnp.bfloat16), scale[1].astype(jnp.bfloat16))


def test_evaluation_sums_do_not_depend_on_how_a_set_is_cut():
    evaluate = jax.jit(train_step.make_eval_step(regression))
    batch, total = _batch(), {}
    for start, stop in ((0, 5), (5, 12)):
        terms, _ = evaluate(_trainable(), {}, {n: x[start:stop] for n, x in batch.items()})
        for name, (value, weight) in terms.items():
            old = total.get(name, (0, 0))
            total[name] = old[0] + value, old[1] + weight
    loss, _ = _by_hand(_trainable(), batch)
    np.testing.assert_allclose(sum(s / w for s, w in total.values()), loss, rtol=1e-5)


@pytest.mark.parametrize('wrong', [{'history': 0}, {'max_skips_in_row': 0}, {'spike_factor': -1.}])
def test_a_guard_that_makes_no_sense_is_an_error(wrong):
    with pytest.raises(InputError, match='train.guard'):
        train_step.GuardConfig(**{'spike_factor': 3., 'history': 3, 'max_skips_in_row': 5} | wrong)
