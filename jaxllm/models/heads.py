"""A scalar head on a transformer: the reward of a whole answer, or the value of every position.

    r = w . h_last + b,   h_last the final hidden state of the last real token, in float32

Parameters are {'model': those of a transformer, 'scalar': {'weight': [D], 'bias': []}}.
"""

import math

import jax
import jax.numpy as jnp

from jaxllm.models import transformer


def init_head(key, cfg):
    """{'scalar': ...}, weights N(0, 1 / (D + 1)). Ref: Stiennon et al. 2020 (arXiv 2009.01325), B.1"""
    std = 1 / math.sqrt(cfg.d_model + 1)
    return {'scalar': {'weight': std * jax.random.normal(key, (cfg.d_model,), jnp.float32),
                       'bias': jnp.zeros((), jnp.float32)}}


def values(params, cfg, tokens_BL, *, segment_ids_BL=None):
    """[B, L] float32: the head at every position."""
    hidden_BLD = transformer.apply_hidden(params['model'], cfg, tokens_BL,
                                          segment_ids_BL=segment_ids_BL)
    head = params['scalar']
    return jnp.einsum('BLD,D->BL', hidden_BLD.astype(jnp.float32), head['weight']) + head['bias']


def scores(params, cfg, tokens_BL, lengths_B):
    """[B] float32: the head at the last real token of rows that are padded on the right."""
    L = tokens_BL.shape[1]
    segment_ids_BL = (jnp.arange(L)[None, :] < lengths_B[:, None]).astype(jnp.int32)
    values_BL = values(params, cfg, tokens_BL, segment_ids_BL=segment_ids_BL)
    return jnp.take_along_axis(values_BL, lengths_B[:, None] - 1, axis=1)[:, 0]
