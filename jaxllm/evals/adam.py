"""One step of Adam, opened: gradients, moments, parameters before and after; and by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.errors import InputError
from jaxllm.train.step import loss_and_grads

_DECAYED = 'kernel', 'tokens', 'positions'  # matrices and embeddings


@dataclasses.dataclass(frozen=True)
class AdamStep:
    """One step of AdamW on one batch, all trees as numpy.

    before, grad, mu, nu, after: parameters, clipped gradients, new moments, new parameters.
    by_hand: `after` as computed with numpy alone, float64.
    count: steps that the moments have seen, this one too. lr: of this step.
    optim: OptimConfig. loss_before, loss_after: of this batch.
    """
    before: dict
    grad: dict
    mu: dict
    nu: dict
    after: dict
    by_hand: dict
    count: int
    lr: float
    optim: object
    loss_before: float
    loss_after: float

    @property
    def difference(self):
        """The largest difference, over all parameters, between numpy's step and optax's."""
        gaps = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), self.by_hand, self.after)
        return max(jax.tree.leaves(gaps))

    def pick(self, path):
        """{name: array} of one parameter, e.g. 'layers/layer_0/mlp/up/kernel', with all layers that
        are stacked there."""
        found = {}
        for name in ('before', 'grad', 'mu', 'nu', 'after'):
            found[name] = getattr(self, name)
            for key in path.split('/'):
                if key not in found[name]:
                    raise InputError(f'{path!r} is no parameter: no {key!r} among '
                                     f'{", ".join(found[name])}; use one of them')
                found[name] = found[name][key]
        return found

    def numbers(self, path, count):
        """Rows of a table: the `count` entries of a parameter with the largest gradients, as dicts
        of all that goes into their update."""
        part = {name: np.ravel(x).astype(np.float64) for name, x in self.pick(path).items()}
        rows = []
        for i in np.argsort(-np.abs(part['grad']), kind='stable')[:count]:
            mu_hat = part['mu'][i] / (1 - self.optim.b1 ** self.count)
            nu_hat = part['nu'][i] / (1 - self.optim.b2 ** self.count)
            rows.append({'before': part['before'][i], 'gradient g': part['grad'][i],
                         'mean m': mu_hat, 'root of mean square': np.sqrt(nu_hat),
                         'direction': mu_hat / (np.sqrt(nu_hat) + self.optim.eps),
                         'change': part['after'][i] - part['before'][i],
                         'after': part['after'][i]})
        return rows


def adam_by_hand(param, grad, mu, nu, count, *, lr, b1, b2, eps, weight_decay):
    """The new (param, mu, nu), in float64 with numpy.

        mu = b1 mu + (1 - b1) g;  nu = b2 nu + (1 - b2) g^2;  _hat: over 1 - b^count
        w = w - lr (mu_hat / (sqrt(nu_hat) + eps) + weight_decay w)

    Args:
      mu, nu: moments before the step; count: steps, this one too, from 1.

    Ref: Kingma & Ba 2014 (arXiv 1412.6980), algorithm 1; Loshchilov & Hutter (arXiv 1711.05101).
    """
    param, grad, mu, nu = (np.asarray(x, np.float64) for x in (param, grad, mu, nu))
    mu = b1 * mu + (1 - b1) * grad
    nu = b2 * nu + (1 - b2) * grad ** 2
    mu_hat, nu_hat = mu / (1 - b1 ** count), nu / (1 - b2 ** count)
    return param - lr * (mu_hat / (np.sqrt(nu_hat) + eps) + weight_decay * param), mu, nu


def adam_step(params, opt_state, objective, batch, optimizer, optim, lr):
    """One step by the optimizer, and the same by hand. Returns an AdamStep; changes nothing.

    Args:
      opt_state: of `optimizer`, which is `make_optimizer(optim, params)` and must be AdamW.
      optim: OptimConfig; lr: the learning rate of the step.
    """
    if optim.name != 'adamw':
        raise InputError(f'adam_step: optim.name={optim.name!r} is no Adam; use a run with '
                         '--config.optim.name=adamw')
    loss, grads, after, new_state = jax.device_get(
        _step(objective, optimizer, optim.clip_norm, np.float32(lr), params, opt_state, batch))
    loss_after = _loss(objective, after, batch)
    old, moments, before = jax.device_get(opt_state[0]), new_state[0], jax.device_get(params)
    count = int(moments.count)

    def by_hand(path, *args):
        decay = optim.weight_decay if path[-1].key in _DECAYED else 0.0
        return adam_by_hand(*args, count, lr=float(lr), b1=optim.b1, b2=optim.b2, eps=optim.eps,
                            weight_decay=decay)[0]

    return AdamStep(before, grads, moments.mu, moments.nu, after,
                    jax.tree_util.tree_map_with_path(by_hand, before, grads, old.mu, old.nu),
                    count, float(lr), optim, float(loss), float(loss_after))


def repeat_steps(params, opt_state, objective, batch, other, optimizer, optim, lr, count):
    """`count` steps on one batch only: (losses on it, losses on `other`), `count` + 1 each."""
    losses, apart = [], []
    for _ in range(count + 1):
        apart.append(float(_loss(objective, params, other)))
        loss, _, params, opt_state = _step(objective, optimizer, optim.clip_norm, np.float32(lr),
                                           params, opt_state, batch)
        losses.append(float(loss))
    return np.array(losses), np.array(apart)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step(objective, optimizer, clip_norm, lr, params, opt_state, batch):
    """(loss before, clipped gradients, new parameters, new optimizer state)."""
    loss, _, _, grads = loss_and_grads(objective, params, {}, batch, jax.random.key(0))
    if clip_norm:
        clip = jnp.minimum(1.0, clip_norm / jnp.maximum(optax.tree.norm(grads), 1e-12))
        grads = jax.tree.map(lambda g: g * clip, grads)
    directions, opt_state = optimizer.update(grads, opt_state, params)
    return loss, grads, jax.tree.map(lambda w, d: w - lr * d, params, directions), opt_state


@functools.partial(jax.jit, static_argnums=0)
def _loss(objective, params, batch):
    terms = objective(params, {}, batch, jax.random.key(0)).terms.values()
    return sum(term.coef * term.sum / term.weight for term in terms)
