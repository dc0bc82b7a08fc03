"""Every family against its Transformers model: the same tensors, the same logits."""

import jax
import numpy as np
import pytest
import safetensors.numpy

reference = pytest.importorskip('reference')

from jaxllm.models import transformer  # noqa: E402
from jaxllm.models.config import model_config  # noqa: E402
from jaxllm.models.convert import TreeWeights, export_gguf, export_hf, open_model  # noqa: E402
from jaxllm.sharding import make_mesh  # noqa: E402
from jaxllm.stages.base import params_like  # noqa: E402

FAMILIES = [name for name in reference.FAMILIES if not name.endswith('_default')]
GGUF_TOO = [name for name in FAMILIES if name not in ('qwen2_local', 'llama_biased')]


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])) as one:
        yield one


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """{family: (Transformers model, its folder)}, made once."""
    cache = {}

    def get(name):
        if name not in cache:
            model = reference.make(name)
            cache[name] = model, reference.save(model, tmp_path_factory.mktemp(name) / 'hf')
        return cache[name]
    return get


def load(path):
    found = open_model(path)
    cfg = model_config(found.model)
    return found, cfg, found.load(params_like(cfg, jax.sharding.get_mesh()))


def ours(params, cfg, tokens, segment_ids=None):
    apply = lambda p, x: transformer.apply(p, cfg, x, segment_ids_BL=segment_ids)
    return np.asarray(jax.jit(apply)(params, tokens))


def tokens_of(length, rows=2, seed=0):
    return np.random.default_rng(seed).integers(3, 280, (rows, length), dtype=np.int32)


@pytest.mark.parametrize('family', FAMILIES)
def test_logits(family, saved):
    """At lengths below, at and beyond the window, and with padding on the left."""
    theirs, folder = saved(family)
    _, cfg, params = load(folder)
    for length in (3, 5, 17):
        tokens = tokens_of(length)
        np.testing.assert_allclose(ours(params, cfg, tokens), reference.logits(theirs, tokens),
                                   atol=1e-4, rtol=1e-4)
    tokens, mask = tokens_of(13), np.ones((2, 13), np.int32)
    mask[0, :4] = 0
    got = ours(params, cfg, tokens, segment_ids=mask)
    want = reference.logits(theirs, tokens, mask)
    np.testing.assert_allclose(got[mask > 0], want[mask > 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('family', FAMILIES)
def test_there_and_back_is_bit_equal(family, saved, tmp_path):
    theirs, folder = saved(family)
    found, cfg, params = load(folder)
    want = safetensors.numpy.load_file(folder / 'model.safetensors')
    for name, weights in (('tree', TreeWeights(params)), ('file', found)):
        export_hf(tmp_path / name, cfg, weights, found.tokenizer(), None)
        got = safetensors.numpy.load_file(tmp_path / name / 'model.safetensors')
        assert got.keys() == want.keys()
        for key in want:
            np.testing.assert_array_equal(got[key], want[key], err_msg=key)
    again = type(theirs).from_pretrained(tmp_path / 'tree', attn_implementation='eager')
    tokens = tokens_of(11)
    np.testing.assert_array_equal(reference.logits(again, tokens), reference.logits(theirs, tokens))
    assert open_model(tmp_path / 'tree').model == found.model


@pytest.mark.parametrize('family', GGUF_TOO)
def test_gguf_there_and_back(family, saved, tmp_path):
    _, folder = saved(family)
    found, cfg, params = load(folder)
    export_gguf(tmp_path / 'm.gguf', cfg, found, found.tokenizer(), None, kind='f32')
    back, _, again = load(tmp_path / 'm.gguf')
    same = {key: value for key, value in back.model.items() if key not in ('layer_pattern',)}
    assert same == {key: value for key, value in found.model.items() if key != 'layer_pattern'}
    gemma = family.startswith('gemma')
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(again),
                            strict=True):
        if gemma and path[-1].key == 'scale':  # stored plus one
            np.testing.assert_allclose(x, y, atol=2e-7)
        else:
            np.testing.assert_array_equal(x, y, err_msg=str(path))
    assert back.tokenizer().encode('Hello 12 there') == found.tokenizer().encode('Hello 12 there')


@pytest.mark.parametrize('family', ['smollm2', 'llama2', 'mistral_global', 'qwen2', 'qwen3_default',
                                    'gemma2_default', 'gemma3_default', 'gpt2_default'])
def test_transformers_reads_our_gguf(family, saved, tmp_path):
    """By its own GGUF loader, as far as that reads settings (not Llama 3's frequencies)."""
    theirs, folder = saved(family)
    found, cfg, _ = load(folder)
    export_gguf(tmp_path / 'm.gguf', cfg, found, found.tokenizer(), None, kind='f32')
    again = reference.transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file='m.gguf', attn_implementation='eager', dtype='float32').eval()
    tokens = tokens_of(4)
    np.testing.assert_allclose(reference.logits(again, tokens), reference.logits(theirs, tokens),
                               atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('kind, error', [('f16', 2e-3), ('q8_0', 2e-2)])
def test_smaller_gguf(kind, error, saved, tmp_path):
    _, folder = saved('smollm2')
    found, cfg, params = load(folder)
    export_gguf(tmp_path / 'm.gguf', cfg, found, found.tokenizer(), None, kind=kind)
    _, _, again = load(tmp_path / 'm.gguf')
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert np.abs(np.asarray(x) - np.asarray(y)).max() <= error
    sizes = [(tmp_path / 'm.gguf').stat().st_size]
    assert sizes[0] < (folder / 'model.safetensors').stat().st_size


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_and_shards(dtype, tmp_path):
    model = reference.make('qwen3').to(getattr(reference.torch, dtype))
    folder = reference.save(model, tmp_path / 'hf', max_shard_size='20KB')
    assert len(list(folder.glob('*.safetensors'))) > 2
    found, cfg, params = load(folder)
    tokens = tokens_of(7)
    np.testing.assert_allclose(ours(params, cfg, tokens), reference.logits(model.float(), tokens),
                               atol=1e-4, rtol=1e-4)
    export_hf(tmp_path / 'again', cfg, found, found.tokenizer(), None, dtype=dtype)
    import torch
    from safetensors.torch import load_file
    got, want = load_file(tmp_path / 'again' / 'model.safetensors'), {}
    for file in folder.glob('*.safetensors'):
        want |= load_file(file)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
