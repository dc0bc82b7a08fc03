"""Hugging Face's config.json and our nested model settings, both ways."""

from jaxllm.errors import InputError

FAMILIES = {'llama': 'LlamaForCausalLM', 'mistral': 'MistralForCausalLM',
            'qwen2': 'Qwen2ForCausalLM', 'qwen3': 'Qwen3ForCausalLM',
            'gemma2': 'Gemma2ForCausalLM', 'gemma3_text': 'Gemma3ForCausalLM',
            'gpt2': 'GPT2LMHeadModel'}
_ACTIVATIONS = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'gelu', 'gelu': None}
_KINDS = {'sliding_attention': 'local', 'full_attention': 'global'}


def family_of(config):
    """Our name of a family: that of Hugging Face, but 'gemma3' for its text model."""
    kind = config['model_type'] if 'model_type' in config else ''
    if kind == 'gemma3' and 'text_config' in config:
        kind = 'gemma3_text'
    if kind not in FAMILIES:
        raise InputError(f'config.json: model_type={kind!r} is not supported; expected one of '
                         f'{", ".join(FAMILIES)}')
    return 'gemma3' if kind == 'gemma3_text' else kind


def model_of(config):
    """(family, nested settings for model_config) of the content of a config.json.

    Raises:
      InputError: an architecture or a setting that our decoder cannot compute exactly.
    """
    family = family_of(config)
    if family == 'gemma3' and 'text_config' in config:
        config = config['text_config']
    read = _Reader(config)
    return family, (_gpt2(read) if family == 'gpt2' else _llama_like(family, read))


class _Reader:
    """Settings of a config.json, with the defaults that Hugging Face has for them."""

    def __init__(self, config):
        self.config = config

    def __call__(self, name, *default):
        if name in self.config and self.config[name] is not None:
            return self.config[name]
        if not default:
            raise InputError(f'config.json has no {name!r}; bring back the one that the model was '
                             'saved with')
        return default[0]

    def expect(self, name, allowed, default):
        value = self(name, default)
        if value not in allowed:
            raise InputError(f'config.json: {name}={value!r} is not supported; expected one of '
                             f'{", ".join(map(repr, allowed))}')
        return value


def _settings(**changes):
    attention = dict(window=1, softcap=0.0, scale=0.0, qk_norm=False, qkv_bias=False,
                     out_bias=False, impl='auto', chunk_size=0) | changes.pop('attention')
    rope = dict(theta=10_000.0, local_theta=10_000.0, scaling='none', factor=1.0,
                low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192) | changes.pop(
                    'rope', {})
    return dict(mlp_bias=False, norm='rmsnorm', norm_eps=1e-6, norm_unit_offset=False,
                post_norm=False, positions='rope', tie_embeddings=False, embedding_scale=False,
                logit_softcap=0.0, layer_pattern=('global',), remat='none', dtype='float32',
                attention=attention, rope=rope) | changes


def _gpt2(read):
    read.expect('activation_function', ('gelu_new', 'gelu_pytorch_tanh'), 'gelu_new')
    for name, value in (('scale_attn_weights', True), ('scale_attn_by_inverse_layer_idx', False),
                        ('reorder_and_upcast_attn', False), ('add_cross_attention', False)):
        read.expect(name, (value,), value)
    d_model, heads = read('n_embd'), read('n_head')
    return _settings(
        vocab_size=read('vocab_size'), d_model=d_model, num_layers=read('n_layer'),
        d_ff=read('n_inner', 4 * d_model), max_seq_len=read('n_positions', 1024),
        activation='gelu', mlp_bias=True, norm='layernorm',
        norm_eps=read('layer_norm_epsilon', 1e-5), positions='learned',
        tie_embeddings=read('tie_word_embeddings', True),
        attention=dict(num_heads=heads, num_kv_heads=heads, head_dim=d_model // heads,
                       qkv_bias=True, out_bias=True))


