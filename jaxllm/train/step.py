"""The train step: one pure function (state, frozen, batch) -> (state, metrics) for every objective.

    loss = sum over terms of coef * sum_i / weight_i   [+ penalty]

with sums and weights totalled over the whole global batch, into however many micro-batches it is
cut.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxllm import rng as keys
from jaxllm.errors import InputError
from jaxllm.sharding import constrain


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Which updates are skipped, and when the run stops."""
    spike_factor: float    # skip a gradient norm beyond this many medians; 0 = only non-finite ones
    history: int           # of how many accepted norms the median is taken; none is judged before
    max_skips_in_row: int  # then the run stops

    def __post_init__(self):
        if self.history < 1 or self.max_skips_in_row < 1 or self.spike_factor < 0:
            raise InputError(f'train.guard: got {self}; expected history >= 1, '
                             'max_skips_in_row >= 1 and spike_factor >= 0')


def guard_state(config):
    """What the guard remembers: recent accepted gradient norms (NaN = none yet) and its counts."""
    return {'norms': jnp.full((config.history,), jnp.nan, jnp.float32),
            'seen': jnp.zeros((), jnp.int32), 'skips': jnp.zeros((), jnp.int32),
            'skips_in_row': jnp.zeros((), jnp.int32)}


def _judge(guard, config, grad_norm, loss):
    """Returns (accept [] bool, the guard's next state)."""
    median = jnp.nanmedian(guard['norms'])
    full = guard['seen'] >= config.history
    spike = full & (grad_norm > config.spike_factor * median) & (config.spike_factor > 0)
    accept = jnp.isfinite(grad_norm) & jnp.isfinite(loss) & ~spike
    norms = guard['norms'].at[guard['seen'] % config.history].set(grad_norm)
    return accept, {
        'norms': jnp.where(accept, norms, guard['norms']),
        'seen': guard['seen'] + accept,
        'skips': guard['skips'] + ~accept,
        'skips_in_row': jnp.where(accept, 0, guard['skips_in_row'] + 1)}


def make_loss(objective, total_weights=None, penalty=None):
    """loss(trainable, frozen, batch, rng) -> (scalar, LossSums), normalised by `total_weights`
    ({term: weight of the whole batch}) or, without them, by the weights of `batch` itself."""
    def loss(trainable, frozen, batch, rng):
        sums = objective(trainable, frozen, batch, rng)
        total = 0.0
        for name, term in sums.terms.items():
            weight = term.weight if total_weights is None else total_weights[name]
            total += term.coef * term.sum / jnp.maximum(jax.lax.stop_gradient(weight), 1e-9)
        if penalty is not None:
            total += penalty(trainable, frozen)
        return total, sums
    return loss


