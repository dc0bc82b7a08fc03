"""The decoder: tokens -> hidden states -> logits, as pure functions of a plain nested dict.

    params = init(key, cfg)
    hidden_BLD = apply_hidden(params, cfg, tokens_BL, segment_ids_BL=...)
    logits_BLV = unembed(params, cfg, hidden_BLD)
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.models.layers import rope_frequencies, rope_table, scaled_normal, sinusoids
from jaxllm.models.quantize import CONSTANTS
from jaxllm.models.stack import PREFIX, Segments, Stack, apply_unrolled, of_rows
from jaxllm.sharding import batch_ways, constrain

# The logical axes of every parameter, by the last two names of its path.
PARAM_AXES = {
    'embed/tokens': ('vocab', 'd_model'),
    'embed/positions': ('positions', 'd_model'),
    'head/kernel': ('vocab', 'd_model'),
    'q/kernel': ('d_model', 'heads', 'head_dim'),
    'k/kernel': ('d_model', 'kv_heads', 'head_dim'),
    'v/kernel': ('d_model', 'kv_heads', 'head_dim'),
    'o/kernel': ('heads', 'head_dim', 'd_model'),
    'q/bias': ('heads', 'head_dim'),
    'k/bias': ('kv_heads', 'head_dim'),
    'v/bias': ('kv_heads', 'head_dim'),
    'o/bias': ('d_model',),
    'q_norm/scale': ('head_dim',),
    'k_norm/scale': ('head_dim',),
    'up/kernel': ('d_model', 'd_ff'),
    'gate/kernel': ('d_model', 'd_ff'),
    'down/kernel': ('d_ff', 'd_model'),
    'up/bias': ('d_ff',),
    'gate/bias': ('d_ff',),
    'down/bias': ('d_model',),
}
_NORMS = ('attention_norm', 'attention_post_norm', 'mlp_norm', 'mlp_post_norm', 'final_norm')
PARAM_AXES |= {f'{norm}/{name}': ('d_model',) for norm in _NORMS for name in ('scale', 'bias')}
# The scalar head of a reward model or value network shares its name with the unembedding matrix.
_SCALAR_HEAD = {'kernel': ('d_model',), 'bias': ()}


@flax.struct.dataclass
class Prefix:
    """What P texts leave behind for rows that go on from them, B / P neighbours from each.

    layers: keys and values by layer, as flax collects them. segment_ids_PL: 1 = real, 0 = padding,
    which stands on the left, so that a window counts real tokens.
    """
    layers: Any
    segment_ids_PL: jax.Array

    def take(self, rows_R):
        """The prefix of these rows, as texts of their own."""
        # Layers of the scan are stacked ahead of the rows, those of the tail are not.
        rows = lambda name, x: x[:, rows_R] if name == 'layers' else x[rows_R]
        layers = {name: jax.tree.map(lambda x, name=name: rows(name, x), part)
                  for name, part in self.layers.items()}
        return Prefix(layers, self.segment_ids_PL[rows_R])

    def segment_ids(self, B):
        """[B, L]: of each row's prefix."""
        return of_rows(self.segment_ids_PL, B)


def init(key, cfg):
    """Random parameters, all float32: {'embed', 'layers', ['tail',] 'final_norm', ['head']}."""
    stack_key, token_key, position_key, head_key = jax.random.split(key, 4)
    table = scaled_normal(cfg.d_model)
    embed = {'tokens': table(token_key, (cfg.vocab_size, cfg.d_model), jnp.float32)}
    if cfg.positions == 'learned':
        embed['positions'] = table(position_key, (cfg.max_seq_len, cfg.d_model), jnp.float32)
    mesh = jax.sharding.get_abstract_mesh()
    B = 1 if mesh.empty else batch_ways(mesh)  # a batch that divides; only its shape matters
    x_BLD = jnp.zeros((B, 2, cfg.d_model), jnp.float32)
    segment_ids_BL = jnp.ones((B, 2), jnp.int32)
    stack = Stack(cfg).init(stack_key, x_BLD, Segments(segment_ids_BL, segment_ids_BL),
                            rope_tables(cfg, positions(segment_ids_BL)), None)['params']
    params = {'embed': embed} | dict(stack)
    if not cfg.tie_embeddings:
        params['head'] = {'kernel': table(head_key, (cfg.vocab_size, cfg.d_model), jnp.float32)}
    return params