def _llama_like(family, read):
    gemma = family in ('gemma2', 'gemma3')
    heads, d_model, layers = (read('num_attention_heads'), read('hidden_size'),
                              read('num_hidden_layers'))
    activation = read.expect('hidden_activation' if gemma else 'hidden_act',
                             ('gelu_pytorch_tanh',) if gemma else ('silu',),
                             'gelu_pytorch_tanh' if gemma else 'silu')
    biased = read('attention_bias', False) if family in ('llama', 'qwen3', 'gemma2', 'gemma3'
                                                         ) else family == 'qwen2'
    head_dim = read('head_dim', {'gemma2': 256, 'gemma3': 256, 'qwen3': 128}.get(
        family, d_model // heads))
    attention = dict(num_heads=heads, num_kv_heads=read('num_key_value_heads', heads),
                     head_dim=head_dim, qkv_bias=biased,
                     out_bias=biased and family != 'qwen2', qk_norm=family in ('qwen3', 'gemma3'),
                     window=read('sliding_window', 1) or 1)
    more = {}
    if gemma:
        attention['scale'] = float(read('query_pre_attn_scalar', 256)) ** -0.5
        attention['softcap'] = float(read('attn_logit_softcapping', 0.0)
                                     if family == 'gemma2' else 0.0)
        more = dict(norm_unit_offset=True, post_norm=True, embedding_scale=True,
                    logit_softcap=float(read('final_logit_softcapping', 0.0)))
        for name in ('use_bidirectional_attention',):
            read.expect(name, (False,), False)
    tied = read('tie_word_embeddings', gemma)
    return _settings(
        vocab_size=read('vocab_size'), d_model=d_model, num_layers=layers,
        d_ff=read('intermediate_size'), max_seq_len=read('max_position_embeddings', 8192),
        activation=_ACTIVATIONS[activation], mlp_bias=read('mlp_bias', False),
        norm_eps=read('rms_norm_eps', 1e-6), tie_embeddings=tied,
        layer_pattern=_pattern(family, read, layers), attention=attention,
        rope=_rope(family, read), **more)


def _pattern(family, read, layers):
    """The shortest sequence of layer kinds whose repetition gives all layers."""
    kinds = read('layer_types', ())
    if kinds:
        unknown = set(kinds) - set(_KINDS)
        if unknown:
            raise InputError(f'config.json: layer_types has {sorted(unknown)}, which is not '
                             f'supported; expected {", ".join(_KINDS)}')
        kinds = [_KINDS[kind] for kind in kinds]
    elif family == 'gemma2':
        kinds = ['global' if i % 2 else 'local' for i in range(layers)]
    elif family == 'gemma3':
        every = read('sliding_window_pattern', 6)
        kinds = ['local' if (i + 1) % every else 'global' for i in range(layers)]
    elif family == 'mistral':
        kinds = ['local' if read('sliding_window', 0) else 'global'] * layers
    elif read('use_sliding_window', False) and family in ('qwen2', 'qwen3'):
        kinds = ['local' if i >= read('max_window_layers', 28) else 'global'
                 for i in range(layers)]
    else:
        kinds = ['global'] * layers
    for length in range(1, layers + 1):
        if all(kinds[i] == kinds[i % length] for i in range(layers)):
            return tuple(kinds[:length])
    raise InputError(f'config.json: layer_types has {len(kinds)} entries for {layers} layers')


def _rope(family, read):
    """Rotary settings: of today's rope_parameters, or of rope_theta and rope_scaling."""
    parameters, scaling = read('rope_parameters', None), read('rope_scaling', None) or {}
    theta = read('rope_theta', 1_000_000.0 if family == 'gemma3' else 10_000.0)
    local = read('rope_local_base_freq', 10_000.0)
    if parameters:
        if 'full_attention' in parameters:
            local = parameters['sliding_attention'].get('rope_theta', local)
            parameters = parameters['full_attention']
        theta, scaling = parameters.get('rope_theta', theta), parameters
    if family != 'gemma3':
        local = theta
    kind = scaling.get('rope_type', scaling.get('type', 'default')) or 'default'
    if kind == 'default':
        return dict(theta=float(theta), local_theta=float(local))
    if kind not in ('linear', 'llama3'):
        raise InputError(f'config.json: rope scaling of type {kind!r} is not supported; expected '
                         'default, linear or llama3')
    found = dict(theta=float(theta), local_theta=float(local), scaling=kind,
                 factor=float(scaling['factor']))
    if kind == 'llama3':
        found |= dict(low_freq_factor=float(scaling['low_freq_factor']),
                      high_freq_factor=float(scaling['high_freq_factor']),
                      original_length=int(scaling['original_max_position_embeddings']))
    return found


def guess_family(model):
    """The family whose code computes what a ModelConfig does.

    Raises:
      InputError: no family of Hugging Face does.
    """
    att = model.attention
    gemma = model.norm_unit_offset and model.post_norm and model.embedding_scale
    local = 'local' in model.layer_pattern
    if model.positions == 'learned' and model.norm == 'layernorm' and model.activation == 'gelu':
        if att.qkv_bias and att.out_bias and model.mlp_bias and att.num_heads == att.num_kv_heads:
            return 'gpt2'
    if model.positions == 'rope' and model.norm == 'rmsnorm':
        if gemma and model.activation == 'geglu':
            return 'gemma3' if att.qk_norm and not att.softcap else 'gemma2'
        if model.activation == 'swiglu' and not model.post_norm and not model.logit_softcap:
            if att.qk_norm:
                return 'qwen3'
            if att.qkv_bias and not att.out_bias:
                return 'qwen2'
            return 'mistral' if local else 'llama'
    raise InputError('no Hugging Face family computes this model (its norms, activation, positions '
                     'and biases together); export one of the families of models/families.py')


def config_of(model, family):
    """The content of a config.json of a ModelConfig."""
    att = model.attention
    name = 'gemma3_text' if family == 'gemma3' else family
    common = {'architectures': [FAMILIES[name]], 'model_type': name,
              'vocab_size': model.vocab_size, 'tie_word_embeddings': model.tie_embeddings}
    if family == 'gpt2':
        return common | {
            'n_embd': model.d_model, 'n_layer': model.num_layers, 'n_head': att.num_heads,
            'n_inner': model.d_ff, 'n_positions': model.max_seq_len,
            'n_ctx': model.max_seq_len, 'activation_function': 'gelu_new',
            'layer_norm_epsilon': model.norm_eps, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0,
            'resid_pdrop': 0.0}
    kinds = [model.layer_pattern[i % len(model.layer_pattern)] for i in range(model.num_layers)]
    local = 'local' in kinds
    config = common | {
        'hidden_size': model.d_model, 'num_hidden_layers': model.num_layers,
        'intermediate_size': model.d_ff, 'num_attention_heads': att.num_heads,
        'num_key_value_heads': att.num_kv_heads, 'head_dim': att.head_dim,
        'max_position_embeddings': model.max_seq_len, 'rms_norm_eps': model.norm_eps,
        'attention_bias': att.qkv_bias and att.out_bias, 'mlp_bias': model.mlp_bias,
        'attention_dropout': 0.0, 'sliding_window': att.window if local else None,
        'rope_theta': model.rope.theta, 'rope_scaling': _rope_scaling(model.rope)}
    theirs = {'local': 'sliding_attention', 'global': 'full_attention'}
    if family in ('gemma2', 'gemma3'):
        config |= {'hidden_activation': 'gelu_pytorch_tanh',
                   'query_pre_attn_scalar': (att.scale or att.head_dim ** -0.5) ** -2,
                   'final_logit_softcapping': model.logit_softcap or None,
                   'attn_logit_softcapping': att.softcap or None,
                   'sliding_window': att.window,
                   'layer_types': [theirs[kind] for kind in kinds]}
        scalar = round(config['query_pre_attn_scalar'])
        if abs(scalar - config['query_pre_attn_scalar']) < 1e-6 * scalar:
            config['query_pre_attn_scalar'] = scalar
        if family == 'gemma3':
            config['rope_local_base_freq'] = model.rope.local_theta
        return config
    config['hidden_act'] = 'silu'
    if family in ('qwen2', 'qwen3'):
        config |= {'use_sliding_window': local, 'layer_types': [theirs[kind] for kind in kinds]}
    return config


def _rope_scaling(rope):
    if rope.scaling == 'none':
        return None
    if rope.scaling == 'linear':
        return {'rope_type': 'linear', 'factor': rope.factor}
    return {'rope_type': 'llama3', 'factor': rope.factor,
            'low_freq_factor': rope.low_freq_factor, 'high_freq_factor': rope.high_freq_factor,
            'original_max_position_embeddings': rope.original_length}
