"""Settings of the model families, as nested dicts that `model_config` takes: `llama('10m')`.

Every family is the same decoder with other switches. `base()` lists every leaf once; a family
changes what it must.
"""

from jaxllm.errors import InputError

# d_model, num_layers, d_ff, num_heads, num_kv_heads, head_dim. Named for a vocabulary of 8192, the
# thousands for one of 1024.
SIZES = {
    'tiny': (48, 2, 112, 4, 2, 12),
    '400k': (128, 2, 256, 4, 4, 32),
    '1m': (96, 4, 256, 3, 3, 32),
    '2m': (128, 4, 352, 4, 4, 32),
    '5m': (192, 6, 512, 3, 3, 64),
    '10m': (320, 6, 896, 5, 5, 64),
    '17m': (384, 8, 1024, 6, 6, 64),
    '125m': (768, 12, 2048, 12, 12, 64),
    '350m': (1024, 24, 2816, 16, 16, 64),
    '1b': (2048, 18, 5632, 16, 16, 128),
}


def base(size):
    """A Llama-like decoder of one of SIZES. With a vocabulary of 4096, '5m' has 3.4M parameters."""
    d_model, num_layers, d_ff, num_heads, num_kv_heads, head_dim = SIZES[size]
    return dict(
        vocab_size=8192, d_model=d_model, num_layers=num_layers, d_ff=d_ff, max_seq_len=2048,
        activation='swiglu', mlp_bias=False,
        norm='rmsnorm', norm_eps=1e-5, norm_unit_offset=False, post_norm=False,
        positions='rope', tie_embeddings=True, embedding_scale=False, logit_softcap=0.0,
        layer_pattern=('global',), remat='none', dtype='float32',
        attention=dict(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
                       window=256, softcap=0.0, scale=0.0, qk_norm=False, qkv_bias=False,
                       out_bias=False, impl='auto', chunk_size=0),
        rope=dict(theta=10_000.0, local_theta=10_000.0, scaling='none', factor=1.0,
                  low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192))


def _with(model, attention=(), rope=(), **changes):
    return model | changes | {'attention': model['attention'] | dict(attention),
                              'rope': model['rope'] | dict(rope)}


def llama(size='10m'):
    """Llama 2 and SmolLM."""
    return base(size)


def llama3(size='10m'):
    return _with(base(size), rope=dict(theta=500_000.0, scaling='llama3', factor=8.0))


def mistral(size='10m'):
    return _with(base(size), layer_pattern=('local',), tie_embeddings=False)


def gpt2(size='10m'):
    return _with(base(size), activation='gelu', mlp_bias=True, norm='layernorm',
                 positions='learned', attention=dict(qkv_bias=True, out_bias=True))


def qwen2(size='10m'):
    return _with(base(size), attention=dict(qkv_bias=True), rope=dict(theta=1_000_000.0))


def qwen3(size='10m'):
    return _with(base(size), attention=dict(qk_norm=True), rope=dict(theta=1_000_000.0))


_GEMMA = dict(activation='geglu', norm_unit_offset=True, norm_eps=1e-6, post_norm=True,
              embedding_scale=True)


def gemma2(size='10m'):
    return _with(base(size), **_GEMMA, logit_softcap=30.0, layer_pattern=('local', 'global'),
                 attention=dict(softcap=50.0))


def gemma3(size='10m'):
    return _with(base(size), **_GEMMA, layer_pattern=('local',) * 5 + ('global',),
                 attention=dict(qk_norm=True), rope=dict(theta=1_000_000.0))


def make(family, size):
    """The settings of a family and size by name. Raises InputError for an unknown one."""
    for name, value, known in (('family', family, FAMILIES), ('size', size, SIZES)):
        if value not in known:
            raise InputError(f'{name}={value!r} is unknown; use one of {", ".join(known)}')
    return FAMILIES[family](size)


FAMILIES = {f.__name__: f for f in (llama, llama3, mistral, gpt2, qwen2, qwen3, gemma2, gemma3)}