def num_inputs(kernel_axes):
    """How many of a kernel's logical axes (without 'layers') are inputs: those before d_model, or
    d_model itself."""
    return 1 if kernel_axes[0] == 'd_model' else len(kernel_axes) - 1


def leaf_axes(module, name):
    """The logical axes of one parameter, without 'layers'. Those of an adapter and of a matrix in
    few bits are the kernel's, with None for a rank or for blocks."""
    if f'{module}/{name}' in PARAM_AXES:
        return PARAM_AXES[f'{module}/{name}']
    kernel = PARAM_AXES[f'{module}/kernel']
    split = num_inputs(kernel)
    inputs, features = kernel[:split], kernel[split:]
    return {'lora_a': (*inputs, None), 'lora_b': (None, *features), 'magnitude': features,
            'kernel_bfloat16': kernel, 'kernel_int8': kernel, 'kernel_scale': features,
            'kernel_nf4': kernel, 'kernel_absmax': (*inputs[:-1], None, *features)}[name]


def param_axes(params):
    """The tree of logical axes of `params` (or of their shapes), of a whole model or a part, or of
    several models under names of their own ({'model': ..., 'head': ...})."""
    def axes(path, leaf):
        names = [entry.key for entry in path]
        if names[-2] == 'head' and len(leaf.shape) < 2:
            return _SCALAR_HEAD[names[-1]]
        return ('layers',) * ('layers' in names) + leaf_axes(*names[-2:])
    return jax.tree_util.tree_map_with_path(axes, params)


def positions(segment_ids_BL):
    """Position of each token in its own segment, [B, L] int32; for packing and any padding."""
    L = segment_ids_BL.shape[1]
    index_BL = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None], segment_ids_BL.shape)
    starts = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    start_BL = jnp.where(jnp.pad(starts, ((0, 0), (1, 0))), index_BL, 0)
    return index_BL - jax.lax.cummax(start_BL, axis=1)


def rope_tables(cfg, positions_BL):
    """{layer kind: (cos, sin)}, computed once for all layers."""
    return {kind: rope_table(positions_BL, rope_frequencies(cfg.rope, cfg.attention.head_dim, kind))
            for kind in sorted(set(cfg.layer_pattern)) if cfg.positions == 'rope'}


def compute_params(params, cfg):
    """Matrices in the compute dtype, cast once. Norms, biases and embeddings stay float32: the
    gradients of a frequent token's embedding, summed up in bfloat16, would stop growing."""
    dtype = jnp.dtype(cfg.dtype)
    cast = lambda path, x: x.astype(dtype) if path[-1].key == 'kernel' else x
    return jax.tree_util.tree_map_with_path(cast, params)


def embed(params, cfg, tokens_BL, positions_BL):
    """Token embeddings (times sqrt(D)), plus learned or sinusoidal positions: [B, L, D]."""
    if cfg.positions == 'learned' and tokens_BL.shape[1] > cfg.max_seq_len:
        raise InputError(f'{tokens_BL.shape[1]} tokens per row, but learned positions for '
                         f'model.max_seq_len={cfg.max_seq_len}; use shorter rows or a longer table')

    def look_up(table, index_BL):
        # Each device looks up its slice of d_model for the rows of all; then slices are exchanged
        # for rows: B L D numbers move, and not V D ones as if the table were gathered.
        x_BLD = constrain(table[index_BL], 'rows', 'seq', 'd_model').astype(cfg.dtype)
        return constrain(x_BLD, 'batch', 'seq', 'd_model')

    x_BLD = look_up(params['embed']['tokens'], tokens_BL)
    if cfg.embedding_scale:
        x_BLD = x_BLD * jnp.asarray(cfg.d_model ** 0.5, x_BLD.dtype)
    if cfg.positions == 'learned':
        x_BLD = x_BLD + look_up(params['embed']['positions'], positions_BL)
    if cfg.positions == 'sinusoidal':
        x_BLD = x_BLD + sinusoids(positions_BL, cfg.d_model).astype(x_BLD.dtype)
    return constrain(x_BLD, 'batch', 'seq', 'd_model')


