"""Next-token prediction: pre-training, infilling and supervised fine-tuning alike.

    L = sum_t w_t * (-log p(y_t | x_<=t) + z_loss * log(Z_t)^2) / sum_t w_t

Stages differ in `loss_weights` alone: all tokens for pre-training, assistant tokens for SFT, the
missing spans for span infilling.
"""

import chex

from jaxllm.models import transformer
from jaxllm.objectives import ops
from jaxllm.objectives.base import LossSums, Term


def lm(model, *, z_loss=0.0, chunk_size=512):
    """The language-modelling objective of a ModelConfig.

    Args:
      z_loss: weight of log(Z)^2, which keeps logits from drifting (PaLM, arXiv 2204.02311, 5); 1e-4
        is usual.
      chunk_size: tokens per device and slice of the loss; [B, L, V] is never whole in memory.

    The batch has tokens, targets, segment_ids, positions [B, L] int32, loss_weights [B, L] float32
    and num_bytes [B] float32, the text bytes of the weighted targets.
    """
    def objective(params, frozen, batch, rng):
        del frozen, rng
        chex.assert_equal_shape([batch[name] for name in (
            'tokens', 'targets', 'positions', 'segment_ids', 'loss_weights')])
        hidden_BLD = transformer.apply_hidden(
            params, model, batch['tokens'], positions_BL=batch['positions'],
            segment_ids_BL=batch['segment_ids'])
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
