"""Low-rank adapters as a transform of the parameter tree: LoRA, rsLoRA and DoRA.

    y = x W + s (x A) B        s = alpha / R, or alpha / sqrt(R) (rsLoRA, arXiv 2312.03732)

    adapter = init_adapter(key, params, lora)     what is trained, and nothing else
    base = prepare_base(params, lora)             what is frozen, in as few bits as lora.base says
    apply(combine(base, adapter, lora), cfg, ...)

The adapter is a tree of its own, {'layers': {'layer_0': {'attention': {'q': {'lora_a', ...}}}}};
an objective combines it with the frozen base before it applies the model, and only the adapter is
differentiated. One base serves any number of adapters: combining copies none of its arrays.

Ref: Hu et al. 2021 (arXiv 2106.09685); Liu et al. 2024, DoRA (arXiv 2402.09353).
"""

import dataclasses
import fnmatch
import functools
import math

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.models import low_rank, quantize
from jaxllm.models.transformer import PARAM_AXES, num_inputs, param_axes

LEAVES = ('lora_a', 'lora_b', 'magnitude')  # of a Linear layer; the last one is DoRA's


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    rank: int              # R; 0 = no adapter: all parameters are trained
    alpha: float           # the scale's numerator
    targets: tuple         # fnmatch patterns of layers, 'attention/q', 'mlp/*'; '*' = all
    rslora: bool           # scale alpha / sqrt(R) in place of alpha / R
    dora: bool             # a trained magnitude of every output feature
    train_embeddings: bool  # the token table and an untied head are trained in full
    base: str              # quantize.KINDS, how the frozen kernels are stored

    def __post_init__(self):
        if self.rank < 0:
            raise InputError(f'lora.rank={self.rank} must not be negative; use e.g. 16, or 0 to '
                             'train all parameters')
        if not 0 < self.alpha < math.inf:
            raise InputError(f'lora.alpha={self.alpha} must be positive, e.g. twice the rank')
        if isinstance(self.targets, str) or not self.targets:
            raise InputError(f"lora.targets={self.targets!r} must be a list of patterns, e.g. "
                             "('*',) or ('attention/*',)")
        object.__setattr__(self, 'targets', tuple(self.targets))
        if self.base not in quantize.KINDS:
            raise InputError(f'lora.base={self.base!r} is unknown; use one of '
                             f'{", ".join(quantize.KINDS)}')

    @property
    def scale(self):
        """s, by which B is multiplied."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def linears(tree, path=()):
    """Yields (path, leaves) of every Linear layer of a parameter tree: layers/layer_0/mlp/up."""
    if any(name in tree for name in quantize.MATRICES):
        yield path, tree
        return
    for name, branch in tree.items():
        # The head is an embedding, [V, D], and trained in full if at all.
        if isinstance(branch, dict) and (*path, name) != ('head',):
            yield from linears(branch, (*path, name))


def input_axes(path):
    """Indices of the input axes of the kernel at `path`, behind the axis of stacked layers."""
    stacked = int('layers' in path)
    return tuple(range(stacked, stacked + num_inputs(PARAM_AXES[f'{path[-1]}/kernel'])))


def target_paths(params, lora):
    """Paths of the Linear layers that an adapter of `lora` changes.

    Raises:
      InputError: a pattern that matches no layer, or a rank that is no rank of theirs.
    """
    names = {path: '/'.join(path[-2:]) for path, _ in linears(params)}
    for pattern in lora.targets:
        if not fnmatch.filter(names.values(), pattern):
            raise InputError(f'lora.targets: {pattern!r} matches no layer; there are '
                             f'{", ".join(sorted(set(names.values())))}')
    paths = [path for path, name in names.items()
             if any(fnmatch.fnmatchcase(name, pattern) for pattern in lora.targets)]
    for path in paths:
        ins, outs = _sizes(params, path)
        least = min(math.prod(ins), math.prod(outs))
        if not 1 <= lora.rank <= least:
            raise InputError(f'lora.rank={lora.rank} must be from 1 to {least}, the smaller side '
                             f'of {names[path]} ({math.prod(ins)} x {math.prod(outs)})')
    return paths


def _sizes(params, path):
    """(inputs, features) of one layer's kernel."""
    axes = input_axes(path)
    shape = quantize.kernel_shape(_at(params, path), axes)
    return shape[axes[0]:axes[-1] + 1], shape[axes[-1] + 1:]


