"""Adapters to and from Hugging Face PEFT: its logits are ours."""

import dataclasses
import json
import os
import warnings

import jax
import numpy as np
import pytest
import toy_models

from jaxllm.errors import InputError
from jaxllm.models import lora, peft as ours, transformer
from jaxllm.models.peft_layout import GPT2, LLAMA, modules_of

os.environ['HF_HUB_OFFLINE'] = '1'
with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # other people's deprecations
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    peft = pytest.importorskip('peft')

pytestmark = [pytest.mark.usefixtures('mesh'), pytest.mark.filterwarnings('ignore')]
CONFIG = lora.LoraConfig(rank=3, alpha=7., targets=('*',), rslora=False, dora=False,
                         train_embeddings=False, base='float32')


def _llama(**changes):
    """(our config, our parameters, Transformers' model with the same weights)."""
    cfg = toy_models.config('llama', **changes)
    params = toy_models.params(cfg)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=41, hidden_size=16, intermediate_size=20, num_hidden_layers=cfg.num_layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=6, max_position_embeddings=32,
        rms_norm_eps=1e-5, tie_word_embeddings=cfg.tie_embeddings, attn_implementation='eager'))
    weights = {'model.embed_tokens.weight': params['embed']['tokens'],
               'model.norm.weight': params['final_norm']['scale']}
    if not cfg.tie_embeddings:
        weights['lm_head.weight'] = params['head']['kernel']
    for n in range(cfg.num_layers):
        layer = jax.tree.map(lambda x, n=n: x[n], params['layers']['layer_0'])
        at, pre = layer['attention'], f'model.layers.{n}.'
        for name in 'qkv':
            weights[f'{pre}self_attn.{name}_proj.weight'] = at[name]['kernel'].reshape(16, -1).T
        weights[f'{pre}self_attn.o_proj.weight'] = at['o']['kernel'].reshape(-1, 16).T
        for name in ('gate', 'up', 'down'):
            weights[f'{pre}mlp.{name}_proj.weight'] = layer['mlp'][name]['kernel'].T
        weights[f'{pre}input_layernorm.weight'] = layer['attention_norm']['scale']
        weights[f'{pre}post_attention_layernorm.weight'] = layer['mlp_norm']['scale']
    return cfg, params, _loaded(model, weights)


def _gpt2():
    cfg = toy_models.config('gpt2', attention__head_dim=4, attention__num_kv_heads=4)
    params = toy_models.params(cfg)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=41, n_embd=16, n_inner=20, n_layer=3, n_head=4, n_positions=32,
        attn_implementation='eager'))
    weights = {'transformer.wte.weight': params['embed']['tokens'],
               'transformer.wpe.weight': params['embed']['positions']}
    norm = lambda name, w: weights.update({f'{name}.weight': w['scale'], f'{name}.bias': w['bias']})
    norm('transformer.ln_f', params['final_norm'])
    for n in range(3):
        layer = jax.tree.map(lambda x, n=n: x[n], params['layers']['layer_0'])
        at, pre = layer['attention'], f'transformer.h.{n}.'
        norm(f'{pre}ln_1', layer['attention_norm'])
        norm(f'{pre}ln_2', layer['mlp_norm'])
        linear = {'attn.c_proj': at['o'], 'mlp.c_fc': layer['mlp']['up'],
                  'mlp.c_proj': layer['mlp']['down']}
        for name, w in linear.items():
            bias = w['bias'].reshape(-1)
            weights |= {f'{pre}{name}.weight': w['kernel'].reshape(-1, bias.size),
                        f'{pre}{name}.bias': bias}
        weights[f'{pre}attn.c_attn.weight'] = np.concatenate(
            [at[x]['kernel'].reshape(16, 16) for x in 'qkv'], axis=1)
        weights[f'{pre}attn.c_attn.bias'] = np.concatenate(
            [at[x]['bias'].reshape(16) for x in 'qkv'])
    return cfg, params, _loaded(model, weights)


