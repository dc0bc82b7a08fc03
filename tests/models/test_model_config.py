"""Every setting of a model does something, and settings that make no sense are errors."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.models import families, transformer
from jaxllm.models.config import ModelConfig, model_config

pytestmark = pytest.mark.usefixtures('mesh')

# A model in which most settings act: windows, scaled and plain rotary positions, gates.
_BASE = {'layer_pattern': ('local', 'global'), 'attention__impl': 'chunked',
         'rope__scaling': 'llama3', 'rope__factor': 4., 'rope__original_length': 64,
         'rope__local_theta': 5000.}

# Leaf: (what must be set besides for it to act, another value).
_CHANGES = {
    'vocab_size': ({}, 43), 'd_model': ({}, 18), 'num_layers': ({}, 4), 'd_ff': ({}, 22),
    'max_seq_len': ({'positions': 'learned'}, 34), 'activation': ({}, 'geglu'),
    'mlp_bias': ({}, True), 'norm': ({}, 'layernorm'), 'norm_eps': ({}, 1e-4),
    'norm_unit_offset': ({}, True), 'post_norm': ({}, True), 'positions': ({}, 'none'),
    'tie_embeddings': ({}, False), 'embedding_scale': ({}, True), 'logit_softcap': ({}, 30.),
    'layer_pattern': ({}, ('global', 'local')), 'remat': ({}, 'full'), 'dtype': ({}, 'bfloat16'),
    'attention__num_heads': ({}, 2), 'attention__num_kv_heads': ({}, 4),
    'attention__head_dim': ({}, 8), 'attention__window': ({}, 6), 'attention__softcap': ({}, 50.),
    'attention__scale': ({}, 0.3), 'attention__qk_norm': ({}, True),
    'attention__qkv_bias': ({}, True), 'attention__out_bias': ({}, True),
    'attention__impl': ({}, 'xla'), 'attention__chunk_size': ({}, 4),
    'rope__theta': ({}, 900.), 'rope__local_theta': ({}, 900.), 'rope__scaling': ({}, 'linear'),
    'rope__factor': ({}, 3.), 'rope__low_freq_factor': ({}, 1.5),
    'rope__high_freq_factor': ({}, 3.), 'rope__original_length': ({}, 77),
}


def _fingerprint(cfg):
    """Parameter shapes, and the program of loss and gradient without its dead code: what a setting
    computes in vain is not in it."""
    shapes = toy_models.shapes(cfg)

    def loss(params):
        return jnp.sum(transformer.apply(params, cfg, jnp.zeros((2, 13), jnp.int32)))

    program = jax.jit(jax.grad(loss)).lower(shapes).as_text()
    return str(shapes), program


def _leaves(cls, prefix=''):
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield from _leaves(field.type, f'{field.name}__')
        else:
            yield prefix + field.name


def test_the_list_of_settings_is_complete():
    assert set(_CHANGES) == set(_leaves(ModelConfig))


@pytest.fixture(scope='module')
def base(mesh):
    del mesh
    return _fingerprint(toy_models.config('llama', **_BASE))


@pytest.mark.parametrize('leaf', _CHANGES)
def test_every_setting_changes_the_model(base, leaf):
    besides, value = _CHANGES[leaf]
    if besides:
        base = _fingerprint(toy_models.config('llama', **_BASE | besides))
    shapes, program = _fingerprint(toy_models.config('llama', **_BASE | besides | {leaf: value}))
    assert shapes != base[0] or program != base[1]


@pytest.mark.parametrize('leaf, value, message', [
    ('activation', 'silu', "model.activation='silu' is unknown; use one of gelu"),
    ('norm', 'l2', 'model.norm'), ('positions', 'alibi', 'model.positions'),
    ('remat', 'some', 'model.remat'), ('dtype', 'float16', 'model.dtype'),
    ('layer_pattern', ('wide',), 'model.layer_pattern'), ('layer_pattern', (), 'empty'),
    ('d_model', 0, 'model.d_model=0'), ('attention__impl', 'flash', 'model.attention.impl'),
    ('attention__window', 0, 'model.attention.window=0'),
    ('attention__num_kv_heads', 3, 'num_heads=4 is no multiple of num_kv_heads=3'),
    ('attention__head_dim', 5, 'head_dim=5 is odd'),
    ('rope__scaling', 'yarn', 'model.rope.scaling'),
    ('rope__factor', 0., 'model.rope.factor')])
def test_settings_that_make_no_sense_are_errors(leaf, value, message):
    with pytest.raises(InputError, match=message):
        toy_models.config('llama', **{leaf: value})


def test_keys_that_are_unknown_or_missing_are_errors():
    section = families.llama('tiny')
    with pytest.raises(InputError, match='d_modle'):
        model_config(section | {'d_modle': 3})
    with pytest.raises(InputError, match='theat'):
        model_config(section | {'rope': section['rope'] | {'theat': 3}})
    for missing in ('d_ff', 'rope', 'layer_pattern'):
        with pytest.raises(InputError, match=missing):
            model_config({name: x for name, x in section.items() if name != missing})


@pytest.mark.parametrize('num_layers, groups, tail', [(2, 1, ()), (5, 2, ('local',)),
                                                      (1, 0, ('local',))])
def test_layers_are_groups_and_a_tail(num_layers, groups, tail):
    cfg = toy_models.config('gemma2', num_layers=num_layers)
    assert (cfg.num_groups, cfg.tail) == (groups, tail)


def test_sizes_have_about_the_parameters_they_are_named_for():
    for size in set(families.SIZES) - {'tiny'}:
        want = float(size[:-1]) * {'k': 1e3, 'm': 1e6, 'b': 1e9}[size[-1]]
        # The thousands are for the small vocabulary of a synthetic world.
        vocab_size = 1024 if size.endswith('k') else 8192
        cfg = model_config(families.llama(size) | {'vocab_size': vocab_size})
        assert 0.6 < transformer.num_params(toy_models.shapes(cfg)) / want < 1.5, size
