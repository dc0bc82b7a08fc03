"""Low-rank adapters as a transform of the parameter tree.

    LoRA    y = x W + s (x A) B                                (Hu et al. 2021, arXiv 2106.09685)
    rsLoRA  the same with s = alpha / sqrt(R), not alpha / R   (Kalajdzievski 2023, arXiv 2312.03732)
    DoRA    y = m / ||V|| * (x W + s (x A) B), V = W + s A B   (Liu et al. 2024, arXiv 2402.09353)

An adapter is a tree of its own with the paths of the base's linear layers: {'lora_a' [*inputs, R],
'lora_b' [R, *features], DoRA's 'magnitude' [*features]}, and with `train_embeddings` the whole
token table (and an untied head). `combine` lays it over the base without touching the base's
arrays; a Linear that finds 'lora_a' beside its kernel adds the low-rank path, so that nothing of
W's shape is computed for it, forward or backward. `merge` makes plain parameters.
"""

import dataclasses
import fnmatch
import math

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.models.quantize import (KINDS, NUM_INPUTS, dequantize, dequantize_kernel, is_stacked,
                                    kernel_shape, linears, quantize)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """rank 0 is no adapter: all weights are trained."""
    rank: int
    alpha: float             # the update is scaled by alpha / rank
    targets: tuple           # patterns of layers, e.g. 'attention/*', 'mlp/up'; '*' = all
    rslora: bool             # alpha / sqrt(rank) instead
    dora: bool
    train_embeddings: bool   # the token table and an untied head as well, in full
    base: str                # how the frozen kernels are stored: quantize.KINDS

    def __post_init__(self):
        if self.rank < 0:
            raise InputError(f'lora.rank={self.rank} must be at least 1, or 0 to train all weights')
        if not self.alpha > 0:
            raise InputError(f'lora.alpha={self.alpha} must be positive')
        if not self.targets or isinstance(self.targets, str):
            raise InputError(f"lora.targets={self.targets!r}: expected patterns, e.g. ('*',)")
        if self.base not in KINDS:
            raise InputError(f'lora.base={self.base!r} is unknown; use one of {", ".join(KINDS)}')
        if not self.rank and self.base != 'float32':
            raise InputError(f'lora.base={self.base} stores frozen weights, and lora.rank=0 trains '
                             'them all; use lora.base=float32, or a rank')

    @property
    def scale(self):
        """s of the module's formulas."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def layer_name(path):
    """'attention/q' of the path of a Linear."""
    return '/'.join(path[-2:])


def target_paths(params, lora):
    """Paths of the Linear layers that get an adapter.

    Raises:
      InputError: a pattern that fits no layer, or a rank beyond what a layer can have.
    """
    found = linears(params)
    names = sorted({layer_name(path) for path in found})
    for pattern in lora.targets:
        if not fnmatch.filter(names, pattern):
            raise InputError(f'lora.targets: {pattern!r} fits no layer; the layers are '
                             f'{", ".join(names)}')
    paths = [path for path in found
             if any(fnmatch.fnmatchcase(layer_name(path), p) for p in lora.targets)]
    for path in paths:
        inputs, features = _split(path, found[path])
        if lora.rank > min(math.prod(inputs), math.prod(features)):
            raise InputError(f'lora.rank={lora.rank} is more than {layer_name(path)} can have '
                             f'({math.prod(inputs)} x {math.prod(features)}); use at most '
                             f'{min(math.prod(inputs), math.prod(features))}')
    return paths


def _split(path, leaves):
    """(inputs, features): axes of the kernel of one layer."""
    shape = kernel_shape(leaves)[is_stacked(path):]
    return shape[:NUM_INPUTS[path[-1]]], shape[NUM_INPUTS[path[-1]]:]


def init_adapter(key, params, lora):
    """A fresh adapter, float32: with it the model computes what the base does.

    A is uniform in +-1 / sqrt(inputs), B is 0; DoRA's magnitude is the norm of the base's columns.

    Args:
      params: the base, quantised or not; only shapes matter but for DoRA.
    """
    adapter, found = {}, linears(params)
    wanted = set(target_paths(params, lora))
    for number, (path, leaves) in enumerate(found.items()):
        if path not in wanted:
            continue
        inputs, features = _split(path, leaves)
        layers = kernel_shape(leaves)[:is_stacked(path)]
        bound = 1 / math.sqrt(math.prod(inputs))
        new = {'lora_a': jax.random.uniform(jax.random.fold_in(key, number),
                                            (*layers, *inputs, lora.rank), jnp.float32, -bound,
                                            bound),
               'lora_b': jnp.zeros((*layers, lora.rank, *features), jnp.float32)}
        if lora.dora:
            new['magnitude'] = _column_norms(path, leaves)
        _put(adapter, path, new)
    if lora.train_embeddings:
        # Copies: the trainer gives the adapter's buffers away with every step.
        adapter['embed'] = {'tokens': jnp.copy(params['embed']['tokens'])}
        if 'head' in params:
            adapter['head'] = {'kernel': jnp.copy(params['head']['kernel'])}
    return adapter


def num_trainable(adapter):
    """How many numbers are trained."""
    return sum(x.size for x in jax.tree.leaves(adapter))


def _column_norms(path, leaves):
    kernel = dequantize_kernel(leaves, NUM_INPUTS[path[-1]], is_stacked(path))
    start = int(is_stacked(path))
    axes = tuple(range(start, start + NUM_INPUTS[path[-1]]))
    return jnp.sqrt(jnp.sum(kernel ** 2, axis=axes))


def _put(tree, path, leaves):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaves


def prepare_base(params, lora):
    """Plain parameters as they are stored while frozen."""
    return quantize(params, lora.base)


def combine(base, adapter, lora):
    """The tree that `transformer.apply` takes: the adapter's leaves beside those of the base.

    The base's arrays are shared and not copied, so that changing adapters costs nothing.
    """
    def lay(below, above):
        if not isinstance(above, dict):
            return above
        if 'lora_a' in above:
            return below | above | {'lora_b': lora.scale * above['lora_b']}
        return below | {name: lay(below[name], node) for name, node in above.items()}
    return lay(base, adapter)


def merge(base, adapter, lora):
    """Plain float32 parameters that compute what base and adapter compute together."""
    plain = dequantize(base)

    def lay(path, below, above):
        if not isinstance(above, dict):
            return above
        if 'lora_a' not in above:
            return below | {name: lay((*path, name), below[name], node)
                            for name, node in above.items()}
        # One layer at a time: the product of all of them would be a second copy of the model.
        one = lambda kernel, *parts: _merged_kernel(path, kernel, *parts, lora=lora)
        parts = [below['kernel'], above['lora_a'], above['lora_b']]
        parts += [above['magnitude']] if lora.dora else []
        kernel = (jax.lax.map(lambda xs: one(*xs), tuple(parts)) if is_stacked(path)
                  else one(*parts))
        return below | {'kernel': kernel}
    return lay((), plain, adapter)


def _merged_kernel(path, kernel, a, b, magnitude=None, *, lora):
    update = lora.scale * jnp.tensordot(a, b, axes=1, precision='highest')
    kernel = kernel + update
    if magnitude is None:
        return kernel
    axes = tuple(range(NUM_INPUTS[path[-1]]))
    norm = jnp.sqrt(jnp.sum(kernel ** 2, axis=axes))
    factor = magnitude / norm
    return kernel * factor.reshape((1,) * len(axes) + factor.shape)
