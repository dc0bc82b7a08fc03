"""The pieces of a transformer block: norms, feed-forward layer, rotary and sinusoidal positions."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxllm.models import low_rank, quantize
from jaxllm.models.config import GATED
from jaxllm.sharding import constrain, platform


def scaled_normal(fan_in, gain=1.0):
    """N(0, gain / sqrt(fan_in)), cut at two standard deviations: activations keep their size."""
    # 0.8796 is the standard deviation of a unit normal cut at +-2.
    return nn.initializers.truncated_normal(stddev=gain / math.sqrt(fan_in) / 0.87962566103423978)


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axis, computed in float32.

    RMSNorm: y = x / sqrt(mean(x^2) + eps) * w (arXiv 1910.07467); LayerNorm: y = (x - mean(x)) /
    sqrt(var(x) + eps) * w + b (arXiv 1607.06450). With `unit_offset` the factor is 1 + w.
    """
    kind: str
    eps: float
    unit_offset: bool

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
        scale = self.param('scale', init, (x.shape[-1],), jnp.float32)
        scale = _last(scale + 1 if self.unit_offset else scale, x.ndim)
        y = x.astype(jnp.float32)
        if self.kind == 'layernorm':
            bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32)
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps) * scale
        if self.kind == 'layernorm':
            y = y + _last(bias, x.ndim)
        return y.astype(x.dtype)


def _last(w, ndim):
    return w.reshape((1,) * (ndim - w.ndim) + w.shape)


class Linear(nn.Module):
    """y = x W (+ b) over the last `in_dims` axes of x, into axes `features`.

    `axes` names the output's logical axes; the kernel has shape [*inputs, *features]. In its place
    may stand what `quantize` stores, and beside it the leaves of an adapter (`lora.combine`):

        y = x W + (x A) B, with a magnitude m of DoRA times m / |W + A B|
    """
    features: tuple
    axes: tuple
    bias: bool
    in_dims: int = 1
    gain: float = 1.0

    @nn.compact
    def __call__(self, x):
        inputs = x.shape[x.ndim - self.in_dims:]
        # {} while the layer is being initialised.
        leaves = self.variables['params'] if 'params' in self.variables else {}
        matrix = quantize.stored(leaves)
        if matrix and 'kernel' not in matrix:
            y = quantize.frozen_dot(x, matrix, self.in_dims)
        else:
            kernel = self.param('kernel', scaled_normal(math.prod(inputs), self.gain),
                                (*inputs, *self.features), jnp.float32)
            y = low_rank.dot(x, kernel.astype(x.dtype), self.in_dims)
        if 'lora_a' in leaves:
            y = y + low_rank.update(x, leaves['lora_a'], leaves['lora_b'])
        if 'magnitude' in leaves:
            kernel = quantize.dequantise(matrix, tuple(range(self.in_dims)), x.dtype)
            scale = low_rank.magnitude_scale(leaves['magnitude'], kernel, leaves['lora_a'],
                                             leaves['lora_b'])
            y = y * _last(scale, y.ndim).astype(y.dtype)
        if self.bias:
            bias = self.param('bias', nn.initializers.zeros, self.features, jnp.float32)
            y = y + _last(bias, y.ndim).astype(y.dtype)
        return constrain(y, *self.axes)


_ACTIVATE = {
    'gelu': nn.gelu,  # the tanh approximation, as in GPT-2 and Gemma
    'gelu_exact': lambda x: nn.gelu(x, approximate=False),
    'relu': nn.relu,
    'swiglu': nn.silu,
    'geglu': nn.gelu,
}


class Mlp(nn.Module):
    """down(act(up(x))), or gated down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""
    d_ff: int
    activation: str
    bias: bool
    out_gain: float

    @nn.compact
    def __call__(self, x_BLD):
        hidden_axes = ('batch', 'seq', 'd_ff')
        hidden_BLF = Linear((self.d_ff,), hidden_axes, self.bias, name='up')(x_BLD)
        activate = _ACTIVATE[self.activation]
        if self.activation in GATED:
            gate_BLF = Linear((self.d_ff,), hidden_axes, self.bias, name='gate')(x_BLD)
            hidden_BLF = activate(gate_BLF) * hidden_BLF
        else:
            hidden_BLF = activate(hidden_BLF)
        return Linear((x_BLD.shape[-1],), ('batch', 'seq', 'd_model'), self.bias,
                      gain=self.out_gain, name='down')(hidden_BLF)


def rope_frequencies(rope, head_dim, kind):
    """Radians per position of each of the head_dim / 2 pairs, [C/2] float32.

    f_i = theta^(-2i/C); 'linear' scaling divides all by `factor`, 'llama3' only the low ones, with
    a smooth passage between wavelengths original_length / high_freq_factor and / low_freq_factor.
    """
    theta = rope.local_theta if kind == 'local' else rope.theta
    freq = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if kind == 'local' or rope.scaling == 'none':
        return freq
    if rope.scaling == 'linear':
        return freq / rope.factor
    turns = rope.original_length * freq / (2 * math.pi)
    keep = jnp.clip((turns - rope.low_freq_factor)
                    / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
    return keep * freq + (1 - keep) * freq / rope.factor


def rope_table(positions_BL, freq):
    """(cos, sin) of every position and pair, each [B, L, 1, C/2] float32."""
    angle = positions_BL[:, :, None, None].astype(jnp.float32) * freq[None, None, None]
    if platform() != 'cpu':
        return jnp.cos(angle), jnp.sin(angle)
    # Else XLA would compute both anew for each head of each layer, past any optimization_barrier.
    return tuple(jax.lax.map(lambda is_sin: jax.lax.cond(is_sin, jnp.sin, jnp.cos, angle),
                             jnp.array([False, True])))


def rotate(x_BLHC, table):
    """Rotates the pairs (x_i, x_{i + C/2}) of every head by their angles, in float32."""
    cos, sin = table
    a, b = jnp.split(x_BLHC.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BLHC.dtype)


def sinusoids(positions_BL, d_model):
    """Vaswani 2017 (arXiv 1706.03762), 3.5: [B, L, D], sines in the first half, cosines after."""
    freq = 10_000.0 ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angle = positions_BL[:, :, None].astype(jnp.float32) * freq[None, None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
