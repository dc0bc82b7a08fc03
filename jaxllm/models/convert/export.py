"""Writes a model as a Hugging Face folder or a GGUF file, one tensor at a time.

Weights are anything with get(path, layer) and shape(path, layer): a Foreign, so that files become
other files without the model ever being in memory, or TreeWeights of a parameter tree.
"""

import json
import os
import pathlib
import shutil

import gguf
import ml_dtypes
import numpy as np

from jaxllm.config import write_atomic
from jaxllm.data import chat, gguf_tokenizer
from jaxllm.errors import InputError
from jaxllm.models.convert import gguf_config, hf_config, names
from jaxllm.models.convert.foreign import permuted
from jaxllm.models.convert.weights import num_inputs_of, their_shape, to_theirs

_DTYPES = {'float32': ('F32', np.dtype(np.float32)), 'float16': ('F16', np.dtype(np.float16)),
           'bfloat16': ('BF16', np.dtype(ml_dtypes.bfloat16))}
_KINDS = {'f32': gguf.GGMLQuantizationType.F32, 'f16': gguf.GGMLQuantizationType.F16,
          'q8_0': gguf.GGMLQuantizationType.Q8_0}


def export_hf(folder, model, weights, tokenizer, template, *, dtype='float32', family='',
              stop_ids=()):
    """Writes config.json, model.safetensors, the tokenizer and the template.

    Args:
      folder: made if it is new; must not hold a model yet.
      model: ModelConfig. weights: see the module's text.
      template: ChatTemplate or None. stop_ids: what ends an answer, for generation_config.json.
      dtype: 'float32', 'float16' or 'bfloat16'.
      family: '' chooses the one that computes what the model does.

    Raises:
      InputError: no family does, an unknown dtype, or there is something at `folder`.
    """
    if dtype not in _DTYPES:
        raise InputError(f'dtype={dtype!r} is unknown; use one of {", ".join(_DTYPES)}')
    family = family or hf_config.guess_family(model)
    folder = pathlib.Path(folder)
    with _building(folder) as building:
        config = hf_config.config_of(model, family) | {
            'dtype': dtype, 'torch_dtype': dtype, 'bos_token_id': tokenizer.bos_id,
            'eos_token_id': tokenizer.eos_id, 'pad_token_id': tokenizer.pad_id}
        write_atomic(building / 'config.json', json.dumps(config, indent=1) + '\n')
        _write_tokenizer(building, tokenizer, template, stop_ids)
        _write_safetensors(building / 'model.safetensors', names.hf_entries(model, family), weights,
                           *_DTYPES[dtype])


class _building:
    """A hidden folder beside the wanted one, which it becomes when all is written."""

    def __init__(self, folder):
        self.folder = folder
        self.partial = folder.with_name(f'.{folder.name}.building')

    def __enter__(self):
        if self.folder.exists():
            raise InputError(f'{self.folder} exists already; give a new --out')
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind, *_):
        if kind is None:
            os.rename(self.partial, self.folder)
        else:
            shutil.rmtree(self.partial, ignore_errors=True)


def _write_tokenizer(folder, tokenizer, template, stop_ids):
    write_atomic(folder / 'tokenizer.json',
                 json.dumps(tokenizer.spec, ensure_ascii=False, indent=1) + '\n')
    settings = {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': tokenizer.bos,
                'eos_token': tokenizer.eos, 'pad_token': tokenizer.pad,
                'clean_up_tokenization_spaces': False}
    if template:
        source = chat.plain_source(template)
        settings['chat_template'] = source
        write_atomic(folder / 'chat_template.jinja', source)
    write_atomic(folder / 'tokenizer_config.json', json.dumps(settings, indent=1) + '\n')
    ends = list(dict.fromkeys([*stop_ids, tokenizer.eos_id]))
    write_atomic(folder / 'generation_config.json', json.dumps({
        'bos_token_id': tokenizer.bos_id, 'pad_token_id': tokenizer.pad_id,
        'eos_token_id': ends if len(ends) > 1 else ends[0]}, indent=1) + '\n')


