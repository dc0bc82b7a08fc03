"""Log-probabilities of the ends of token sequences, and whether greedy decoding writes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.decode.batch import bucket
from jaxllm.errors import InputError
from jaxllm.models import transformer
from jaxllm.sharding import batch_shardings, batch_ways, replicated

_CHUNK = 8  # columns whose logits exist at once


def score_ends(params, cfg, sequences, starts, *, batch_size=32):
    """log p(ids[start:] | ids[:start]) of each sequence. Needs a mesh: run under `jax.set_mesh`.

    Args:
      params, cfg: a model and its ModelConfig.
      sequences: lists of token ids, of any lengths.
      starts: the first scored index of each, at least 1; its length = nothing is scored.
      batch_size: rows at once; changes no number beyond rounding.

    Returns:
      ([items] float64, sums of log-probs [nats]; [items] bool, every scored token has the greatest
      logit). Of nothing: 0 and True.

    Raises:
      InputError: a sequence longer than the model has positions, or an id outside its vocabulary.
    """
    totals, greedy = np.zeros(len(sequences)), np.ones(len(sequences), bool)
    for i, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        _check(cfg, ids, start, i)
    ways = batch_ways(jax.sharding.get_mesh())
    order = sorted((i for i, ids in enumerate(sequences) if starts[i] < len(ids)),
                   key=lambda i: -len(sequences[i]))
    for first in range(0, len(order), batch_size):
        rows = order[first:first + batch_size]
        L = bucket(len(sequences[rows[0]]) - 1)
        if cfg.positions == 'learned':
            L = min(L, cfg.max_seq_len)
        B = ways * bucket(-(-len(rows) // ways), least=1)
        logprobs_BL, best_BL = _batch(params, cfg, [sequences[i] for i in rows], (B, L))
        for row, i in enumerate(rows):
            # Column j predicts token j + 1.
            own = slice(starts[i] - 1, len(sequences[i]) - 1)
            totals[i] = logprobs_BL[row, own].astype(np.float64).sum()
            greedy[i] = best_BL[row, own].all()
    return totals, greedy


def _check(cfg, ids, start, i):
    if not 1 <= start <= len(ids):
        raise ValueError(f'sequence {i}: start={start} must be from 1 to its length {len(ids)}')
    if cfg.positions == 'learned' and len(ids) - 1 > cfg.max_seq_len:
        raise InputError(f'sequence {i} has {len(ids)} tokens, and the model {cfg.max_seq_len} '
                         'learned positions; use a smaller max_length')
    if not 0 <= min(ids) <= max(ids) < cfg.vocab_size:
        raise InputError(f'sequence {i} has token ids from {min(ids)} to {max(ids)}, outside the '
                         f'vocabulary of {cfg.vocab_size} ids; the model and the tokenizer do not '
                         'belong together')


def _batch(params, cfg, sequences, shape):
    tokens_BL, targets_BL = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, ids in enumerate(sequences):
        tokens_BL[row, :len(ids) - 1] = ids[:-1]
        targets_BL[row, :len(ids) - 1] = ids[1:]
    mesh = jax.sharding.get_mesh()
    batch = {'tokens': tokens_BL, 'targets': targets_BL}
    batch = jax.device_put(batch, batch_shardings(batch, mesh))
    return jax.device_get(_program(mesh)(params, batch['tokens'], batch['targets'], cfg=cfg))


@functools.cache
def _program(mesh):
    """The compiled function of a mesh; what it returns is whole on every device."""
    return jax.jit(_logprobs, static_argnames='cfg', out_shardings=replicated(mesh))


def _logprobs(params, tokens_BL, targets_BL, *, cfg):
    """log p of each target and whether its logit is the greatest, a few columns at a time.

    Padding stands behind the tokens, where causal attention does not see it.
    """
    hidden_BLD = transformer.apply_hidden(params, cfg, tokens_BL)
    B, L, D = hidden_BLD.shape
    num = -(-L // _CHUNK)
    pad = num * _CHUNK - L
    h = jnp.pad(hidden_BLD, ((0, 0), (0, pad), (0, 0))).reshape(B, num, _CHUNK, D)
    t = jnp.pad(targets_BL, ((0, 0), (0, pad))).reshape(B, num, _CHUNK)

    def chunk(inputs):
        h_BTD, t_BT = inputs
        logits_BTV = transformer.unembed(params, cfg, h_BTD)
        target_BT = jnp.take_along_axis(logits_BTV, t_BT[:, :, None], axis=-1)[:, :, 0]
        logprobs_BT = target_BT - jax.nn.logsumexp(logits_BTV, axis=-1)
        return logprobs_BT, jnp.argmax(logits_BTV, axis=-1) == t_BT

    out = jax.lax.map(chunk, (jnp.moveaxis(h, 1, 0), jnp.moveaxis(t, 1, 0)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(B, num * _CHUNK)[:, :L], out)
