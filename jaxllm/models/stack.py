"""The layers of the decoder as Flax modules: attention, block, and the scan over all of them.

Layers of one kind are stacked along a leading axis and scanned over, so that compile time and
memory do not grow with depth; on CPU, where a loop costs more, few layers are written out. A
pattern of several kinds (local, global) is scanned as a group; layers left over by the pattern
stand in `tail`. For a compiled loop that calls a model many times, the layers can be taken apart
(`unrolled`).
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxllm.models import quantize
from jaxllm.models.attention import attention
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import Linear, Mlp, Norm, rotate
from jaxllm.sharding import constrain, platform

PREFIX = 'prefix'  # the collection of keys and values that a later text goes on from
# More layers are scanned over in every case: a step of 30 unrolled ones takes long to compile.
_UNROLLED_LAYERS = 12


class Segments(NamedTuple):
    """Segment ids of the queries, and of the keys: the same but behind a prefix."""
    queries_BL: jax.Array
    keys_BM: jax.Array


def of_rows(x_P, B, *axes):
    """[P, ...] -> [B, ...]: of the text that each row goes on from. axes: the others' names."""
    x_B = jnp.repeat(x_P, B // x_P.shape[0], axis=0)
    return constrain(x_B, 'batch', *(axes or (None,) * (x_B.ndim - 1)))


class Attention(nn.Module):
    """Self-attention of one layer; with a cache, keys and values go to it and come from it."""
    cfg: ModelConfig
    kind: str

    @nn.compact
    def __call__(self, x_BLD, segments, rope, cache, layer):
        cfg, att = self.cfg, self.cfg.attention
        kv = functools.partial(Linear, (att.num_kv_heads, att.head_dim),
                               ('batch', 'seq', 'kv_heads', 'head_dim'), att.qkv_bias)
        q_BLHC = Linear((att.num_heads, att.head_dim), ('batch', 'seq', 'heads', 'head_dim'),
                        att.qkv_bias, name='q')(x_BLD)
        k_BLKC, v_BLKC = kv(name='k')(x_BLD), kv(name='v')(x_BLD)
        if att.qk_norm:
            q_BLHC = Norm('rmsnorm', cfg.norm_eps, cfg.norm_unit_offset, name='q_norm')(q_BLHC)
            k_BLKC = Norm('rmsnorm', cfg.norm_eps, cfg.norm_unit_offset, name='k_norm')(k_BLKC)
        if cfg.positions == 'rope':
            q_BLHC, k_BLKC = rotate(q_BLHC, rope[self.kind]), rotate(k_BLKC, rope[self.kind])
        self.sow('intermediates', 'queries', q_BLHC)
        self.sow('intermediates', 'keys', k_BLKC)
        attend = functools.partial(
            attention, window=att.window if self.kind == 'local' else 0, softcap=att.softcap,
            scale=att.scale or att.head_dim ** -0.5, impl=att.impl, chunk_size=att.chunk_size)
        if self.has_variable(PREFIX, 'keys_values'):
            before = (of_rows(x, x_BLD.shape[0], 'seq', 'kv_heads', 'head_dim')
                      for x in self.get_variable(PREFIX, 'keys_values'))
            k_BLKC, v_BLKC = (jnp.concatenate([old, new], axis=1) for old, new in
                              zip(before, (k_BLKC, v_BLKC), strict=True))
        else:
            self.sow(PREFIX, 'keys_values', (k_BLKC, v_BLKC), init_fn=tuple,
                     reduce_fn=lambda _, new: new)
        if cache is None:
            out_BLHC = attend(q_BLHC, k_BLKC, v_BLKC, *segments)
        else:
            cache = cache.write(layer, k_BLKC, v_BLKC)
            if cache.empty:  # prefill: what is in the cache is what was just computed
                out_BLHC = attend(q_BLHC, k_BLKC, v_BLKC, *segments)
            else:
                out_BLHC = attend(q_BLHC, *cache.read(layer), segments.queries_BL,
                                  cache.key_segments(),
                                  q_index_BL=cache.query_index(x_BLD.shape[1]))
        out_BLD = Linear((cfg.d_model,), ('batch', 'seq', 'd_model'), att.out_bias, in_dims=2,
                         gain=(2 * cfg.num_layers) ** -0.5, name='o')(out_BLHC)
        return out_BLD, cache


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `post_norm`, branches are normed too."""
    cfg: ModelConfig
    kind: str

    @nn.compact
    def __call__(self, x_BLD, segments, rope, cache, layer):
        cfg = self.cfg
        norm = functools.partial(Norm, cfg.norm, cfg.norm_eps, cfg.norm_unit_offset)
        branch_BLD, cache = Attention(cfg, self.kind, name='attention')(
            norm(name='attention_norm')(x_BLD), segments, rope, cache, layer)
        if cfg.post_norm:
            branch_BLD = norm(name='attention_post_norm')(branch_BLD)
        x_BLD = x_BLD + branch_BLD
        branch_BLD = Mlp(cfg.d_ff, cfg.activation, cfg.mlp_bias,
                         (2 * cfg.num_layers) ** -0.5, name='mlp')(norm(name='mlp_norm')(x_BLD))
        if cfg.post_norm:
            branch_BLD = norm(name='mlp_post_norm')(branch_BLD)
        return constrain(x_BLD + branch_BLD, 'batch', 'seq', 'd_model'), cache


class Group(nn.Module):
    """One repetition of the layer pattern: the body of the scan over layers."""
    cfg: ModelConfig
    kinds: tuple
    scanned: bool

    @nn.compact
    def __call__(self, carry, segments, rope):
        x_BLD, cache, layer = carry
        block = _remat(Block, self.cfg.remat, self.scanned)
        for i, kind in enumerate(self.kinds):
            x_BLD, cache = block(self.cfg, kind, name=f'layer_{i}')(
                x_BLD, segments, rope, cache, layer + i)
        return (x_BLD, cache, layer + len(self.kinds)), None


class Stack(nn.Module):
    """All layers and the final norm."""
    cfg: ModelConfig

    @nn.compact
    def __call__(self, x_BLD, segments, rope, cache):
        cfg, carry = self.cfg, (x_BLD, cache, 0)
        if cfg.num_groups:
            # Nothing is broadcast out of the scan, so there is no constancy to trace for.
            scan = nn.scan(Group, variable_axes={'params': 0, 'intermediates': 0, PREFIX: 0},
                           split_rngs={'params': True}, in_axes=nn.broadcast,
                           length=cfg.num_groups, check_constancy_invariants=False,
                           unroll=_groups_at_once(cfg, self.variables.get('params', {})))
            layers = scan(cfg, cfg.layer_pattern, True, name='layers')
            carry, _ = layers(carry, segments, rope)
        if cfg.tail:
            carry, _ = Group(cfg, cfg.tail, False, name='tail')(carry, segments, rope)
        x_BLD, cache, _ = carry
        norm = Norm(cfg.norm, cfg.norm_eps, cfg.norm_unit_offset, name='final_norm')
        return norm(x_BLD), cache


def _groups_at_once(cfg, params):
    """How many turns of the scan are written out one behind the other.

    All of few layers on CPU, where the loop clears and copies whole stacks of what the backward
    pass needs: a step of GRPO takes a fifth less time. The loop stays where it saves memory: it
    keeps the compiler from merging remat's recomputation with the original, and from holding
    several layers of matrices in few bits as dense ones.
    """
    written_out = (platform() == 'cpu' and unrolls(cfg) and cfg.remat == 'none'
                   and not quantize.in_few_bits(params))
    return cfg.num_groups if written_out else 1


def _remat(module, name, scanned):
    if name == 'none':
        return module
    # 'dots' keeps the results of weight matmuls and recomputes the rest; 'full' keeps only x.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if name == 'dots' else None
    # Outside a scan the compiler would merge the recomputation with the original.
    return nn.remat(module, policy=policy, prevent_cse=not scanned)


def unrolls(cfg):
    """Whether `unrolled` takes the layers apart: not where that would be long to compile."""
    return cfg.num_layers <= _UNROLLED_LAYERS


def unrolled(params, cfg):
    """Parameters for many calls in one compiled loop: a tuple of groups of layers in place of the
    stack, out of which each call would copy every matrix."""
    if not (unrolls(cfg) and cfg.num_groups):
        return params
    group = lambda i: jax.tree.map(lambda x: x[i], params['layers'])
    return params | {'layers': tuple(map(group, range(cfg.num_groups)))}


def apply_unrolled(params, cfg, x_BLD, segments, rope, cache):
    """As `Stack`, of parameters from `unrolled`."""
    carry, cfg = (x_BLD, cache, 0), dataclasses.replace(cfg, remat='none')  # nothing goes back
    groups = [(group, cfg.layer_pattern) for group in params['layers']]
    if cfg.tail:
        groups.append((params['tail'], cfg.tail))
    for group, kinds in groups:
        carry, _ = Group(cfg, kinds, True).apply({'params': group}, carry, segments, rope)
    norm = Norm(cfg.norm, cfg.norm_eps, cfg.norm_unit_offset)
    return norm.apply({'params': params['final_norm']}, carry[0]), carry[1]
