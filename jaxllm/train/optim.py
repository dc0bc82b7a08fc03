"""Optimisers and learning-rate schedules, on optax.

An optimizer here maps gradients to *directions*; the step multiplies them with -lr(step). So the
learning rate follows `state.step`, not a counter that a skipped step would leave behind.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxllm.errors import InputError
from jaxllm.models.transformer import param_axes
from jaxllm.sharding import is_axes

OPTIMIZERS = ('adamw', 'muon')
SCHEDULES = ('cosine', 'wsd', 'linear', 'constant')


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: str             # OPTIMIZERS
    lr: float             # peak learning rate
    schedule: str         # SCHEDULES
    warmup_steps: int
    decay_share: float    # share of all steps in which 'wsd' decays, at the end
    final_lr_share: float  # learning rate at the end / peak
    b1: float
    b2: float
    eps: float
    weight_decay: float   # of matrices and embeddings; never of norms and biases
    clip_norm: float      # of the global gradient norm; 0 = off
    ema_decay: float      # of a moving average of the parameters; 0 = none is kept
    muon_momentum: float

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise InputError(f'optim.name={self.name!r} is unknown; use one of '
                             f'{", ".join(OPTIMIZERS)}')
        if self.schedule not in SCHEDULES:
            raise InputError(f'optim.schedule={self.schedule!r} is unknown; use one of '
                             f'{", ".join(SCHEDULES)}')
        for name in ('lr', 'eps'):
            if not getattr(self, name) > 0:
                raise InputError(f'optim.{name}={getattr(self, name)} must be positive')
        for name in ('b1', 'b2', 'ema_decay', 'muon_momentum'):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f'optim.{name}={getattr(self, name)} must be in [0, 1)')
        for name in ('decay_share', 'final_lr_share'):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f'optim.{name}={getattr(self, name)} must be in [0, 1]')
        for name in ('warmup_steps', 'weight_decay', 'clip_norm'):
            if getattr(self, name) < 0:
                raise InputError(f'optim.{name}={getattr(self, name)} must not be negative')


def schedule(config, num_steps):
    """lr(step): a linear warm-up, then the named shape down to final_lr_share * lr at `num_steps`.

    'wsd' holds the peak and decays linearly in the last decay_share of the steps (Hu 2024, arXiv
    2404.06395); 'cosine' is Loshchilov & Hutter 2016 without restarts.
    """
    if config.warmup_steps >= num_steps:
        raise InputError(f'optim.warmup_steps={config.warmup_steps} leaves no step of '
                         f'train.num_steps={num_steps} at the peak learning rate; use e.g. '
                         f'--config.optim.warmup_steps={num_steps // 10}')
    steps, end = num_steps - config.warmup_steps, config.final_lr_share

    def lr(step):
        t = jnp.clip((step - config.warmup_steps) / steps, 0, 1)
        if config.schedule == 'cosine':
            shape = end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * t))
        elif config.schedule == 'linear':
            shape = 1 - (1 - end) * t
        elif config.schedule == 'wsd':
            decay_steps = max(1, round(config.decay_share * num_steps))
            shape = 1 - (1 - end) * jnp.clip((step - (num_steps - decay_steps)) / decay_steps, 0, 1)
        else:
            shape = jnp.ones(())
        warmup = jnp.minimum(1, (step + 1) / (config.warmup_steps + 1))
        return jnp.asarray(config.lr * warmup * shape, jnp.float32)
    return lr


def _decayed(params):
    """True for matrices and embeddings. By name and not by rank: a stack of norm scales [N, D] has
    two axes as well."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key in ('kernel', 'tokens', 'positions', 'lora_a', 'lora_b'),
        params)


def _muon_dimensions(axes):
    """How Muon reads a parameter with logical `axes` as a (stack of) matrices; None: by AdamW.

    A kernel maps its first axes to its last ones. Embeddings, the head, norms and biases are left
    to AdamW (Jordan 2024, https://kellerjordan.github.io/posts/muon), and so are the factors of an
    adapter, which have an axis without a name: it is their product that is a weight matrix.
    """
    if None in axes:
        return None
    names = [a for a in axes if a != 'layers']
    if len(names) < 2 or 'd_model' not in names or 'vocab' in names or 'positions' in names:
        return None
    d_model = (axes.index('d_model'),)
    others = tuple(i for i, a in enumerate(axes) if a not in ('layers', 'd_model'))
    into, out = (d_model, others) if names[0] == 'd_model' else (others, d_model)
    return MuonDimensionNumbers(reduction_axis=into, output_axis=out)


def _adam(config):
    return optax.scale_by_adam(config.b1, config.b2, config.eps)


def _muon(config, axes_tree):
    dimensions = jax.tree.map(_muon_dimensions, axes_tree, is_leaf=is_axes)
    leaf = lambda x: x is None or isinstance(x, MuonDimensionNumbers)
    labels = jax.tree.map(lambda d: 'adam' if d is None else 'muon', dimensions, is_leaf=leaf)
    matrices = jax.tree.map(lambda d: optax.MaskedNode() if d is None else d, dimensions,
                            is_leaf=leaf)

    def scale(x, dimension):
        sizes = [math.prod(x.shape[i] for i in axes) for axes in dimension]
        return 0.2 * math.sqrt(max(sizes)) * x

    orthogonal = scale_by_muon(beta=config.muon_momentum, eps=config.eps,
                               weight_dimension_numbers=matrices)
    scaled = optax.stateless(lambda updates, _: jax.tree.map(scale, updates, matrices))
    # Not optax.contrib.muon: that one has Nesterov momentum in its Adam, too.
    return optax.partition({'muon': optax.chain(orthogonal, scaled), 'adam': _adam(config)}, labels)


def make_optimizer(config, params):
    """optax.GradientTransformation of `config` for parameters shaped like `params`.

    'adamw' is Loshchilov & Hutter (arXiv 1711.05101). 'muon' orthogonalises the momentum of each
    weight matrix by Newton-Schulz steps, scaled to AdamW's update size (0.2 per element, Liu 2025,
    arXiv 2502.16982) so that both share one learning rate; the other parameters get AdamW.
    """
    if config.name == 'muon':
        directions = _muon(config, param_axes(params))
    else:
        directions = _adam(config)
    return optax.chain(directions, optax.add_decayed_weights(config.weight_decay, _decayed))
