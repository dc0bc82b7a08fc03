"""Damaged and foreign files are refused in a line; files become files."""

import json
import pathlib
import shutil
import subprocess
import sys

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy
import toy_models

from jaxllm.data import chat, tokenizer
from jaxllm.errors import InputError
from jaxllm.models.convert import TreeWeights, export_gguf, export_hf, foreign, open_model
from jaxllm.models.convert.files import GgufFile
from jaxllm.sharding import make_mesh

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def mesh():
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])) as one:
        yield one


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """(folder with safetensors, GGUF file) of one tiny model with 300 tokens."""
    folder = tmp_path_factory.mktemp('models')
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        cfg = toy_models.config('llama', vocab_size=300)
        weights = TreeWeights(toy_models.params(cfg))
    tok, template = tokenizer.byte_tokenizer(), chat.load_template('smollm2')
    export_hf(folder / 'hf', cfg, weights, tok, template, stop_ids=(7,))
    export_gguf(folder / 'm.gguf', cfg, weights, tok, template, kind='f32')
    return folder


@pytest.fixture
def copy(models, tmp_path):
    shutil.copytree(models, tmp_path / 'copy')
    return tmp_path / 'copy'


def refused(path, *parts):
    with pytest.raises(InputError) as error:
        open_model(path).tokenizer()
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_tokenizer_and_template_come_along(models):
    for path in (models / 'hf', models / 'm.gguf'):
        found = open_model(path)
        tok = found.tokenizer()
        assert tok.encode('Grüße <|im_end|>') == tokenizer.byte_tokenizer().encode(
            'Grüße <|im_end|>')
        assert (tok.bos, tok.eos, tok.pad) == ('<|bos|>', '<|eos|>', '<|pad|>')
        template = chat.ChatTemplate('x', found.chat_template, derived=True)
        talk = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
        assert chat.text(template, talk, tok) == chat.text(chat.load_template('smollm2'), talk, tok)
    ends = json.loads((models / 'hf' / 'generation_config.json').read_text())['eos_token_id']
    assert ends == [7, 2]


@pytest.mark.parametrize('size', [100, 3000, 0.98])
def test_truncated_gguf(size, copy):
    raw = (copy / 'm.gguf').read_bytes()
    (copy / 'm.gguf').write_bytes(raw[:size if size > 1 else int(size * len(raw))])
    refused(copy / 'm.gguf', 'm.gguf', 'truncated')


def test_truncated_safetensors(copy):
    file = copy / 'hf' / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-40])
    refused(copy / 'hf', 'model.safetensors', 'truncated or damaged')


def _change(folder, change):
    file = folder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)


def test_a_missing_and_a_wrong_and_an_extra_tensor(copy):
    name = 'model.layers.1.mlp.up_proj.weight'
    _change(copy / 'hf', lambda t: t.update({'extra.thing': np.zeros((3, 4), np.float32)}))
    refused(copy / 'hf', 'would not use', 'extra.thing (3, 4)')
    _change(copy / 'hf', lambda t: (t.pop('extra.thing'), t.update(
        {name: np.zeros((21, 16), np.float32)})))
    refused(copy / 'hf', name, '(21, 16)', 'expected (20, 16)')
    _change(copy / 'hf', lambda t: t.pop(name))
    refused(copy / 'hf', f'no tensor {name}', '(20, 16)')


def test_a_missing_shard(copy):
    index = {'weight_map': {'a': 'model-1.safetensors', 'b': 'model-2.safetensors'}}
    (copy / 'hf' / 'model.safetensors.index.json').write_text(json.dumps(index))
    refused(copy / 'hf', 'model-1.safetensors is missing')


def test_pickles_are_never_opened(copy):
    (copy / 'hf' / 'model.safetensors').rename(copy / 'hf' / 'pytorch_model.bin')
    refused(copy / 'hf', 'pickled', 'save_pretrained')


@pytest.mark.parametrize('changes, parts', [
    ({'model_type': 'mixtral'}, ["model_type='mixtral'", 'llama']),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, ["'yarn' is not supported"]),
    ({'hidden_act': 'relu'}, ["hidden_act='relu'", "'silu'"]),
    ({'hidden_size': None}, ["no 'hidden_size'"]),
    ({'num_hidden_layers': 5}, ['no tensor', 'layers.3']),
    ({'layer_types': ['chunked_attention'] * 3}, ['chunked_attention']),
])
def test_settings_that_we_cannot_compute(changes, parts, copy):
    file = copy / 'hf' / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    refused(copy / 'hf', *parts)


def test_a_tokenizer_larger_than_the_model(copy):
    spec = json.loads((copy / 'hf' / 'tokenizer.json').read_text())
    spec['model']['vocab']['zzz'] = 305
    (copy / 'hf' / 'tokenizer.json').write_text(json.dumps(spec))
    refused(copy / 'hf', '306 tokens', '300 embeddings')


@pytest.mark.parametrize('name', ['nothing.gguf', 'notes.txt'])
def test_what_is_no_model(name, tmp_path):
    (tmp_path / name).write_text('hello, this is no model at all')
    refused(tmp_path / name, name)


def test_nothing_is_overwritten(models):
    cfg = toy_models.config('llama', vocab_size=300)
    weights, tok = TreeWeights(toy_models.params(cfg)), tokenizer.byte_tokenizer()
    with pytest.raises(InputError, match='exists already'):
        export_hf(models / 'hf', cfg, weights, tok, None)
    with pytest.raises(InputError, match='exists already'):
        export_gguf(models / 'm.gguf', cfg, weights, tok, None)


