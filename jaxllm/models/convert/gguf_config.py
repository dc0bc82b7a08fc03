"""The settings in a GGUF file and our nested model settings, both ways."""

import numpy as np

from jaxllm.errors import InputError
from jaxllm.models.convert.hf_config import _settings

ARCHITECTURES = ('llama', 'qwen2', 'qwen3', 'gemma2', 'gemma3', 'gpt2')
# Rows of q and k are stored in the order of interleaved rotary pairs.
PERMUTED = ('llama',)
UNIT_OFFSET = ('gemma2', 'gemma3')  # norms are stored with the 1 added


def model_of(file):
    """(architecture, nested settings for model_config) of a GgufFile.

    Raises:
      InputError: an architecture or a setting that our decoder cannot compute exactly.
    """
    arch = file.fields.get('general.architecture', '')
    if arch not in ARCHITECTURES:
        raise InputError(f'{file.path}: architecture {arch!r} is not supported; expected one of '
                         f'{", ".join(ARCHITECTURES)}')

    def read(name, *default):
        key = f'{arch}.{name}'
        if key in file.fields:
            return file.fields[key]
        if not default:
            raise InputError(f'{file.path} has no {key}; it is damaged, or of an older converter')
        return default[0]

    if read('expert_count', 0):
        raise InputError(f'{file.path} is a mixture of experts, which is not supported')
    heads, d_model, layers = (read('attention.head_count'), read('embedding_length'),
                              read('block_count'))
    head_dim = read('attention.key_length', d_model // heads)
    vocab = file.shape('token_embd.weight')[0]
    tied = 'output.weight' not in file.tensors
    common = dict(vocab_size=vocab, d_model=d_model, num_layers=layers,
                  d_ff=read('feed_forward_length'), max_seq_len=read('context_length'),
                  tie_embeddings=tied)
    if arch == 'gpt2':
        return arch, _settings(
            **common, activation='gelu', mlp_bias=True, norm='layernorm',
            norm_eps=_short(read('attention.layer_norm_epsilon')), positions='learned',
            attention=dict(num_heads=heads, num_kv_heads=heads, head_dim=head_dim, qkv_bias=True,
                           out_bias=True))
    bias = lambda name: f'blk.0.{name}.bias' in file.tensors
    window = read('attention.sliding_window', 0)
    attention = dict(num_heads=heads, num_kv_heads=read('attention.head_count_kv', heads),
                     head_dim=head_dim, qkv_bias=bias('attn_q'), out_bias=bias('attn_output'),
                     qk_norm='blk.0.attn_q_norm.weight' in file.tensors, window=window or 1)
    more, pattern = {}, ('local',) if window and arch == 'llama' else ('global',)
    theta = _short(read('rope.freq_base', 10_000.0))
    local_theta = theta
    if arch in UNIT_OFFSET:
        attention['scale'] = _scale(read('attention.scale', head_dim ** -0.5))
        attention['softcap'] = _short(read('attn_logit_softcapping', 0.0))
        more = dict(norm_unit_offset=True, post_norm=True, embedding_scale=True,
                    logit_softcap=_short(read('final_logit_softcapping', 0.0)))
        every = read('attention.sliding_window_pattern', 2 if arch == 'gemma2' else 6)
        pattern = tuple(['local'] * (every - 1) + ['global']) if window else ('global',)
        pattern = pattern[:layers] if layers < every else pattern
        if arch == 'gemma3':
            local_theta = _short(read('rope.freq_base_swa', 10_000.0))
    return arch, _settings(
        **common, activation='geglu' if arch in UNIT_OFFSET else 'swiglu', mlp_bias=bias('ffn_up'),
        norm_eps=_short(read('attention.layer_norm_rms_epsilon')), layer_pattern=pattern,
        attention=attention,
        rope=_rope(file, read, theta, local_theta, head_dim), **more)


def _short(value):
    """A float32 from a file as the decimal that was meant: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _scale(value):
    """A float32 n^-0.5 with all its digits, where n is a whole number."""
    scalar = value ** -2
    whole = round(scalar)
    return whole ** -0.5 if abs(scalar - whole) < 1e-4 * whole else _short(value)


def _rope(file, read, theta, local_theta, head_dim):
    kind, factor = read('rope.scaling.type', 'none'), _short(read('rope.scaling.factor', 1.0))
    rope = dict(theta=theta, local_theta=local_theta)
    if 'rope_freqs.weight' in file.tensors:
        return rope | _llama3(file.read('rope_freqs.weight'), theta, head_dim, read)
    if kind == 'linear' and factor != 1:
        return rope | dict(scaling='linear', factor=factor)
    if kind not in ('none', 'linear'):
        raise InputError(f'{file.path}: rope scaling of type {kind!r} is not supported; expected '
                         'none, linear or the frequencies of Llama 3')
    return rope


def _llama3(divisors, theta, head_dim, read):
    """The settings of Llama 3's scaling whose divisors of the frequencies a file lists."""
    factor = _short(divisors.max())
    for length in (8192, 4096, 2048, read('rope.scaling.original_context_length', 8192)):
        for low, high in ((1.0, 4.0),):
            settings = dict(factor=factor, low=low, high=high, length=length)
            if np.allclose(llama3_divisors(theta, head_dim, **settings), divisors, rtol=1e-4):
                return dict(scaling='llama3', factor=factor, low_freq_factor=low,
                            high_freq_factor=high, original_length=length)
    raise InputError('rope_freqs.weight holds frequencies that are not those of Llama 3 for any '
                     'original length of 8192, 4096 or 2048; use the Hugging Face weights instead')


def llama3_divisors(theta, head_dim, *, factor, low, high, length):
    """By what each of the head_dim / 2 frequencies is divided."""
    freq = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = length * freq / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (keep + (1 - keep) / factor)).astype(np.float32)


