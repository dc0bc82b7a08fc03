"""Pieces shared by all objectives: cross-entropy and log-probabilities without whole logits.

Logits exist for one chunk of tokens at a time, so memory grows with chunk_size * V and not with
L * V. Everything after the matrix product is float32, whatever the dtype of the hidden states.

Beside the letters of the repository: Z devices over which the batch is split, T tokens of a chunk
on each of them. Z is an axis of its own, so that each device sums its own gradient of the
unembedding matrix over all chunks, and devices exchange it once and not once per chunk.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.sharding import batch_ways, constrain


class CrossEntropyStats(NamedTuple):
    """Weighted sums over all tokens, float32 scalars; no gradient flows through them.

    nll_sum: sum of w * negative log-likelihood [nats]. z_sum: sum of w * logsumexp^2 (without its
    coefficient). correct_sum: sum of w where the target has the greatest logit; no token counts
    whose logits are all alike.
    """
    nll_sum: jax.Array
    z_sum: jax.Array
    correct_sum: jax.Array


def cross_entropy(hidden_BLD, unembed_VD, targets_BL, weights_BL, *, z_loss=0.0, softcap=0.0,
                  chunk_size=512):
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
      chunk_size: tokens per device and chunk.

    Returns:
      loss_sum (float32 scalar), CrossEntropyStats.

    Ref: z-loss: Chowdhery et al. 2022 (arXiv 2204.02311), section 5.
    """
    return _cross_entropy(float(z_loss), float(softcap), int(chunk_size), hidden_BLD, unembed_VD,
                          targets_BL, weights_BL.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(z_loss, softcap, chunk_size, hidden_BLD, unembed_VD, targets_BL, weights_BL):
    w_ZVD = _per_device(unembed_VD, hidden_BLD.dtype)

    def chunk(sums_4Z, inputs):
        h_ZTD, t_ZT, weights_ZT = inputs
        chunk_sums, _ = _loss_and_dlogits(h_ZTD, w_ZVD, t_ZT, weights_ZT, z_loss, softcap)
        return sums_4Z + chunk_sums, None

    chunks = [_to_chunks(x, chunk_size) for x in (hidden_BLD, targets_BL, weights_BL)]
    sums_4Z, _ = jax.lax.scan(chunk, jnp.zeros((4, w_ZVD.shape[0]), jnp.float32), chunks)
    return _totals(sums_4Z)


def _cross_entropy_fwd(z_loss, softcap, chunk_size, hidden_BLD, unembed_VD, targets_BL, weights_BL):
    dtype = hidden_BLD.dtype
    w_ZVD = _per_device(unembed_VD, dtype)

    def chunk(carry, inputs):
        sums_4Z, dw_ZDV = carry
        h_ZTD, t_ZT, weights_ZT = inputs
        chunk_sums, dlogits_ZTV = _loss_and_dlogits(h_ZTD, w_ZVD, t_ZT, weights_ZT, z_loss,
                                                    softcap)
        dlogits_ZTV = dlogits_ZTV.astype(dtype)
        dh_ZTD = jnp.einsum('ZTV,ZVD->ZTD', dlogits_ZTV, w_ZVD, preferred_element_type=jnp.float32)
        # Summed as [D, V]: transposing the small operand and not the logits is faster on CPU.
        dw_ZDV += jnp.einsum('ZTD,ZTV->ZDV', h_ZTD, dlogits_ZTV, preferred_element_type=jnp.float32)
        dw_ZDV = constrain(dw_ZDV, 'batch', None, 'vocab')
        return (sums_4Z + chunk_sums, dw_ZDV), dh_ZTD.astype(dtype)

    chunks = [_to_chunks(x, chunk_size) for x in (hidden_BLD, targets_BL, weights_BL)]
    zeros_ZDV = jnp.zeros(w_ZVD.swapaxes(1, 2).shape, jnp.float32)
    zeros = (jnp.zeros((4, zeros_ZDV.shape[0]), jnp.float32),
             constrain(zeros_ZDV, 'batch', None, 'vocab'))
    (sums_4Z, dw_ZDV), dh = jax.lax.scan(chunk, zeros, chunks)
    dw_VD = constrain(jnp.sum(dw_ZDV, axis=0).T, 'vocab', 'd_model')
    residuals = _from_chunks(dh, *targets_BL.shape), dw_VD.astype(unembed_VD.dtype)
    return _totals(sums_4Z), residuals


def _cross_entropy_bwd(z_loss, softcap, chunk_size, residuals, cotangents):
    del z_loss, softcap, chunk_size
    scale = cotangents[0]  # those of the statistics are ignored: they carry no gradient
    return *((scale * d).astype(d.dtype) for d in residuals), None, None


def _totals(sums_4Z):
    loss_sum, *stats = jnp.sum(sums_4Z, axis=-1)
    return loss_sum, CrossEntropyStats(*stats)


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _logits(h_ZTD, w_ZVD, softcap):
    """float32 logits of a chunk, split over the vocabulary where the mesh says so."""
    logits_ZTV = jnp.einsum('ZTD,ZVD->ZTV', h_ZTD, w_ZVD, preferred_element_type=jnp.float32)
    logits_ZTV = constrain(logits_ZTV, 'batch', 'seq', 'vocab')
    return softcap * jnp.tanh(logits_ZTV / softcap) if softcap else logits_ZTV


def _pick(x_ZTV, targets_ZT):
    """x at the targets. A gather: on CPU faster than a masked sum, and XLA splits it over V."""
    return jnp.take_along_axis(x_ZTV, targets_ZT[:, :, None], axis=-1)[:, :, 0]


def _loss_and_dlogits(h_ZTD, w_ZVD, targets_ZT, weights_ZT, z_loss, softcap):
    """Sums (loss, nll, logsumexp^2, correct) of a chunk; the loss's gradient by the raw logits."""
    logits_ZTV = _logits(h_ZTD, w_ZVD, softcap)
    V = logits_ZTV.shape[-1]
    max_ZT = jnp.max(logits_ZTV, axis=-1)
    exp_ZTV = jnp.exp(logits_ZTV - max_ZT[:, :, None])
    total_ZT = jnp.sum(exp_ZTV, axis=-1)
    lse_ZT = jnp.log(total_ZT) + max_ZT
    target_ZT = _pick(logits_ZTV, targets_ZT)
    nll_ZT, z_ZT = lse_ZT - target_ZT, lse_ZT ** 2
    # A head of zeros gives V equal logits; no target may count as right then.
    correct_ZT = (target_ZT == max_ZT) & (jnp.log(total_ZT) < math.log(V) - 1e-4)
    # Still one column per device, as for the gradient.
    sums_4Z = jnp.stack([jnp.sum(weights_ZT * x, axis=-1) for x in
                         (nll_ZT + z_loss * z_ZT, nll_ZT, z_ZT, correct_ZT)])
    # d nll / d logits = p - onehot; d lse^2 / d logits = 2 * lse * p; d softcap = 1 - tanh^2.
    factor_ZT = weights_ZT * (1.0 + 2.0 * z_loss * lse_ZT) / total_ZT
    onehot_ZTV = targets_ZT[:, :, None] == jnp.arange(V)[None, None, :]
    dlogits_ZTV = (exp_ZTV * factor_ZT[:, :, None]
                   - jnp.where(onehot_ZTV, weights_ZT[:, :, None], 0.0))
    if softcap:
        dlogits_ZTV *= 1.0 - (logits_ZTV / softcap) ** 2
    return sums_4Z, dlogits_ZTV


def token_logprobs(hidden_BLD, unembed_VD, targets_BL, *, temperature=1.0, softcap=0.0,
                   chunk_size=512, with_entropy=False):
    """log softmax(logits / temperature)[target] per token, in float32, with its exact gradient.

    A chunk's logits are recomputed in the backward pass: unlike in `cross_entropy`, the cotangents
    are not known before.

    Args:
      hidden_BLD, unembed_VD, targets_BL, softcap, chunk_size: as in `cross_entropy`.
      temperature: the SAMPLING temperature, for policy, old policy and reference alike.
      with_entropy: also return the entropy of softmax(logits / temperature) [nats].

    Returns:
      logprobs_BL, or (logprobs_BL, entropy_BL).
    """
    # Cast down only inside the loop: then the loop's transpose sums the gradient in float32.
    w_ZVD = _per_device(unembed_VD, jnp.float32)

    @jax.checkpoint
    def chunk(h_ZTD, t_ZT, w_ZVD):
        logits_ZTV = _logits(h_ZTD, w_ZVD.astype(h_ZTD.dtype), softcap) / temperature
        lse_ZT = jax.nn.logsumexp(logits_ZTV, axis=-1)
        logprobs_ZT = _pick(logits_ZTV, t_ZT) - lse_ZT
        if not with_entropy:
            return logprobs_ZT
        probs_ZTV = jnp.exp(logits_ZTV - lse_ZT[:, :, None])
        # A product and not a sum: XLA on CPU would put the exponentials into the loop of the sum,
        # and take ten times as long.
        return logprobs_ZT, lse_ZT - jnp.einsum('ZTV,ZTV->ZT', probs_ZTV, logits_ZTV,
                                                precision=jax.lax.Precision.HIGHEST)

    chunks = _to_chunks(hidden_BLD, chunk_size), _to_chunks(targets_BL, chunk_size)
    out = jax.lax.map(lambda inputs: chunk(*inputs, w_ZVD), chunks)
    return jax.tree.map(lambda x: _from_chunks(x, *targets_BL.shape), out)


def _per_device(w_VD, dtype):
    """[V, D] -> [Z, V, D], a copy per device that holds a part of the batch, split over V."""
    Z = batch_ways(jax.sharding.get_abstract_mesh())
    w_ZVD = jnp.broadcast_to(w_VD.astype(dtype)[None], (Z, *w_VD.shape))
    return constrain(w_ZVD, 'batch', 'vocab', None)


def _to_chunks(x, chunk_size):
    """[B, L, ...] -> [chunks, Z, T, ...], the last chunk padded with zeros (weight 0)."""
    B, L, *rest = x.shape
    Z = batch_ways(jax.sharding.get_abstract_mesh())
    tokens = B // Z * L
    T = min(chunk_size, tokens)
    num = -(-tokens // T)
    x = x.reshape(Z, tokens, *rest)
    x = jnp.pad(x, [(0, 0), (0, num * T - tokens)] + [(0, 0)] * len(rest))
    x = jnp.moveaxis(x.reshape(Z, num, T, *rest), 1, 0)
    return constrain(x, None, 'batch', *(None,) * (x.ndim - 2))


def _from_chunks(x, B, L):
    """[chunks, Z, T, ...] -> [B, L, ...]."""
    num, Z, T, *rest = x.shape
    x = jnp.moveaxis(x, 0, 1).reshape(Z, num * T, *rest)[:, :B // Z * L]
    return constrain(x.reshape(B, L, *rest), 'batch', 'seq', *(None,) * len(rest))