def _tensors(path, tensors):
    """A GGUF file of {name: (raw bytes [1, n], kind)}."""
    writer = gguf.GGUFWriter(str(path), 'llama')
    for name, (raw, kind) in tensors.items():
        writer.add_tensor(name, raw, raw_dtype=getattr(gguf.GGMLQuantizationType, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile(path)


def test_blocks_of_four_and_six_bits_by_hand(tmp_path):
    """Q4_K: d * scale * q - dmin * min; Q6_K: d * scale * (q - 32)."""
    q4 = np.zeros(144, np.uint8)
    q4[:4] = np.array([0.5, 0.25], np.float16).view(np.uint8)
    q4[4:8], q4[8:12] = 3, 2  # scales and minima of the first four groups of 32
    q4[16:] = 0x5A
    q6 = np.zeros(210, np.uint8)
    q6[:128], q6[128:192] = 0x21, 0b10  # low four bits, and high two of the first groups
    q6[192:208] = 3
    q6[208:] = np.array([0.5], np.float16).view(np.uint8)
    file = _tensors(tmp_path / 'm.gguf', {'q4': (q4[None], 'Q4_K'), 'q6': (q6[None], 'Q6_K')})
    np.testing.assert_array_equal(file.read('q4')[0, :64], [14.5] * 32 + [7.0] * 32)
    np.testing.assert_array_equal(file.read('q6')[0, [0, 31, 32, 64]], [1.5, 1.5, -46.5, -45.0])


@pytest.mark.parametrize('kind, error', [('BF16', 0.01), ('Q8_0', 0.02), ('Q4_0', 0.3),
                                         ('Q4_1', 0.25)])
def test_other_ways_of_storing(kind, error, tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    raw = gguf.quants.quantize(x, getattr(gguf.GGMLQuantizationType, kind))
    found = _tensors(tmp_path / 'm.gguf', {'x': (raw, kind)}).read('x')
    assert found.shape == (6, 64) and 0 < np.abs(found - x).max() < error


def test_a_way_of_storing_that_is_not_supported(tmp_path):
    with pytest.raises(InputError, match='tensor x is stored as Q2_K, which is not supported'):
        _tensors(tmp_path / 'm.gguf', {'x': (np.zeros((1, 84), np.uint8), 'Q2_K')})


def test_rotary_rows_by_hand():
    """Of one head of four rows, pairs (0, 1), (2, 3) interleaved are halves (0, 2), (1, 3)."""
    rows = np.arange(8.0).reshape(8, 1)
    np.testing.assert_array_equal(foreign.unpermuted(rows, 2)[:, 0], [0, 2, 1, 3, 4, 6, 5, 7])
    np.testing.assert_array_equal(foreign.permuted(foreign.unpermuted(rows, 2), 2), rows)


_STREAM = '''
import json, pathlib, resource, sys
import numpy as np
import jax
from jaxllm.models.config import model_config
from jaxllm.models.convert import export_gguf, export_hf, open_model
from jaxllm.sharding import make_mesh
path, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
found = open_model(path)
cfg, tok = model_config(found.model), found.tokenizer()
with jax.set_mesh(make_mesh()):
    found.check()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    export_hf(out / 'hf', cfg, found, tok, None)
    export_gguf(out / 'm.gguf', cfg, found, tok, None, kind='f16')
    files = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    from jaxllm.stages.base import params_like
    like = params_like(cfg, make_mesh())
    params = jax.block_until_ready(found.load(like))
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps([before * 1024, files * 1024, loaded * 1024, size]))
'''


def test_one_tensor_at_a_time(tmp_path):
    """Peak memory of a conversion of files, and of loading, on a sharded model of 235 MB."""
    cfg = toy_models.config('llama', vocab_size=16_000, d_model=256, num_layers=24, d_ff=2048,
                            attention__num_heads=8, attention__num_kv_heads=8,
                            attention__head_dim=32, tie_embeddings=False)

    class Made:
        """Weights that are made up when they are asked for."""
        shapes = foreign.leaf_shapes(cfg)

        def shape(self, path, layer):
            return self.shapes[path][layer is not None:]

        def get(self, path, layer):
            return np.full(self.shape(path, layer), 0.25, np.float32)
    export_hf(tmp_path / 'hf', cfg, Made(), tokenizer.byte_tokenizer(), None)
    _shard(tmp_path / 'hf', 40_000_000)
    done = subprocess.run([sys.executable, '-c', _STREAM, tmp_path / 'hf', tmp_path / 'out'],
                          text=True, capture_output=True, check=False, timeout=300, env={
                              'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'PATH': ''})
    assert done.returncode == 0, done.stderr
    before, files, loaded, size = json.loads(done.stdout)
    largest = 16_000 * 256 * 4
    assert size > 12 * largest
    assert files <= before + 3 * largest
    # A stacked leaf of ours is put together before it is placed: 24 layers of the MLP.
    stacked = 24 * 256 * 2048 * 4
    assert loaded <= before + size + max(3 * largest, 2 * stacked)


def _shard(folder, size):
    """Cuts model.safetensors into shards with an index, as save_pretrained would."""
    tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    shards, held = [{}], 0
    for name, tensor in tensors.items():
        if held + tensor.nbytes > size:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    index = {}
    for i, shard in enumerate(shards):
        safetensors.numpy.save_file(shard, folder / f'model-{i}.safetensors')
        index |= dict.fromkeys(shard, f'model-{i}.safetensors')
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