def _loaded(model, weights):
    weights = {name: torch.tensor(np.ascontiguousarray(x)) for name, x in weights.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {'lm_head.weight'}
    return model.eval()


_BASES = {'llama': _llama, 'untied': lambda: _llama(tie_embeddings=False), 'gpt2': _gpt2}


def _random(cfg, config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda p: lora.init_adapter(jax.random.key(0), p, config),
                            toy_models.shapes(cfg))

    def fill(path, x):
        noise = rng.normal(size=x.shape).astype(np.float32)
        return 1 + np.abs(noise) / 4 if path[-1].key == 'magnitude' else noise / 4
    return jax.tree_util.tree_map_with_path(fill, shapes)


def _logits(cfg, params, adapter, config):
    tokens_BL = toy_models.tokens(cfg, 2, 7)
    return np.asarray(jax.jit(lambda p: transformer.apply(p, cfg, tokens_BL))(
        lora.combine(params, adapter, config)))


def _torch_logits(model, cfg):
    with torch.no_grad():
        return model(torch.tensor(toy_models.tokens(cfg, 2, 7), dtype=torch.long)).logits.numpy()


def _equal_trees(a, b):
    flat = lambda tree: {jax.tree_util.keystr(path): np.asarray(x) for path, x
                         in jax.tree_util.tree_leaves_with_path(tree)}
    a, b = flat(a), flat(b)
    assert set(a) == set(b)
    for path, x in a.items():
        np.testing.assert_allclose(x, b[path], rtol=1e-6, atol=1e-6, err_msg=path)


@pytest.mark.parametrize('base,changes', [
    ('llama', {}),
    ('llama', dict(rslora=True, targets=('attention/[qo]', 'mlp/down'), train_embeddings=True)),
    ('untied', dict(dora=True, train_embeddings=True)),
    ('gpt2', {}),
    ('gpt2', dict(rslora=True, targets=('attention/[qv]', 'mlp/up'), train_embeddings=True)),
    ('gpt2', dict(dora=True)),
])
def test_peft_computes_what_we_do(tmp_path, base, changes):
    cfg, params, model = _BASES[base]()
    config = dataclasses.replace(CONFIG, **changes)
    adapter, modules = _random(cfg, config), modules_of(base)
    want = _logits(cfg, params, adapter, config)
    before = _torch_logits(model, cfg)
    assert np.abs(want - before).max() > 0.1
    ours.export_peft(tmp_path, adapter, cfg, config, 'some/base', modules)
    theirs = peft.PeftModel.from_pretrained(model, tmp_path)
    np.testing.assert_allclose(_torch_logits(theirs, cfg), want, atol=2e-5)

    # And back, to the leaf.
    found, back = ours.load_peft(tmp_path, cfg, modules)
    _equal_trees(back, adapter)
    names = sorted({'/'.join(path[-2:]) for path, _ in lora.linears(params)})
    assert dataclasses.replace(found, targets=config.targets) == config
    assert sorted(found.targets) == [
        name for name in names if name in {'/'.join(path[-2:]) for path in
                                           lora.target_paths(toy_models.shapes(cfg), config)}]


@pytest.mark.parametrize('base,settings', [
    ('llama', dict(target_modules=['q_proj', 'down_proj'], use_rslora=True,
                   rank_pattern={'down_proj': 2}, alpha_pattern={'down_proj': 5})),
    ('llama', dict(target_modules='all-linear', use_dora=True)),
    ('untied', dict(target_modules=['v_proj'], modules_to_save=['embed_tokens', 'lm_head'])),
    ('gpt2', dict(target_modules=['c_attn', 'c_fc'], use_dora=True)),
])
def test_we_compute_what_peft_has_saved(tmp_path, base, settings):
    cfg, params, model = _BASES[base]()
    torch.manual_seed(0)
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=7, **settings)).eval()
    with torch.no_grad():
        for x in theirs.parameters():
            if x.requires_grad:
                x += 0.2 * torch.rand_like(x)
    want = _torch_logits(theirs, cfg)
    theirs.save_pretrained(tmp_path)
    config, adapter = ours.load_peft(tmp_path, cfg, modules_of(base), base='int8')
    assert config.base == 'int8' and config.rank == 3 and config.alpha == 7
    assert config.train_embeddings == (base == 'untied')
    np.testing.assert_allclose(_logits(cfg, params, adapter, config), want, atol=5e-5)
    # What has ranks of its own, too, can be written again.
    ours.export_peft(tmp_path / 'again', adapter, cfg, config, 'some/base', modules_of(base))
    _equal_trees(ours.load_peft(tmp_path / 'again', cfg, modules_of(base))[1], adapter)