def arch_of(family):
    """The GGUF architecture of a family."""
    return 'llama' if family == 'mistral' else family


def write_config(writer, model, family):
    """Adds the settings of a ModelConfig to a gguf.GGUFWriter."""
    att, arch = model.attention, arch_of(family)
    writer.add_context_length(model.max_seq_len)
    writer.add_embedding_length(model.d_model)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.d_ff)
    writer.add_head_count(att.num_heads)
    writer.add_head_count_kv(att.num_kv_heads)
    writer.add_vocab_size(model.vocab_size)
    if family == 'gpt2':
        writer.add_layer_norm_eps(model.norm_eps)
        return
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_key_length(att.head_dim)
    writer.add_value_length(att.head_dim)
    writer.add_rope_dimension_count(att.head_dim)
    writer.add_rope_freq_base(model.rope.theta)
    if 'local' in model.layer_pattern:
        writer.add_sliding_window(att.window)
    if arch in UNIT_OFFSET:
        writer.add_attention_scale(att.scale or att.head_dim ** -0.5)
        if att.softcap:
            writer.add_attn_logit_softcapping(att.softcap)
        if model.logit_softcap:
            writer.add_final_logit_softcapping(model.logit_softcap)
        if 'local' in model.layer_pattern:
            writer.add_uint32(f'{arch}.attention.sliding_window_pattern', _every(model))
        if family == 'gemma3':
            writer.add_float32(f'{arch}.rope.freq_base_swa', model.rope.local_theta)
    elif set(model.layer_pattern) == {'local', 'global'}:
        raise InputError(f'GGUF has no way to say which layers of a {family} model are local; '
                         'export it with --format=hf')
    if model.rope.scaling == 'linear':
        writer.add_rope_scaling_type(_linear())
        writer.add_rope_scaling_factor(model.rope.factor)


def _linear():
    import gguf
    return gguf.RopeScalingType.LINEAR


def _every(model):
    """After how many layers a global one comes, which is all that GGUF can say of a pattern."""
    kinds = [model.layer_pattern[i % len(model.layer_pattern)] for i in range(model.num_layers)]
    every = kinds.index('global') + 1 if 'global' in kinds else model.num_layers + 1
    if kinds != ['global' if (i + 1) % every == 0 else 'local' for i in range(model.num_layers)]:
        raise InputError(f'GGUF cannot hold the layer pattern {model.layer_pattern}; export the '
                         'model with --format=hf')
    return every
