"""What a decoder is made of: two frozen dataclasses, checked when they are built.

One model covers GPT-2, Llama, Mistral, Qwen 2/3, Gemma 2/3 and SmolLM; `families.py` has their
settings.

The letters of shape suffixes, one meaning in the whole code base:
  B batch   L query length   M key length   D model   F feed-forward   V vocabulary   N layers
  H heads   K key-value heads   G = H / K   C head dimension
  E experts   R rank   P pairs   S responses per prompt
"""

import dataclasses

from jaxllm.errors import InputError

ACTIVATIONS = ('gelu', 'gelu_exact', 'relu', 'swiglu', 'geglu')
GATED = ('swiglu', 'geglu')
NORMS = ('rmsnorm', 'layernorm')
POSITIONS = ('rope', 'learned', 'sinusoidal', 'none')
ROPE_SCALINGS = ('none', 'linear', 'llama3')
LAYER_KINDS = ('global', 'local')
REMAT = ('none', 'dots', 'full')
DTYPES = ('float32', 'bfloat16')
ATTENTION_IMPLS = ('auto', 'xla', 'chunked', 'splash', 'cudnn')


def _choice(name, value, allowed):
    if value not in allowed:
        raise InputError(f'model.{name}={value!r} is unknown; use one of {", ".join(allowed)}')


def _positive(**values):
    for name, value in values.items():
        if value <= 0:
            raise InputError(f'model.{name}={value} must be positive'.replace('__', '.'))


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Multi-head attention with grouped key-value heads (Ainslie 2023, arXiv 2305.13245)."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int            # keys a 'local' layer sees, its own token included
    softcap: float         # s * tanh(scores / s); 0 = off (Gemma 2)
    scale: float           # of the scores; 0 = head_dim ** -0.5
    qk_norm: bool          # RMSNorm of every query and key head (Qwen 3, Gemma 3)
    qkv_bias: bool
    out_bias: bool
    impl: str              # ATTENTION_IMPLS
    chunk_size: int        # queries and keys per block of 'chunked'; 0 = chosen

    def __post_init__(self):
        _positive(attention__num_heads=self.num_heads, attention__head_dim=self.head_dim,
                  attention__num_kv_heads=self.num_kv_heads, attention__window=self.window)
        _choice('attention.impl', self.impl, ATTENTION_IMPLS)
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f'model.attention.num_heads={self.num_heads} is no multiple of '
                f'num_kv_heads={self.num_kv_heads}; every key-value head serves the same number '
                'of query heads')


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su 2021, arXiv 2104.09864), halves rotated as in Llama."""
    theta: float
    local_theta: float     # of 'local' layers (Gemma 3)
    scaling: str           # ROPE_SCALINGS, of 'global' layers
    factor: float          # new context length / original one
    low_freq_factor: float      # the last three: llama3 scaling only
    high_freq_factor: float
    original_length: int

    def __post_init__(self):
        _choice('rope.scaling', self.scaling, ROPE_SCALINGS)
        _positive(rope__theta=self.theta, rope__local_theta=self.local_theta,
                  rope__factor=self.factor)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer."""
    vocab_size: int
    d_model: int
    num_layers: int
    d_ff: int
    max_seq_len: int       # rows of the learned position table; other positions have no end
    activation: str        # ACTIVATIONS
    mlp_bias: bool
    norm: str              # NORMS
    norm_eps: float
    norm_unit_offset: bool  # the scale is stored minus one (Gemma)
    post_norm: bool        # a second norm after attention and after the MLP (Gemma 2 and 3)
    positions: str         # POSITIONS
    tie_embeddings: bool
    embedding_scale: bool  # token embeddings times sqrt(d_model) (Gemma)
    logit_softcap: float   # 0 = off (Gemma 2)
    layer_pattern: tuple   # of LAYER_KINDS, repeated over the layers
    remat: str             # what the backward pass recomputes: REMAT
    dtype: str             # of activations and matrix products; parameters stay float32
    attention: AttentionConfig
    rope: RopeConfig

    def __post_init__(self):
        _positive(vocab_size=self.vocab_size, d_model=self.d_model, num_layers=self.num_layers,
                  d_ff=self.d_ff, max_seq_len=self.max_seq_len, norm_eps=self.norm_eps)
        _choice('activation', self.activation, ACTIVATIONS)
        _choice('norm', self.norm, NORMS)
        _choice('positions', self.positions, POSITIONS)
        _choice('remat', self.remat, REMAT)
        _choice('dtype', self.dtype, DTYPES)
        if not self.layer_pattern:
            raise InputError("model.layer_pattern is empty; use e.g. ('global',)")
        for kind in self.layer_pattern:
            _choice('layer_pattern', kind, LAYER_KINDS)
        if self.positions == 'rope' and self.attention.head_dim % 2:
            raise InputError(f'model.attention.head_dim={self.attention.head_dim} is odd; rotary '
                             'positions rotate pairs: use an even number')
        if self.positions == 'sinusoidal' and self.d_model % 2:
            raise InputError(f'model.d_model={self.d_model} is odd; sinusoidal positions need an '
                             'even number')

    @property
    def num_groups(self):
        """Whole repetitions of the layer pattern: the length of the scan over layers."""
        return self.num_layers // len(self.layer_pattern)

    @property
    def tail(self):
        """Kinds of the layers after the last whole repetition of the pattern."""
        return self.layer_pattern[:self.num_layers % len(self.layer_pattern)]


def model_config(section):
    """ModelConfig of a nested mapping. An unknown or missing key is an InputError."""
    section = dict(section)
    try:
        attention = AttentionConfig(**section.pop('attention'))
        rope = RopeConfig(**section.pop('rope'))
        section['layer_pattern'] = tuple(section['layer_pattern'])
        return ModelConfig(attention=attention, rope=rope, **section)
    except (TypeError, KeyError) as error:
        raise InputError(f'config.model: {error}') from error
