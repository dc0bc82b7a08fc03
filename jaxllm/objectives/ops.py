"""Pieces shared by all objectives: cross-entropy and log-probabilities without whole logits.

Logits exist for one chunk of positions at a time, so memory grows with chunk_size * V and not with
L * V. Everything after the matrix product is float32, whatever the dtype of the hidden states.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.sharding import constrain


class CrossEntropyStats(NamedTuple):
    """Weighted sums over all tokens, float32 scalars; no gradient flows through them.

    nll_sum: sum of w * negative log-likelihood [nats]. z_sum: sum of w * logsumexp^2 (without its
    coefficient). correct_sum: sum of w where the target has the greatest logit; not
    where all logits are alike.
    """
    nll_sum: jax.Array
    z_sum: jax.Array
    correct_sum: jax.Array


def cross_entropy(hidden_BLD, unembed_VD, targets_BL, weights_BL, *, z_loss=0.0, softcap=0.0,
                  chunk_size=256):
    """sum(w * (nll + z_loss * logsumexp^2)), a SUM: the caller divides by the total weight.

    The gradients are computed together with the loss, while a chunk's logits are at hand, and only
    scaled in the backward pass: logits are computed once. Without differentiation no gradient is.

    Args:
      hidden_BLD: final hidden states; their dtype is the dtype of the matrix products, which
        accumulate in float32.
      unembed_VD: unembedding matrix. Its gradient is accumulated in float32.
      targets_BL: int token ids.
      weights_BL: float loss weights, constants (no gradient).
      z_loss: coefficient of the squared logsumexp; 0 is off.
      softcap: logits become softcap * tanh(logits / softcap); 0 is off.
      chunk_size: positions per chunk.

    Returns:
      loss_sum (float32 scalar), CrossEntropyStats.

    Ref: z-loss: Chowdhery et al. 2022 (arXiv 2204.02311), section 5.
    """
    return _cross_entropy(float(z_loss), float(softcap), int(chunk_size),
                          hidden_BLD, unembed_VD, targets_BL, weights_BL)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(z_loss, softcap, chunk_size, hidden_BLD, unembed_VD, targets_BL, weights_BL):
    w_VD = unembed_VD.astype(hidden_BLD.dtype)

    def body(sums, chunk):
        h_BLD, t_BL, weights = chunk
        sums_chunk, _ = _chunk_loss(h_BLD, w_VD, t_BL, weights, z_loss, softcap)
        return sums + sums_chunk, None

    chunks = [_to_chunks(x, chunk_size) for x in (hidden_BLD, targets_BL,
                                                  weights_BL.astype(jnp.float32))]
    sums, _ = jax.lax.scan(body, jnp.zeros((4,), jnp.float32), chunks)
    return sums[0], CrossEntropyStats(*sums[1:])


def _cross_entropy_fwd(z_loss, softcap, chunk_size, hidden_BLD, unembed_VD, targets_BL, weights_BL):
    dtype, L = hidden_BLD.dtype, hidden_BLD.shape[1]
    w_VD = unembed_VD.astype(dtype)

    def body(carry, chunk):
        sums, dw_DV = carry
        h_BLD, t_BL, weights = chunk
        sums_chunk, dlogits_BLV = _chunk_loss(h_BLD, w_VD, t_BL, weights, z_loss, softcap)
        dlogits_BLV = dlogits_BLV.astype(dtype)
        dh_BLD = jnp.einsum('BLV,VD->BLD', dlogits_BLV, w_VD, preferred_element_type=jnp.float32)
        # Summed as [D, V]: transposing the small operand, not the logits, is faster on CPU.
        dw_DV += jnp.einsum('BLD,BLV->DV', h_BLD, dlogits_BLV, preferred_element_type=jnp.float32)
        return (sums + sums_chunk, constrain(dw_DV, 'd_model', 'vocab')), dh_BLD.astype(dtype)

    chunks = [_to_chunks(x, chunk_size) for x in (hidden_BLD, targets_BL,
                                                  weights_BL.astype(jnp.float32))]
    dw_DV = constrain(jnp.zeros(unembed_VD.shape[::-1], jnp.float32), 'd_model', 'vocab')
    (sums, dw_DV), dh = jax.lax.scan(body, (jnp.zeros((4,), jnp.float32), dw_DV), chunks)
    dw_VD = constrain(dw_DV.T, 'vocab', 'd_model')
    residuals = _from_chunks(dh, L), dw_VD.astype(unembed_VD.dtype)
    return (sums[0], CrossEntropyStats(*sums[1:])), residuals


def _cross_entropy_bwd(z_loss, softcap, chunk_size, residuals, cotangents):
    del z_loss, softcap, chunk_size
    scale = cotangents[0]  # those of the statistics are ignored: they carry no gradient
    return *((scale * d).astype(d.dtype) for d in residuals), None, None


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _logits(h_BLD, w_VD, softcap):
    """float32 logits of a chunk, split over the vocabulary where the mesh says so."""
    logits_BLV = jnp.einsum('BLD,VD->BLV', h_BLD, w_VD, preferred_element_type=jnp.float32)
    logits_BLV = constrain(logits_BLV, 'batch', 'seq', 'vocab')
    return softcap * jnp.tanh(logits_BLV / softcap) if softcap else logits_BLV


def _pick(x_BLV, targets_BL):
    """x at the targets. A gather: on CPU 10x faster than a masked sum over V."""
    return jnp.take_along_axis(x_BLV, targets_BL[:, :, None], axis=-1)[:, :, 0]


def _one_hot(targets_BL, num_classes):
    return targets_BL[:, :, None] == jax.lax.broadcasted_iota(jnp.int32, (1, 1, num_classes), 2)


def _chunk_loss(h_BLD, w_VD, targets_BL, weights_BL, z_loss, softcap):
    """Sums (loss, nll, logsumexp^2, correct) of a chunk and the loss's gradient by the logits."""
    logits_BLV = _logits(h_BLD, w_VD, softcap)
    max_BL = jnp.max(logits_BLV, axis=-1)
    exp_BLV = jnp.exp(logits_BLV - max_BL[:, :, None])
    total_BL = jnp.sum(exp_BLV, axis=-1)
    lse_BL = jnp.log(total_BL) + max_BL
    target_BL = _pick(logits_BLV, targets_BL)
    nll_BL, z_BL = lse_BL - target_BL, lse_BL ** 2
    # An untrained head may give all logits alike: then logsumexp - max is log V and none is right.
    alike_BL = lse_BL - max_BL > math.log(logits_BLV.shape[-1]) - 1e-4
    correct_BL = (target_BL == max_BL) & ~alike_BL
    sums = jnp.stack([jnp.sum(weights_BL * x) for x in
                      (nll_BL + z_loss * z_BL, nll_BL, z_BL, correct_BL)])
    # d nll / d logits = p - onehot; d lse^2 / d logits = 2 * lse * p; d softcap = 1 - tanh^2
    factor_BL = weights_BL * (1.0 + 2.0 * z_loss * lse_BL) / total_BL
    dlogits_BLV = (exp_BLV * factor_BL[:, :, None]
                   - jnp.where(_one_hot(targets_BL, logits_BLV.shape[-1]),
                               weights_BL[:, :, None], 0.0))
    if softcap:
        dlogits_BLV *= 1.0 - (logits_BLV / softcap) ** 2
    return sums, dlogits_BLV