def _write_safetensors(path, entries, weights, kind, dtype):
    """The format is a JSON header and raw tensors behind it; the library wants all of them at once,
    so that they are written here."""
    header, at = {'__metadata__': {'format': 'pt'}}, 0
    for entry in entries:
        shape = _their_shape(entry, weights)
        size = int(np.prod(shape)) * dtype.itemsize
        header[entry.name] = {'dtype': kind, 'shape': list(shape), 'data_offsets': [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for entry in entries:
            file.write(np.ascontiguousarray(_their_tensor(entry, weights).astype(dtype)).tobytes())
        file.flush()
        os.fsync(file.fileno())


def _their_shape(entry, weights):
    shapes = [weights.shape(leaf, entry.layer) for leaf in entry.leaves]
    return their_shape(shapes, entry, num_inputs_of(entry))


def _their_tensor(entry, weights):
    return to_theirs([weights.get(leaf, entry.layer) for leaf in entry.leaves], entry,
                     num_inputs_of(entry))


def export_gguf(path, model, weights, tokenizer, template, *, kind='f16', family='', name=''):
    """Writes a GGUF file. Norms and biases stay float32; arguments as `export_hf`.

    Args:
      path: FILE.gguf, new. kind: of the matrices: 'f32', 'f16' or 'q8_0' (which leaves a matrix
        float16 whose rows do not divide into blocks of 32).

    Raises:
      InputError: GGUF has no architecture for the model, or there is a file already.
    """
    if kind not in _KINDS:
        raise InputError(f'kind={kind!r} is unknown; use one of {", ".join(_KINDS)}')
    path = pathlib.Path(path)
    if path.exists():
        raise InputError(f'{path} exists already; give a new --out')
    family = family or hf_config.guess_family(model)
    arch, partial = gguf_config.arch_of(family), path.with_name(f'.{path.name}.partial')
    entries = names.gguf_entries(model, family)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(partial), arch)
    try:
        writer.add_name(name or path.stem)
        gguf_config.write_config(writer, model, family)
        gguf_tokenizer.write_fields(writer, tokenizer, model.vocab_size)
        if template:
            writer.add_chat_template(chat.plain_source(template))
        kinds = [_kind_of(_their_shape(entry, weights), kind) for entry in entries]
        for entry, stored in zip(entries, kinds, strict=True):
            _announce(writer, entry.name, _their_shape(entry, weights), stored)
        divisors = _rope_divisors(model)
        if divisors is not None:
            _announce(writer, 'rope_freqs.weight', divisors.shape, _KINDS['f32'])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry, stored in zip(entries, kinds, strict=True):
            tensor = _to_gguf(_their_tensor(entry, weights), entry, model, arch)
            writer.write_tensor_data(gguf.quants.quantize(tensor, stored))
        if divisors is not None:
            writer.write_tensor_data(divisors)
        writer.close()
        os.rename(partial, path)
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise


def _kind_of(shape, kind):
    if len(shape) == 1:
        return _KINDS['f32']
    return _KINDS['f16'] if kind == 'q8_0' and shape[-1] % 32 else _KINDS[kind]


def _announce(writer, name, shape, kind):
    sizes = {'F32': 4, 'F16': 2}
    count = int(np.prod(shape))
    if kind.name in sizes:
        dtype = np.float32 if kind.name == 'F32' else np.float16
        writer.add_tensor_info(name, shape, np.dtype(dtype), count * sizes[kind.name])
        return
    stored = gguf.quant_shape_to_byte_shape(shape, kind)
    writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=kind)


def _to_gguf(tensor, entry, model, arch):
    part = entry.leaves[0][-2]
    if arch in gguf_config.PERMUTED and part in ('q', 'k'):
        heads = model.attention.num_heads if part == 'q' else model.attention.num_kv_heads
        return permuted(tensor, heads)
    if arch in gguf_config.UNIT_OFFSET and entry.leaves[0][-1] == 'scale':
        return tensor + 1
    return np.ascontiguousarray(tensor, np.float32)


def _rope_divisors(model):
    rope = model.rope
    if rope.scaling != 'llama3':
        return None
    return gguf_config.llama3_divisors(
        rope.theta, model.attention.head_dim, factor=rope.factor, low=rope.low_freq_factor,
        high=rope.high_freq_factor, length=rope.original_length)
