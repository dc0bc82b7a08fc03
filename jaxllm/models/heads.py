"""A scalar head on the transformer: reward models and value networks.

    r(x) = w . h_T + b        h_T: the hidden state at the last valid token T, behind the final norm

Parameters are {'model': those of the transformer, 'head': {'kernel': [D], 'bias': []}}. The head is
computed in float32, whatever the dtype of the model. There is no dropout anywhere.
"""

import jax
import jax.numpy as jnp

from jaxllm.models import transformer


def init_head(key, d_model):
    """{'kernel' [D], 'bias' []} float32: N(0, 1 / sqrt(D + 1)) and zero.

    Ref: Stiennon et al. 2020 (arXiv 2009.01325), appendix B.
    """
    scale = (d_model + 1) ** -0.5
    return {'kernel': scale * jax.random.normal(key, (d_model,), jnp.float32),
            'bias': jnp.zeros((), jnp.float32)}


def init_reward(key, cfg, params):
    """A reward model (or value network) of a ModelConfig that begins with `params`."""
    return {'model': params, 'head': init_head(key, cfg.d_model)}


def apply_head(head, hidden_BLD):
    """w . h + b at every token, [B, L] float32."""
    kernel_D = head['kernel'].astype(jnp.float32)
    return jnp.einsum('BLD,D->BL', hidden_BLD.astype(jnp.float32), kernel_D,
                      preferred_element_type=jnp.float32) + head['bias'].astype(jnp.float32)


def values(params, cfg, tokens_BL, **kwargs):
    """The head at every token, [B, L] float32; keyword arguments as of `apply_hidden`."""
    return apply_head(params['head'], transformer.apply_hidden(params['model'], cfg, tokens_BL,
                                                               **kwargs))


def valid(shape, lengths_B, starts_B=None):
    """bool [B, L]: tokens starts <= i < starts + lengths; starts default to 0 (right padding)."""
    index_BL = jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
    starts_B = jnp.zeros_like(lengths_B) if starts_B is None else starts_B
    return (index_BL >= starts_B[:, None]) & (index_BL < (starts_B + lengths_B)[:, None])


def features(params, cfg, tokens_BL, lengths_B, starts_B=None):
    """What the head reads of each row: the hidden state at its last valid token.

    Lengths decide and never ids, so that padding may be any token, the end of text as well, and
    a prompt may contain what ends an answer.

    Args:
      tokens_BL: int32. lengths_B: int32, valid tokens of each row; 0 = an empty row, whose state
        means nothing.
      starts_B: int32, where they begin, for left padding; default 0.

    Returns:
      [B, D] in the dtype of the model.
    """
    mask_BL = valid(tokens_BL.shape, lengths_B, starts_B)
    hidden_BLD = transformer.apply_hidden(params['model'], cfg, tokens_BL,
                                          segment_ids_BL=mask_BL.astype(jnp.int32))
    last_B = lengths_B - 1 if starts_B is None else starts_B + lengths_B - 1
    return jnp.take_along_axis(hidden_BLD, jnp.maximum(last_B, 0)[:, None, None], axis=1)[:, 0]


def scores(params, cfg, tokens_BL, lengths_B, starts_B=None):
    """The reward of each row, [B] float32: the head on `features`, with the same arguments."""
    hidden_BD = features(params, cfg, tokens_BL, lengths_B, starts_B)
    return apply_head(params['head'], hidden_BD[:, None])[:, 0]