def token_logprobs(hidden_BLD, unembed_VD, targets_BL, *, temperature=1.0, softcap=0.0,
                   chunk_size=256, with_entropy=False):
    """log softmax(logits / temperature)[target] per token, in float32, with its exact gradient.

    A chunk's logits are recomputed in the backward pass (unlike in `cross_entropy`, the cotangents
    per token are not known before).

    Args:
      hidden_BLD, unembed_VD, targets_BL, softcap, chunk_size: as in `cross_entropy`.
      temperature: the SAMPLING temperature, for policy, old policy and reference alike.
      with_entropy: also return the entropy of softmax(logits / temperature) [nats].

    Returns:
      logprobs_BL, or (logprobs_BL, entropy_BL).
    """
    dtype, L = hidden_BLD.dtype, hidden_BLD.shape[1]
    # Cast down inside the loop: then the loop's transpose sums the gradient in float32.
    w32_VD = unembed_VD.astype(jnp.float32)

    @jax.checkpoint
    def chunk_logprobs(h_BLD, t_BL, w32_VD):
        logits_BLV = _logits(h_BLD, w32_VD.astype(dtype), softcap) / temperature
        lse_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
        logprobs_BL = _pick(logits_BLV, t_BL) - lse_BL
        if not with_entropy:
            return logprobs_BL
        p_BLV = jnp.exp(logits_BLV - lse_BL[:, :, None])
        return logprobs_BL, lse_BL - jnp.sum(p_BLV * logits_BLV, axis=-1)

    chunks = _to_chunks(hidden_BLD, chunk_size), _to_chunks(targets_BL, chunk_size)
    out = jax.lax.map(lambda chunk: chunk_logprobs(*chunk, w32_VD), chunks)
    return jax.tree.map(lambda x: _from_chunks(x, L), out)


def _to_chunks(x, chunk_size):
    """[B, L, ...] -> [chunks, B, chunk, ...], the last one padded with zeros (weight 0)."""
    B, L = x.shape[:2]
    chunk = min(chunk_size, L)
    num = -(-L // chunk)
    x = jnp.pad(x, [(0, 0), (0, num * chunk - L)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, num, chunk, *x.shape[2:]), 1, 0)


def _from_chunks(x, L):
    """[chunks, B, chunk, ...] -> [B, L, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :L]