def test_layers_of_a_pattern_and_its_tail_come_in_order(tmp_path):
    """Two groups of (local, global) and a tail: layer n has the values n."""
    cfg = toy_models.config('gemma2', num_layers=5)
    config = dataclasses.replace(CONFIG, targets=('attention/q',))
    adapter = jax.tree.map(np.zeros_like, _random(cfg, config))
    for n in range(5):
        group, i = ('tail', n - 4) if n == 4 else ('layers', n % 2)
        a = adapter[group][f'layer_{i}']['attention']['q']['lora_a']
        (a if n == 4 else a[n // 2])[:] = n
    ours.export_peft(tmp_path, adapter, cfg, config, 'some/base', LLAMA)
    from safetensors.numpy import load_file
    tensors = load_file(tmp_path / ours.WEIGHTS)
    for n in range(5):
        name = f'base_model.model.model.layers.{n}.self_attn.q_proj.lora_A.weight'
        np.testing.assert_array_equal(tensors[name], np.full((3, 16), n))
    assert len(tensors) == 10
    _equal_trees(ours.load_peft(tmp_path, cfg, LLAMA)[1], adapter)


def test_a_part_of_a_fused_dora_is_refused(tmp_path):
    cfg = toy_models.config('gpt2')
    config = dataclasses.replace(CONFIG, dora=True, targets=('attention/q',))
    with pytest.raises(InputError, match='DoRA of a part of attn.c_attn'):
        ours.export_peft(tmp_path / 'out', _random(cfg, config), cfg, config, 'some/base', GPT2)
    assert not (tmp_path / 'out').exists()


# Bad input.

@pytest.fixture
def saved(tmp_path):
    cfg = toy_models.config('llama')
    config = dataclasses.replace(CONFIG, targets=('attention/q', 'mlp/up'))
    ours.export_peft(tmp_path, _random(cfg, config), cfg, config, 'some/base', LLAMA)
    return tmp_path, cfg


@pytest.mark.parametrize('name,value', [
    ('bias', 'all'), ('layers_to_transform', [1]), ('peft_type', 'IA3'), ('r', 0),
    ('init_lora_weights', 'pissa'), ('trainable_token_indices', [3]), ('lora_alpha', 'much')])
def test_settings_that_we_have_not_are_errors(saved, name, value):
    folder, cfg = saved
    config = json.loads((folder / ours.CONFIG).read_text())
    (folder / ours.CONFIG).write_text(json.dumps(config | {name: value}))
    with pytest.raises(InputError, match=f'{name}={value!r}'.replace('[', r'\[')):
        ours.load_peft(folder, cfg, LLAMA)


def test_an_adapter_for_another_base_is_an_error(saved):
    folder, cfg = saved
    for changes, message in (
            (dict(d_ff=24), 'mlp.up_proj is for a matrix of 16 x 20, .* 16 x 24'),
            (dict(num_layers=2), '4 tensors have no place.*layers.2.*another base'),
            (dict(num_layers=4), 'not the same adapter in all 4 layers')):
        with pytest.raises(InputError, match=message):
            ours.load_peft(folder, toy_models.config('llama', **changes), LLAMA)
    with pytest.raises(InputError, match='another family'):
        ours.load_peft(folder, toy_models.config('gpt2'), GPT2)


def test_files_that_are_none_are_errors(saved):
    folder, cfg = saved
    weights, config = folder / ours.WEIGHTS, folder / ours.CONFIG
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(InputError, match='adapter_model.safetensors is broken'):
        ours.load_peft(folder, cfg, LLAMA)
    weights.rename(folder / 'adapter_model.bin')
    with pytest.raises(InputError, match='pickled .bin files are never loaded'):
        ours.load_peft(folder, cfg, LLAMA)
    config.write_text('{')
    with pytest.raises(InputError, match='no configuration of an adapter'):
        ours.load_peft(folder, cfg, LLAMA)
    config.unlink()
    with pytest.raises(InputError, match='has no adapter_config.json'):
        ours.load_peft(folder, cfg, LLAMA)


def test_tables_that_differ_do_not_fit_a_tied_model(tmp_path):
    cfg, _, model = _llama()
    theirs = peft.get_peft_model(model, peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=['q_proj'], modules_to_save=['embed_tokens']))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputError, match='one table for both'):
        ours.load_peft(tmp_path, cfg, LLAMA)
