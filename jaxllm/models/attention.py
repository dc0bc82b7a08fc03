"""Grouped-query attention: one mask rule, and implementations that agree.

A query sees a key iff both have the same non-zero segment id, the key's index is not beyond the
query's, and (window == 0 or query index - key index < window). Index = position in the array.
"""

import functools

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError
from jaxllm.models.attention_blocks import chunked_attention
from jaxllm.models.attention_kernels import cudnn_attention, cudnn_unsupported, splash_attention
from jaxllm.models.config import ATTENTION_IMPLS
from jaxllm.sharding import platform

# 'auto' takes the plain form up to this length. Forward + backward on 2 CPU cores, 2048 tokens,
# 6 heads of 64: plain 10 ms and chunked 9 ms at L = 64, 24 and 14 at 128, 41 and 19 at 256.
_PLAIN_UP_TO = 64


def attention(q_BLHC, k_BMKC, v_BMKC, q_segment_ids_BL, k_segment_ids_BM, *, q_index_BL=None,
              window=0, softcap=0.0, scale, impl='auto', chunk_size=0):
    """softmax(mask(cap(scale * q k^T))) v with H = K * G heads; head h reads key-value head h // G.

    Args:
      q_BLHC, k_BMKC, v_BMKC: queries, keys, values; float32 or bfloat16. Scores and softmax are
        float32.
      q_segment_ids_BL, k_segment_ids_BM: int >= 0; 0 is padding. A query that sees no key gives 0.
      q_index_BL: index of each query among the keys (decoding with a cache; always the plain form).
        None: the queries are those of the last L of M keys; what the index masks is then skipped.
      window: a query sees itself and the window - 1 keys before it; 0 is no limit.
      softcap: scores become softcap * tanh(scores / softcap); 0 is off.
      scale: factor on q k^T, usually C ** -0.5.
      impl: 'xla' (plain, memory L * L), 'chunked' (memory linear in L, any backend), 'splash' (TPU
        kernel, interpreted elsewhere), 'cudnn' (NVIDIA), 'auto' (what suits the backend).
      chunk_size: queries and keys per block of 'chunked'; 0 chooses.

    Returns:
      out_BLHC in the dtype of q.

    Raises:
      InputError: an unknown impl, or one that cannot do what is asked.
    """
    if impl not in ATTENTION_IMPLS:
        raise InputError(f'attention impl={impl!r} is unknown; use one of '
                         f'{", ".join(ATTENTION_IMPLS)}')
    L, H = q_BLHC.shape[1:3]
    M, K = k_BMKC.shape[1:3]
    if H % K:
        raise InputError(f'num_heads={H} is not a multiple of num_kv_heads={K}; use one that is')
    if q_index_BL is None and L > M:
        raise InputError(f'{L} queries and {M} keys: self-attention needs a key of each query, '
                         'decoding needs q_index_BL')
    k_BMKC, v_BMKC = (_for_tensor_parallel(x, H) for x in (k_BMKC, v_BMKC))
    options = dict(window=window, softcap=softcap, scale=scale)
    if impl == 'auto':
        impl = _auto(q_BLHC, softcap)
    if q_index_BL is not None or impl == 'xla':
        return plain_attention(q_BLHC, k_BMKC, v_BMKC, q_segment_ids_BL, k_segment_ids_BM,
                               q_index_BL, **options)
    kernel = {'chunked': functools.partial(chunked_attention, chunk_size=chunk_size),
              'splash': splash_attention, 'cudnn': cudnn_attention}[impl]
    # The kernels know squares alone. Queries of padding, in place of those that are not asked for,
    # cost what the rows would have cost with the keys' tokens in them.
    q_BLHC = jnp.pad(q_BLHC, ((0, 0), (M - L, 0), (0, 0), (0, 0)))
    q_segment_ids_BL = jnp.pad(q_segment_ids_BL, ((0, 0), (M - L, 0)))
    out = kernel(q_BLHC, k_BMKC, v_BMKC, q_segment_ids_BL, k_segment_ids_BM, **options)
    return out[:, M - L:]


def _auto(q_BLHC, softcap):
    if platform() == 'tpu':
        return 'splash'
    if platform() == 'gpu' and not cudnn_unsupported(q_BLHC, softcap):
        return 'cudnn'
    return 'xla' if q_BLHC.shape[1] <= _PLAIN_UP_TO else 'chunked'


def _for_tensor_parallel(x_BMKC, H):
    """Repeats key-value heads that do not divide over the mesh, so that the query heads still can.

    The keys and values are whole on every device in that case (see sharding.RULES), and a device
    needs only its own query heads' copies.
    """
    mesh, K = jax.sharding.get_abstract_mesh(), x_BMKC.shape[2]
    if mesh.empty or K % mesh.shape['tensor'] == 0:
        return x_BMKC
    return jnp.repeat(x_BMKC, H // K, axis=2)


def plain_attention(q_BLHC, k_BMKC, v_BMKC, q_segment_ids_BL, k_segment_ids_BM, q_index_BL, *,
                    window, softcap, scale):
    """The oracle: every score exists at once. Arguments as in `attention`."""
    B, L, H, C = q_BLHC.shape
    M, K = k_BMKC.shape[1:3]
    q_BLKGC = q_BLHC.reshape(B, L, K, H // K, C)
    scores_BKGLM = scale * jnp.einsum('BLKGC,BMKC->BKGLM', q_BLKGC, k_BMKC,
                                      preferred_element_type=jnp.float32)
    if softcap:
        scores_BKGLM = softcap * jnp.tanh(scores_BKGLM / softcap)
    if q_index_BL is None:
        q_index_BL = M - L + jnp.arange(L)[None, :]
    behind_BLM = q_index_BL[:, :, None] - jnp.arange(M)[None, None, :]
    mask_BLM = ((q_segment_ids_BL[:, :, None] == k_segment_ids_BM[:, None, :])
                & (q_segment_ids_BL[:, :, None] != 0) & (behind_BLM >= 0))
    if window:
        mask_BLM &= behind_BLM < window
    mask_BKGLM = mask_BLM[:, None, None, :, :]
    # A finite stand-in for -inf: a query that sees nothing then has a finite softmax, zeroed below.
    scores_BKGLM = jnp.where(mask_BKGLM, scores_BKGLM, jnp.finfo(jnp.float32).min)
    probs_BKGLM = jnp.where(mask_BKGLM, jax.nn.softmax(scores_BKGLM, axis=-1), 0.0)
    out_BLKGC = jnp.einsum('BKGLM,BMKC->BLKGC', probs_BKGLM.astype(v_BMKC.dtype), v_BMKC,
                           preferred_element_type=jnp.float32)
    return out_BLKGC.astype(q_BLHC.dtype).reshape(B, L, H, C)