def apply_stack(params, cfg, x_BLD, positions_BL, segment_ids_BL, cache=None, collect='',
                prefix=None):
    """All layers and the final norm over embedded tokens.

    Returns (hidden_BLD, cache), or with `collect` (hidden_BLD, what the layers put there):
    'intermediates', the queries and keys of every layer, or PREFIX.
    """
    stack = {name: params[name] for name in ('layers', 'tail', 'final_norm') if name in params}
    variables, key_segment_ids_BM = {'params': stack}, segment_ids_BL
    if prefix is not None:
        variables[PREFIX] = prefix.layers
        key_segment_ids_BM = jnp.concatenate(
            [prefix.segment_ids(x_BLD.shape[0]), segment_ids_BL], axis=1)
    args = (x_BLD, Segments(segment_ids_BL, key_segment_ids_BM), rope_tables(cfg, positions_BL),
            cache)
    if isinstance(stack.get('layers'), tuple):
        return apply_unrolled(stack, cfg, *args)
    if collect:
        (hidden_BLD, _), seen = Stack(cfg).apply(variables, *args, mutable=collect)
        return hidden_BLD, seen[collect]
    return Stack(cfg).apply(variables, *args)


def apply_hidden(params, cfg, tokens_BL, *, positions_BL=None, segment_ids_BL=None,
                 embedding_noise_BLD=None, prefix=None):
    """Hidden states after the final norm.

    Args:
      tokens_BL: int32.
      positions_BL: int32; default: counted in each segment, behind the prefix, so that left and
        right padding and packing need nothing more.
      segment_ids_BL: int32, 0 = padding; tokens see only their own segment. Default: all ones.
      embedding_noise_BLD: added to the embedded tokens; None = nothing.
      prefix: a Prefix that tokens of segment 1 see, too; P divides B. None = nothing.

    Returns:
      [B, L, D] in the compute dtype.
    """
    if segment_ids_BL is None:
        segment_ids_BL = jnp.ones(tokens_BL.shape, jnp.int32)
    if positions_BL is None:
        positions_BL = positions(segment_ids_BL)
        if prefix is not None:
            positions_BL += prefix.segment_ids(tokens_BL.shape[0]).sum(axis=1, keepdims=True)
    params = compute_params(params, cfg)
    x_BLD = embed(params, cfg, tokens_BL, positions_BL)
    if embedding_noise_BLD is not None:
        x_BLD = x_BLD + embedding_noise_BLD.astype(x_BLD.dtype)
    return apply_stack(params, cfg, x_BLD, positions_BL, segment_ids_BL, prefix=prefix)[0]


def read_prefix(params, cfg, tokens_PL, segment_ids_PL):
    """(hidden_PLD, Prefix) of texts padded on the left: read once for all rows that go on from
    them. Hidden states of the rows, and their gradients, are those of rows that hold the text."""
    positions_PL = positions(segment_ids_PL)
    params = compute_params(params, cfg)
    x_PLD = embed(params, cfg, tokens_PL, positions_PL)
    hidden_PLD, layers = apply_stack(params, cfg, x_PLD, positions_PL, segment_ids_PL,
                                     collect=PREFIX)
    return hidden_PLD, Prefix(layers, segment_ids_PL)


def unembed_matrix(params, cfg):
    """[V, D] float32: the head, or the token embeddings where they are tied. Users cast it to the
    compute dtype themselves, so that gradients of chunks and devices are summed in float32."""
    return params['embed']['tokens'] if cfg.tie_embeddings else params['head']['kernel']


def unembed(params, cfg, hidden_BLD):
    """Logits [B, L, V] in float32, soft-capped where the model says so."""
    table_VD = unembed_matrix(params, cfg).astype(cfg.dtype)
    logits_BLV = jnp.einsum('BLD,VD->BLV', hidden_BLD, table_VD,
                            preferred_element_type=jnp.float32)
    if cfg.logit_softcap:
        logits_BLV = cfg.logit_softcap * jnp.tanh(logits_BLV / cfg.logit_softcap)
    return constrain(logits_BLV, 'batch', 'seq', 'vocab')


def apply(params, cfg, tokens_BL, **kwargs):
    """Logits [B, L, V] in float32; arguments as `apply_hidden`. Losses unembed in chunks."""
    return unembed(params, cfg, apply_hidden(params, cfg, tokens_BL, **kwargs))


def num_params(params):
    """How many numbers the model has, however they are stored."""
    def count(path, x):
        name = path[-1].key
        return 0 if name in CONSTANTS else x.size * (2 if name == 'kernel_nf4' else 1)
    return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(count, params)))
