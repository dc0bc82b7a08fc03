"""The key-value cache of generation: an explicit argument and result of the model.

Rows are right-padded: row b holds its `lengths_B[b]` tokens from index 0 on, and new tokens are
written behind them, so that rows of different lengths share one batch and one compiled step.
"""

import flax.struct
import jax
import jax.numpy as jnp

from jaxllm.models import stack, transformer
from jaxllm.sharding import constrain


@flax.struct.dataclass
class Cache:
    """Keys and values of all layers, and how many tokens of each row they cover.

    Heads stand before tokens: a step's products then read the cache as it lies in memory. Keys are
    a tuple of one array of all layers, or of one for each: then no step copies a layer out of them.
    """
    k_NBKMC: tuple
    v_NBKMC: tuple
    lengths_B: jax.Array  # tokens in the cache, before the ones being fed
    empty: bool = flax.struct.field(pytree_node=False, default=False)

    def write(self, layer, k_BLKC, v_BLKC):
        """The cache with keys and values of new tokens of one layer behind the old ones."""
        part, layer = self._place(layer)
        if self.empty:
            put = lambda cache, new: jax.lax.dynamic_update_slice(
                cache, new.swapaxes(1, 2)[None].astype(cache.dtype), (layer, 0, 0, 0, 0))
        else:
            B, L = k_BLKC.shape[:2]
            rows_BL = jnp.broadcast_to(jnp.arange(B)[:, None], (B, L))
            put = lambda cache, new: cache.at[layer, rows_BL, :, self.query_index(L)].set(
                new.astype(cache.dtype), mode='drop')
        put_part = lambda parts, new: (*parts[:part], put(parts[part], new), *parts[part + 1:])
        return self.replace(k_NBKMC=put_part(self.k_NBKMC, k_BLKC),
                            v_NBKMC=put_part(self.v_NBKMC, v_BLKC))

    def read(self, layer):
        """(k_BMKC, v_BMKC) of one layer."""
        part, layer = self._place(layer)
        return tuple(x[part][layer].swapaxes(1, 2) for x in (self.k_NBKMC, self.v_NBKMC))

    def take(self, rows_R):
        """The cache of these rows."""
        return self._of(lambda x: x[:, rows_R], self.lengths_B[rows_R])

    def of_rows(self, B):
        """The cache of B rows, neighbours going on from one row of this."""
        times = B // len(self.lengths_B)
        return self._of(lambda x: jnp.repeat(x, times, axis=1), stack.of_rows(self.lengths_B, B))

    def _of(self, choose, lengths_R):
        return self.replace(k_NBKMC=jax.tree.map(choose, self.k_NBKMC),
                            v_NBKMC=jax.tree.map(choose, self.v_NBKMC), lengths_B=lengths_R)

    def _place(self, layer):
        """(which array, which layer of it)."""
        return (layer, 0) if len(self.k_NBKMC) > 1 else (0, layer)

    def query_index(self, L):
        """Cache index of each of L new tokens, [B, L] int32."""
        return self.lengths_B[:, None] + jnp.arange(L, dtype=jnp.int32)[None]

    def key_segments(self):
        """All ones: what lies behind a row's last token is hidden by its index, being later."""
        _, B, _, M, _ = self.k_NBKMC[0].shape
        return jnp.ones((B, M), jnp.int32)


def empty(cfg, batch_size, length):
    """An empty cache of `length` tokens for `batch_size` rows."""
    att = cfg.attention
    shape = cfg.num_layers, batch_size, att.num_kv_heads, length, att.head_dim
    zeros = lambda: (jnp.zeros(shape, cfg.dtype),)
    return placed(Cache(zeros(), zeros(), jnp.zeros((batch_size,), jnp.int32), empty=True))


def placed(cache):
    """The cache with its sharding pinned: rows over the batch axes, heads over `tensor`."""
    pin = lambda x: constrain(x, 'layers', 'batch', 'kv_heads', None, 'head_dim')
    return cache.replace(k_NBKMC=jax.tree.map(pin, cache.k_NBKMC),
                         v_NBKMC=jax.tree.map(pin, cache.v_NBKMC),
                         lengths_B=constrain(cache.lengths_B, 'batch'))


def unrolled(cache, cfg):
    """The cache with an array for each layer, where the layers of a model are unrolled."""
    if not stack.unrolls(cfg):
        return cache
    split = lambda parts: tuple(x[i:i + 1] for x in parts for i in range(len(x)))
    return cache.replace(k_NBKMC=split(cache.k_NBKMC), v_NBKMC=split(cache.v_NBKMC))


def prefill(params, cfg, tokens_BL, lengths_B, length):
    """Feeds right-padded prompts into a new cache of `length` tokens.

    Returns (hidden_BD of the last token of each prompt, cache).
    """
    L = tokens_BL.shape[1]
    valid_BL = jnp.arange(L, dtype=jnp.int32)[None] < lengths_B[:, None]
    segment_ids_BL = valid_BL.astype(jnp.int32)
    cache = empty(cfg, tokens_BL.shape[0], length)
    hidden_BLD, cache = _feed(params, cfg, tokens_BL, segment_ids_BL,
                              transformer.positions(segment_ids_BL), cache)
    last_BD = jnp.take_along_axis(hidden_BLD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return last_BD, cache.replace(lengths_B=lengths_B, empty=False)


def step(params, cfg, tokens_B, cache):
    """Feeds one token per row. Returns (hidden_BD, cache)."""
    segment_ids_BL = jnp.ones((tokens_B.shape[0], 1), jnp.int32)
    hidden_BLD, cache = _feed(params, cfg, tokens_B[:, None], segment_ids_BL,
                              cache.query_index(1), cache)
    return hidden_BLD[:, 0], cache.replace(lengths_B=cache.lengths_B + 1)


def _feed(params, cfg, tokens_BL, segment_ids_BL, positions_BL, cache):
    params = transformer.compute_params(params, cfg)
    x_BLD = transformer.embed(params, cfg, tokens_BL, positions_BL)
    return transformer.apply_stack(params, cfg, x_BLD, positions_BL, segment_ids_BL, cache)
