"""Next-token prediction: pre-training, infilling and supervised fine-tuning alike.

    L = sum_t w_t * (-log p(y_t | x_<=t) + z_loss * log(Z_t)^2) / sum_t w_t

Stages differ in `loss_weights` alone: all tokens for pre-training, assistant tokens for SFT, the
missing spans for span infilling.
"""

import chex
import jax
import jax.numpy as jnp

from jaxllm.models import transformer
from jaxllm.objectives import ops
from jaxllm.objectives.base import LossSums, Term


def lm(model, *, z_loss=0.0, neftune_alpha=0.0, chunk_size=512):
    """The language-modelling objective of a ModelConfig.

    Args:
      z_loss: weight of log(Z)^2, which keeps logits from drifting (PaLM, arXiv 2204.02311, 5); 1e-4
        is usual.
      neftune_alpha: size of the noise on embedded tokens, see `neftune_noise`; 0 = none. For
        training only: what evaluates is an objective without it.
      chunk_size: tokens per device and slice of the loss; [B, L, V] is never whole in memory.

    The batch has tokens, targets, segment_ids, positions [B, L] int32, loss_weights [B, L] float32
    and num_bytes [B] float32, the text bytes of the weighted targets.
    """
    def objective(params, frozen, batch, rng):
        del frozen
        chex.assert_equal_shape([batch[name] for name in (
            'tokens', 'targets', 'positions', 'segment_ids', 'loss_weights')])
        noise_BLD = None
        if neftune_alpha:
            noise_BLD = neftune_noise(rng, batch['segment_ids'], model.d_model, neftune_alpha)
        hidden_BLD = transformer.apply_hidden(
            params, model, batch['tokens'], positions_BL=batch['positions'],
            segment_ids_BL=batch['segment_ids'], embedding_noise_BLD=noise_BLD)
        loss, stats = ops.cross_entropy(
            hidden_BLD, transformer.unembed_matrix(params, model), batch['targets'],
            batch['loss_weights'], z_loss=z_loss, softcap=model.logit_softcap,
            chunk_size=chunk_size)
        weight = batch['loss_weights'].sum()
        metrics = {'nll': (stats.nll_sum, weight),
                   'accuracy': (stats.correct_sum, weight),
                   'nats_per_byte': (stats.nll_sum, batch['num_bytes'].sum())}
        return LossSums({'lm': Term(loss, weight)}, metrics)
    return objective


def neftune_noise(key, segment_ids_BL, d_model, alpha):
    """[B, L, D] float32: uniform in +-alpha / sqrt(l D), l the tokens of a token's own segment.

    So the noise of a conversation is as large as if it stood alone in its row; padding gets none.

    Ref: Jain et al. 2023 (arXiv 2310.05914), algorithm 1.
    """
    B, L = segment_ids_BL.shape
    rows_BL = jnp.broadcast_to(jnp.arange(B)[:, None], (B, L))
    counts = jnp.zeros((B, L + 1), jnp.float32).at[rows_BL, segment_ids_BL].add(1.0)
    length_BL = jnp.take_along_axis(counts, segment_ids_BL, axis=1)
    size_BL = jnp.where(segment_ids_BL > 0, alpha / jnp.sqrt(length_BL * d_model), 0.0)
    return size_BL[:, :, None] * jax.random.uniform(key, (B, L, d_model), minval=-1.0, maxval=1.0)