def init_adapter(key, params, lora):
    """A fresh adapter, under which the model computes what it did: B = 0, m = |W|.

    A is uniform in +-1 / sqrt(inputs), as PEFT draws it (He initialisation with a = sqrt(5)); the
    paper has a normal of unnamed width.

    Args:
      params: the model's parameters, plain or from `prepare_base`. Without DoRA and
        train_embeddings their shapes are enough.

    Returns:
      The tree of all that is trained, float32. No array of it is one of `params`.

    Raises:
      InputError: see `target_paths`.
    """
    adapter = {}
    for i, path in enumerate(target_paths(params, lora)):
        (ins, outs), stack = _sizes(params, path), ()
        if 'layers' in path:
            stack = (next(iter(quantize.stored(_at(params, path)).values())).shape[0],)
        limit = 1 / math.sqrt(math.prod(ins))
        a = jax.random.uniform(jax.random.fold_in(key, i), (*stack, *ins, lora.rank), jnp.float32,
                               -limit, limit)
        leaves = {'lora_a': a, 'lora_b': jnp.zeros((*stack, lora.rank, *outs), jnp.float32)}
        if lora.dora:
            # Of the matrix that the forward pass will see, in whatever bits it is to be stored.
            matrix = quantize.stored(_at(params, path))
            if 'kernel' in matrix:
                matrix = quantize.quantise(matrix['kernel'], input_axes(path), lora.base)
            kernel = quantize.dequantise(matrix, input_axes(path), jnp.float32)
            leaves['magnitude'] = jnp.sqrt(jnp.sum(kernel ** 2, input_axes(path)))
        _put(adapter, path, leaves)
    if lora.train_embeddings:
        # Copies: the trainer gives the adapter's buffers away with every step.
        adapter['embed'] = {'tokens': jnp.copy(params['embed']['tokens'])}
        if 'head' in params:
            adapter['head'] = {'kernel': jnp.copy(params['head']['kernel'])}
    return adapter


def prepare_base(params, lora):
    """The frozen tree: `params` with the kernels of all Linear layers stored as lora.base says.

    Embeddings, the head, norms and biases stay as they are, the same arrays.
    """
    base = _copy(params)
    for path, leaves in list(linears(params)):
        if 'kernel' in leaves and lora.base != 'float32':
            rest = {name: leaf for name, leaf in leaves.items() if name != 'kernel'}
            stored = quantize.quantise(leaves['kernel'], input_axes(path), lora.base)
            _put(base, path, stored | rest)
    return base


def combine(base, adapter, lora):
    """The tree that `models.transformer` takes: the adapter's leaves beside the base's kernels.

    The scale s goes into B. What is trained in full takes the place of the base's. The arrays of
    `base` are in the result as they are, so that another adapter is another call of this.
    """
    def join(base, adapter):
        out = dict(base)
        for name, new in adapter.items():
            if isinstance(new, dict):
                out[name] = join(base[name], new)
            else:
                out[name] = lora.scale * new if name == 'lora_b' else new
        return out
    return join(base, adapter)


def merge(base, adapter, lora):
    """The plain float32 parameters of a model that computes the same without an adapter.

    W + s A B, or m (W + s A B) / |W + s A B|, in float32 whatever the base is stored in. One layer
    at a time; `base` stays as it is.
    """
    params = _copy(combine(base, adapter, lora))
    for path, leaves in list(linears(params)):
        names = [name for name in (*quantize.stored(leaves), *LEAVES) if name in leaves]
        rest = {name: leaf for name, leaf in leaves.items() if name not in names}
        dense = _dense({name: leaves[name] for name in names}, input_axes(path), 'layers' in path)
        _put(params, path, {'kernel': dense} | rest)
    return params


@functools.partial(jax.jit, static_argnames=('inputs', 'stacked'))
def _dense(leaves, inputs, stacked):
    """The float32 kernel that a layer's leaves stand for."""
    kernel = quantize.dequantise(quantize.stored(leaves), inputs, jnp.float32)
    if 'lora_a' not in leaves:
        return kernel
    merged = jax.vmap(low_rank.merged) if stacked else low_rank.merged
    return merged(kernel, *(leaves[name] for name in LEAVES if name in leaves))


def adapter_axes(adapter):
    """The tree of logical axes of an adapter (or of its shapes), for `sharding.shardings`."""
    return param_axes(adapter)


def num_trainable(adapter):
    """How many numbers are trained."""
    return sum(x.size for x in jax.tree.leaves(adapter))


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def _put(tree, path, value):
    """Sets `value` at `path`, with the dicts on the way; `tree` itself is changed."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _copy(tree):
    """Other dicts, the same arrays."""
    return {name: _copy(x) if isinstance(x, dict) else x for name, x in tree.items()}
