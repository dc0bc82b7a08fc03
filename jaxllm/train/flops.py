"""Analytic FLOPs of a decoder, the measured matmul peak of this machine, and its memory."""

import pathlib
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from jaxllm.models.config import GATED


def mean_keys(seq_len, window=0):
    """Mean number of keys that a query attends to: causal, itself included.

    Position i (from 1) sees min(i, window) keys, or i without a window. The boundaries of packed
    documents would lower it further; they depend on the data and are left out, so that the model
    FLOPs of a configuration are one number.

    Args:
        seq_len: tokens per row.
        window: keys visible to a query in a sliding window, itself included; 0 for all.
    """
    seen = min(window, seq_len) if window else seq_len
    return (seen * (seen + 1) / 2 + (seq_len - seen) * seen) / seq_len


def forward_flops_per_token(model, seq_len):
    """Model FLOPs of one token's forward pass; a multiply-add counts as 2.

    Per layer: 2 D C (2 H + 2 K) for q, o, k, v; 2 D F (3 if gated, else 2) for the MLP;
    4 H C keys for scores and values. Once: 2 D V to unembed. The embedding is a look-up, and norms,
    activations, RoPE and softmax are not matmuls: none of them counts.

    Args:
        model: a ModelConfig.
        seq_len: tokens per row.

    Returns:
        FLOPs per token, averaged over the positions of a row.

    Ref: Chowdhery et al. 2022, PaLM, appendix B; there attention is counted without the causal
        half and the window, here with both.
    """
    attention = model.attention
    head_rows = 2 * attention.num_heads + 2 * attention.num_kv_heads
    projections = 2 * model.d_model * attention.head_dim * head_rows
    mlp = 2 * model.d_model * model.d_ff * (3 if model.activation in GATED else 2)
    unembed = 2 * model.d_model * model.vocab_size
    return (model.num_layers * (projections + mlp) + mixing_flops_per_token(model, seq_len)
            + unembed)


def mixing_flops_per_token(model, seq_len):
    """The part of `forward_flops_per_token` that is no weight matrix: scores and values."""
    attention = model.attention
    keys = 0.
    for layer in range(model.num_layers):
        kind = model.layer_pattern[layer % len(model.layer_pattern)]
        keys += mean_keys(seq_len, attention.window if kind == 'local' else 0)
    return 4 * attention.num_heads * attention.head_dim * keys


def train_flops_per_token(model, seq_len):
    """FLOPs per token forward and backward, 3 x forward: each matmul has two in the backward pass.

    Recomputation (remat) is not counted: it is the model's work, not the implementation's.
    """
    return 3 * forward_flops_per_token(model, seq_len)


def adapter_train_flops_per_token(model, adapter, seq_len):
    """FLOPs per token of training an adapter on a frozen base.

    No gradient by the base's matrices: of the three matrix products that a trained one has, two are
    left (4 FLOPs per parameter, not 6). Attention itself, the adapter's factors and what it trains
    in full have all three.

    Args:
        model: a ModelConfig.
        adapter: tree of `lora.init_adapter`, or its shapes.
        seq_len: tokens per row.
    """
    forward = forward_flops_per_token(model, seq_len)
    unembed = 2 * model.d_model * model.vocab_size
    frozen = forward - mixing_flops_per_token(model, seq_len)
    if 'head' in adapter or ('embed' in adapter and model.tie_embeddings):
        frozen -= unembed
    factors = sum(x.size for path, x in jax.tree_util.tree_leaves_with_path(adapter)
                  if path[-1].key in ('lora_a', 'lora_b'))
    return 3 * (forward + 2 * factors) - frozen


def measure_matmul_peak(dtype, seconds=0.5, sizes=(512, 1024)):
    """FLOP/s of the best square matmul on one device, the peak that MFU is measured against.

    Args:
        dtype: of both operands, e.g. 'float32'.
        seconds: time to spend, without compilation, over all sizes; each runs at least 3 times.
        sizes: edges of the matrices.

    Returns:
        FLOP/s: the median of each size, best of the sizes.
    """
    matmul = jax.jit(lambda x_DD, y_DD: x_DD @ y_DD)
    best = 0.
    for size in sizes:
        x_DD = jnp.full((size, size), 0.5, dtype)
        matmul(x_DD, x_DD).block_until_ready()
        times, end = [], time.perf_counter() + seconds / len(sizes)
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            matmul(x_DD, x_DD).block_until_ready()
            times.append(time.perf_counter() - start)
        best = max(best, 2 * size ** 3 / statistics.median(times))
    return best


def machine_matmul_peak(dtype, seconds=0.5):
    """FLOP/s of all devices together; forced CPU host devices share one CPU and count once."""
    count = 1 if jax.default_backend() == 'cpu' else jax.device_count()
    return count * measure_matmul_peak(dtype, seconds)


def memory_bytes():
    """Bytes in use now on this process's fullest device; where it cannot tell (CPU), the RSS."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    in_use = [entry['bytes_in_use'] for entry in stats if entry and 'bytes_in_use' in entry]
    return max(in_use) if in_use else rss_bytes()


def rss_bytes():
    """Resident memory of this process now; the peak where the system has no /proc."""
    statm = pathlib.Path('/proc/self/statm')
    if not statm.exists():
        return peak_rss_bytes()
    return int(statm.read_text().split()[1]) * resource.getpagesize()


def peak_rss_bytes():
    """Largest resident memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
