"""Causal self-attention in blocks: no [L, L] array, forward or backward, on any backend.

Loops over blocks of queries and, inside, over the blocks of keys that some query of the block can
see: blocks beyond the diagonal or before the window are never visited. The forward pass keeps a
running softmax and saves only the output and the logsumexp; the backward pass recomputes scores.

Ref: Dao et al. 2022 (arXiv 2205.14135), algorithms 1 and 4; Milakov & Gimelshein 2018
(arXiv 1805.02867) for the running softmax.

Beside the letters of the repository: I blocks of queries, J blocks of keys, X = G * (queries per
block), M keys per block. The heads of a group are extra rows of the query block.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

# Stands for -inf and stays finite: exp(_MASKED - anything of reasonable size) is exactly 0.
_MASKED = -1e30
# Running maximum before any key was seen; above _MASKED, so that masked scores vanish against it.
_UNSEEN = -1e29

# (queries, keys) per block. On 2 CPU cores the best block of scores, over all batch rows and heads,
# has about this many entries (3 MB of float32: smaller ones pay for calls, larger ones for memory).
_BLOCKS = ((512, 512), (256, 512), (256, 256), (128, 256), (128, 128))
_ENTRIES = 800_000


@dataclasses.dataclass(frozen=True)
class _Spec:
    """What is static: G = H / K, queries and keys per block, and the mask and score options."""
    group: int
    block_q: int
    block_k: int
    window: int
    softcap: float
    scale: float


def chunked_attention(q_BLHC, k_BLKC, v_BLKC, q_segment_ids_BL, k_segment_ids_BL, *, window,
                      softcap, scale, chunk_size):
    """Arguments and result as `attention.attention`, for self-attention."""
    B, L, H, C = q_BLHC.shape
    K = k_BLKC.shape[2]
    G = H // K
    block_q, block_k = _block_sizes(B * H, L, chunk_size)
    padded = -(-L // block_k) * block_k
    spec = _Spec(G, block_q, block_k, window, float(softcap), float(scale))

    def blocks(x, size):
        """[B, L, ...] -> [L / size, B, size, ...], padded with zeros: segment id 0."""
        x = jnp.pad(x, [(0, 0), (0, padded - L)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, padded // size, size, *x.shape[2:]), 1, 0)

    I = padded // block_q
    q_IBKXC = blocks(q_BLHC, block_q).reshape(I, B, block_q, K, G, C).transpose(0, 1, 3, 4, 2, 5)
    q_IBKXC = q_IBKXC.reshape(I, B, K, G * block_q, C)
    k_JBKMC, v_JBKMC = (blocks(x, block_k).transpose(0, 1, 3, 2, 4) for x in (k_BLKC, v_BLKC))
    # -1 matches no key: a padding query sees nothing.
    q_segment_ids_BL = jnp.where(q_segment_ids_BL == 0, -1, q_segment_ids_BL)
    q_seg_IBX = jnp.tile(blocks(q_segment_ids_BL, block_q), (1, 1, G))
    k_seg_JBM = blocks(k_segment_ids_BL, block_k)
    out_IBKXC = _attend(spec, q_IBKXC, k_JBKMC, v_JBKMC, q_seg_IBX, k_seg_JBM)
    out = out_IBKXC.reshape(I, B, K, G, block_q, C).transpose(1, 0, 4, 2, 3, 5)
    return out.reshape(B, padded, H, C)[:, :L]


def _block_sizes(rows, L, chunk_size):
    """Queries and keys per block; keys are a multiple of queries. chunk_size 0 chooses."""
    if chunk_size:
        return (min(chunk_size, L),) * 2
    for q, k in _BLOCKS:
        # No block beyond a quarter of the length: a block on the diagonal is half wasted.
        if rows * q * k <= _ENTRIES and k <= L // 4:
            return q, k
    return (min(_BLOCKS[-1][0], L),) * 2


def _key_blocks(i, spec):
    """First and one past the last block of keys that query block `i` sees."""
    end = ((i + 1) * spec.block_q + spec.block_k - 1) // spec.block_k
    if not spec.window:
        return jnp.zeros_like(i), end
    return jnp.maximum(0, i * spec.block_q - spec.window + 1) // spec.block_k, end


def _block_scores(q_BKXC, k_BKMC, q_seg_BX, k_seg_BM, i, j, spec):
    """Masked scores of a block, and tanh(scores / softcap) before the mask (None without it)."""
    scores = jnp.einsum('BKXC,BKMC->BKXM', q_BKXC, k_BKMC, preferred_element_type=jnp.float32)
    scores, tanh = scores * spec.scale, None
    if spec.softcap:
        tanh = jnp.tanh(scores / spec.softcap)
        scores = spec.softcap * tanh
    q_index_X = i * spec.block_q + jnp.tile(jnp.arange(spec.block_q), spec.group)
    k_index_M = j * spec.block_k + jnp.arange(spec.block_k)
    mask_XM = q_index_X[:, None] >= k_index_M[None, :]
    if spec.window:
        mask_XM &= q_index_X[:, None] - k_index_M[None, :] < spec.window
    mask_BXM = (q_seg_BX[:, :, None] == k_seg_BM[:, None, :]) & mask_XM[None]
    return jnp.where(mask_BXM[:, None], scores, _MASKED), tanh


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(spec, q_IBKXC, k_JBKMC, v_JBKMC, q_seg_IBX, k_seg_JBM):
    return _attend_fwd(spec, q_IBKXC, k_JBKMC, v_JBKMC, q_seg_IBX, k_seg_JBM)[0]


def _attend_fwd(spec, q_IBKXC, k_JBKMC, v_JBKMC, q_seg_IBX, k_seg_JBM):
    def query_block(_, block):
        i, q, q_seg = block

        def key_block(j, carry):
            peak_BKX1, total_BKX1, acc_BKXC = carry
            scores, _ = _block_scores(q, k_JBKMC[j], q_seg, k_seg_JBM[j], i, j, spec)
            new_peak = jnp.maximum(peak_BKX1, jnp.max(scores, axis=-1, keepdims=True))
            probs = jnp.exp(scores - new_peak)
            decay = jnp.exp(peak_BKX1 - new_peak)
            acc = jnp.einsum('BKXM,BKMC->BKXC', probs.astype(v_JBKMC.dtype), v_JBKMC[j],
                             preferred_element_type=jnp.float32)
            total = jnp.sum(probs, axis=-1, keepdims=True)
            return new_peak, total_BKX1 * decay + total, acc_BKXC * decay + acc

        zeros_BKX1 = jnp.zeros(q.shape[:-1] + (1,), jnp.float32)
        start = (zeros_BKX1 + _UNSEEN, zeros_BKX1, jnp.zeros(q.shape, jnp.float32))
        peak, total, acc = jax.lax.fori_loop(*_key_blocks(i, spec), key_block, start)
        # A query that saw no key: output 0, and a logsumexp against which masked scores vanish.
        total = jnp.where(peak == _UNSEEN, 1.0, total)
        lse = jnp.where(peak == _UNSEEN, 0.0, peak + jnp.log(total))
        return None, ((acc / total).astype(q.dtype), lse)

    index_I = jnp.arange(q_IBKXC.shape[0])
    _, (out, lse) = jax.lax.scan(query_block, None, (index_I, q_IBKXC, q_seg_IBX))
    return out, (q_IBKXC, k_JBKMC, v_JBKMC, q_seg_IBX, k_seg_JBM, out, lse)


def _attend_bwd(spec, residuals, dout_IBKXC):
    q_IBKXC, k_JBKMC, v_JBKMC, q_seg_IBX, k_seg_JBM, out_IBKXC, lse_IBKX1 = residuals
    delta_IBKX1 = jnp.sum(dout_IBKXC.astype(jnp.float32) * out_IBKXC.astype(jnp.float32), axis=-1,
                          keepdims=True)

    def query_block(dkv, block):
        i, q, q_seg, lse, dout, delta = block
        q_BKCX, dout_BKCX = q.swapaxes(-1, -2), dout.swapaxes(-1, -2)

        def key_block(j, carry):
            dq_BKXC, dk_JBKCM, dv_JBKCM = carry
            scores, tanh = _block_scores(q, k_JBKMC[j], q_seg, k_seg_JBM[j], i, j, spec)
            probs = jnp.exp(scores - lse)
            dprobs = jnp.einsum('BKXC,BKMC->BKXM', dout, v_JBKMC[j],
                                preferred_element_type=jnp.float32)
            dscores = probs * (dprobs - delta)
            if spec.softcap:
                dscores *= 1.0 - tanh * tanh
            probs, dscores = probs.astype(dout.dtype), dscores.astype(q.dtype)
            # [C, X] @ [X, M] and not [X, M]^T @ [X, C]: transposing the large operand made this
            # product several times slower on CPU.
            dv = jnp.einsum('BKCX,BKXM->BKCM', dout_BKCX, probs, preferred_element_type=jnp.float32)
            dk = jnp.einsum('BKCX,BKXM->BKCM', q_BKCX, dscores, preferred_element_type=jnp.float32)
            dq = jnp.einsum('BKXM,BKMC->BKXC', dscores, k_JBKMC[j],
                            preferred_element_type=jnp.float32)
            return dq_BKXC + dq, dk_JBKCM.at[j].add(dk), dv_JBKCM.at[j].add(dv)

        dq, *dkv = jax.lax.fori_loop(*_key_blocks(i, spec), key_block,
                                     (jnp.zeros(q.shape, jnp.float32), *dkv))
        return tuple(dkv), (dq * spec.scale).astype(q.dtype)

    blocks = (jnp.arange(q_IBKXC.shape[0]), q_IBKXC, q_seg_IBX, lse_IBKX1, dout_IBKXC, delta_IBKX1)
    zeros_JBKCM = jnp.zeros_like(k_JBKMC.swapaxes(-1, -2), jnp.float32)
    (dk, dv), dq = jax.lax.scan(query_block, (zeros_JBKCM, zeros_JBKCM), blocks)
    return (dq, (dk * spec.scale).swapaxes(-1, -2).astype(k_JBKMC.dtype),
            dv.swapaxes(-1, -2).astype(v_JBKMC.dtype), None, None)


_attend.defvjp(_attend_fwd, _attend_bwd)
