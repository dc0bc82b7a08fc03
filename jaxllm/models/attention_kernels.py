"""Attention through the accelerators' own kernels: splash attention on TPU, cuDNN on NVIDIA."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes, CausalMask, LocalMask, MultiHeadMask, SegmentIds, make_splash_mha_single_device)

from jaxllm.errors import InputError
from jaxllm.sharding import platform, spec

# cuDNN reads the segment mask as a dense bias: 2 bytes * B * L * L.
_CUDNN_MAX_LENGTH = 8192


def splash_attention(q_BLHC, k_BLKC, v_BLKC, q_segment_ids_BL, k_segment_ids_BL, *, window, softcap,
                     scale):
    """Arguments and result as `attention.attention`, for self-attention; interpreted off TPU."""
    L = q_BLHC.shape[1]
    padded = -(-L // 128) * 128
    block = max(size for size in (128, 256, 512) if padded % size == 0)
    causal = (LocalMask((padded, padded), (window - 1, 0), offset=0) if window
              else CausalMask((padded, padded)))
    blocks = BlockSizes(block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
                        block_q_dq=block, block_kv_dq=block)

    def local(q_BLHC, k_BLKC, v_BLKC, q_seg_BL, k_seg_BL):
        kernel = make_splash_mha_single_device(
            MultiHeadMask([causal] * q_BLHC.shape[2]), block_sizes=blocks,
            attn_logits_soft_cap=softcap or None, interpret=platform() != 'tpu')
        q, k, v = (jnp.pad(x, ((0, 0), (0, padded - L), (0, 0), (0, 0))).transpose(0, 2, 1, 3)
                   for x in (q_BLHC, k_BLKC, v_BLKC))
        q_seg, k_seg = (jnp.pad(x, ((0, 0), (0, padded - L))) for x in (q_seg_BL, k_seg_BL))
        # Padding sees padding here, so that no row is empty; it is zeroed afterwards.
        out_BHLC = jax.vmap(kernel)((q * scale).astype(q.dtype), k, v, SegmentIds(q_seg, k_seg))
        return _zero_padding(out_BHLC.transpose(0, 2, 1, 3)[:, :L], q_seg_BL)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        q_axes, k_axes = (('batch', 'seq', h, 'head_dim') for h in ('heads', 'kv_heads'))
        arrays = ((q_axes, q_BLHC), (k_axes, k_BLKC), (k_axes, v_BLKC),
                  (('batch', 'seq'), q_segment_ids_BL), (('batch', 'seq'), k_segment_ids_BL))
        specs = tuple(spec(axes, x.shape, mesh) for axes, x in arrays)
        # The kernel's calls do not say over which mesh axes they vary: nothing to check.
        local = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs[0],
                              check_vma=False)
    return local(q_BLHC, k_BLKC, v_BLKC, q_segment_ids_BL, k_segment_ids_BL)


def cudnn_unsupported(q_BLHC, softcap):
    """What cuDNN attention cannot do about this call, in words; '' if nothing."""
    L, _, C = q_BLHC.shape[1:]
    if softcap:
        return f'softcap={softcap} (it has none; use 0)'
    if q_BLHC.dtype not in (jnp.bfloat16, jnp.float16):
        return f'dtype {q_BLHC.dtype} (use bfloat16)'
    if C > 128 or C % 8:
        return f'head_dim={C} (use a multiple of 8 up to 128)'
    if L > _CUDNN_MAX_LENGTH:
        return f'{L} positions (its mask would be dense; at most {_CUDNN_MAX_LENGTH})'
    return ''


def cudnn_attention(q_BLHC, k_BLKC, v_BLKC, q_segment_ids_BL, k_segment_ids_BL, *, window, softcap,
                    scale):
    """Arguments and result as `attention.attention`, for self-attention on NVIDIA GPUs.

    Raises:
      InputError: cuDNN cannot do this, or there is no GPU.
    """
    missing = cudnn_unsupported(q_BLHC, softcap)
    if not missing and platform() != 'gpu':
        missing = f'the platform {platform()!r} (it needs an NVIDIA GPU)'
    if missing:
        raise InputError(f"attention impl='cudnn' does not support {missing}; or use "
                         "impl='chunked', which does")
    attend = functools.partial(jax.nn.dot_product_attention, implementation='cudnn', scale=scale,
                               is_causal=True,
                               local_window_size=(window - 1, 0) if window else None)
    # As above, padding sees padding and is zeroed afterwards.
    same_B1LM = q_segment_ids_BL[:, None, :, None] == k_segment_ids_BL[:, None, None, :]
    return _zero_padding(attend(q_BLHC, k_BLKC, v_BLKC, mask=same_B1LM), q_segment_ids_BL)


def _zero_padding(out_BLHC, segment_ids_BL):
    return jnp.where((segment_ids_BL != 0)[:, :, None, None], out_BLHC, 0)