def loss_and_grads(objective, trainable, frozen, batch, rng, accum=1, penalty=None):
    """Loss, metric sums and gradients of one global batch, in `accum` micro-batches.

    Micro-batch j is rows j, j + accum, ...: neighbours on one device stay on it. Returns (loss,
    {metric: (sum, weight)}, {term: value}, gradients), the same for every `accum` unless the
    objective draws random numbers.
    """
    if accum == 1:
        (loss, sums), grads = jax.value_and_grad(make_loss(objective, penalty=penalty),
                                                 has_aux=True)(trainable, frozen, batch, rng)
        return loss, sums.metrics, _term_values(sums), grads

    def cut(x):
        if x.shape[0] % accum:
            raise InputError(f'a batch of {x.shape[0]} does not divide into train.accum={accum} '
                             'micro-batches; use a batch size that is a multiple of it')
        x = x.reshape(x.shape[0] // accum, accum, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, 'batch', *(None,) * (x.ndim - 2))

    micro, rngs = jax.tree.map(cut, batch), jax.random.split(rng, accum)
    # The weights of all micro-batches, before anything is differentiated. They depend on the batch
    # alone, so the compiler drops the rest of this pass.
    weights = jax.lax.map(
        lambda xs: {name: term.weight
                    for name, term in objective(trainable, frozen, *xs).terms.items()},
        (micro, rngs))
    totals = jax.tree.map(lambda w: w.sum(0), weights)
    grad = jax.value_and_grad(make_loss(objective, totals), has_aux=True)

    def body(carry, xs):
        (loss, sums), grads = grad(trainable, frozen, *xs)
        new = loss, sums.metrics, {n: term.sum for n, term in sums.terms.items()}, grads
        return jax.tree.map(jnp.add, carry, new), None

    first = jax.tree.map(lambda x: x[0], (micro, rngs))
    (loss, sums), _ = jax.eval_shape(grad, trainable, frozen, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (
        loss, sums.metrics, {n: term.sum for n, term in sums.terms.items()}, trainable))
    (loss, metrics, terms, grads), _ = jax.lax.scan(body, zeros, (micro, rngs))
    terms = {name: value / jnp.maximum(totals[name], 1e-9) for name, value in terms.items()}
    if penalty is not None:
        extra, more = jax.value_and_grad(penalty)(trainable, frozen)
        loss, grads = loss + extra, jax.tree.map(jnp.add, grads, more)
    return loss, metrics, terms, grads


def _term_values(sums):
    return {name: term.sum / jnp.maximum(term.weight, 1e-9) for name, term in sums.terms.items()}


def make_train_step(objective, optimizer, lr, *, seed, accum=1, clip_norm=0.0, ema_decay=0.0,
                    guard, prepare=None, update_aux=None, penalty=None):
    """Builds step(state, frozen, batch) -> (state, metrics).

    Args:
      objective: see `objectives/base.py`.
      optimizer: maps gradients to directions (`train/optim.py`).
      lr: learning rate as a function of the step.
      seed: of all randomness in the step, folded with the step index.
      accum: micro-batches per step; must divide the batch.
      clip_norm: gradients are scaled down to this global norm; 0 = off.
      guard: GuardConfig. A skipped step leaves everything as it was but the step index and counts.
      prepare: prepare(trainable, frozen, batch) -> batch, once per step, without a gradient.
      update_aux: update_aux(aux, metrics) -> aux, after a step that was not skipped.
      penalty: penalty(trainable, frozen) -> scalar, added once after normalising.

    Metrics are float32 scalars: loss, terms, the objective's metrics, grad_norm, update_norm,
    param_norm, lr, skipped, skips, skips_in_row.
    """
    def step(state, frozen, batch):
        rng = jax.random.fold_in(keys.key(seed, keys.STEP), state.step)
        if prepare is not None:
            batch = jax.lax.stop_gradient(prepare(state.trainable, frozen, batch))
        loss, sums, terms, grads = loss_and_grads(
            objective, state.trainable, frozen, batch, rng, accum, penalty)
        grad_norm = optax.tree.norm(grads)
        accept, guarded = _judge(state.aux['guard'], guard, grad_norm, loss)
        if clip_norm:
            scale = jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-12))
            grads = jax.tree.map(lambda g: g * scale, grads)
        directions, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        rate = lr(state.step)
        updates = jax.tree.map(lambda d: -rate * d, directions)
        trainable = optax.apply_updates(state.trainable, updates)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(accept, n, o), new, old)
        # Early on a shorter average, lest the random start stays in it for long.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = optax.incremental_update(trainable, state.ema, 1 - decay) if ema_decay else {}
        metrics = {'loss': loss, 'grad_norm': grad_norm, 'update_norm': optax.tree.norm(updates),
                   'param_norm': optax.tree.norm(state.trainable), 'lr': rate,
                   'skipped': ~accept, 'skips': guarded['skips'],
                   'skips_in_row': guarded['skips_in_row']}
        metrics |= {name: total / jnp.maximum(weight, 1e-9)
                    for name, (total, weight) in sums.items()}
        if len(terms) > 1:
            metrics |= {f'terms/{name}': value for name, value in terms.items()}
        metrics = {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}
        aux = state.aux | {'guard': guarded}
        if update_aux is not None:
            aux = keep(update_aux(aux, metrics), aux)
        state = state.replace(
            step=state.step + 1, trainable=keep(trainable, state.trainable),
            opt_state=keep(opt_state, state.opt_state), ema=keep(ema, state.ema), aux=aux)
        return state, metrics
    return step


def make_eval_step(objective):
    """Builds eval(trainable, frozen, batch) -> (terms, metrics), each {name: (sum, weight)}: add
    them up over batches, then divide once. The loss is the sum of the terms."""
    def evaluate(trainable, frozen, batch):
        sums = objective(trainable, frozen, batch, jax.random.key(0))
        return {name: (term.coef * term.sum, term.weight)
                for name, term in sums.terms.items()}, sums.metrics
    return evaluate
