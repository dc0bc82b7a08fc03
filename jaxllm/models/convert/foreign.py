"""A model file of others as something to load: its settings first, its tensors when asked for."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from jaxllm.data import gguf_tokenizer
from jaxllm.data import tokenizer as tokenizers
from jaxllm.errors import InputError
from jaxllm.models.config import model_config
from jaxllm.models.convert import gguf_config, hf_config, names
from jaxllm.models.convert.files import GgufFile, SafetensorsFolder
from jaxllm.models.convert.weights import (fill_tree, from_theirs, num_inputs_of,
                                           their_shape)


@dataclasses.dataclass(frozen=True)
class Foreign:
    """path: FILE.gguf or a folder. format: 'gguf' or 'hf'. family: of names.py. model: nested
    settings for model_config. chat_template: Jinja, '' for none. files: where tensors are read."""
    path: pathlib.Path
    format: str
    family: str
    model: dict
    chat_template: str
    files: Any

    @functools.cached_property
    def fingerprint(self):
        """sha256 of the content."""
        settings = json.dumps(self.model, sort_keys=True)
        return hashlib.sha256(f'{settings} {self.files.fingerprint()}'.encode()).hexdigest()

    def tokenizer(self):
        """The Tokenizer that came with it.

        Raises:
          InputError: there is none, or it has more tokens than the model.
        """
        if self.format == 'gguf':
            found = gguf_tokenizer.from_fields(self.files.fields, self.path)
        else:
            found = tokenizers.load(self.path)
        if found.vocab_size > self.model['vocab_size']:
            raise InputError(f'the tokenizer of {self.path} has {found.vocab_size} tokens and the '
                             f'model {self.model["vocab_size"]} embeddings, so that they do not '
                             'belong together; bring back the tokenizer that the model was saved '
                             'with')
        return found

    @functools.cached_property
    def _places(self):
        """{(path, layer): (Entry, which of its leaves)}."""
        return {(leaf, entry.layer): (entry, i) for entry in self.entries
                for i, leaf in enumerate(entry.leaves)}

    @functools.cached_property
    def entries(self):
        make = names.gguf_entries if self.format == 'gguf' else names.hf_entries
        return make(model_config(self.model), self.family)

    @functools.cached_property
    def _shapes(self):
        return leaf_shapes(model_config(self.model))

    def shape(self, path, layer):
        return self._shapes[path][layer is not None:]

    def get(self, path, layer):
        """The float32 tensor of one leaf of ours, of one layer where leaves are stacked."""
        entry, which = self._places[path, layer]
        shapes = [self.shape(leaf, layer) for leaf in entry.leaves]
        tensor = self.files.read(self._names[entry.name])
        if self.format == 'gguf':
            tensor = self._from_gguf(tensor, entry)
        return from_theirs(tensor, entry, shapes)[which]

    def _from_gguf(self, tensor, entry):
        part = entry.leaves[0][-2]
        if self.family in gguf_config.PERMUTED and part in ('q', 'k'):
            heads = self.model['attention']['num_heads' if part == 'q' else 'num_kv_heads']
            return unpermuted(tensor, heads)
        if self.family in gguf_config.UNIT_OFFSET and entry.leaves[0][-1] == 'scale':
            return tensor - 1
        return tensor

    @functools.cached_property
    def _names(self):
        """{name of an Entry: name in the files}, all there and of the right shape.

        Raises:
          InputError: a tensor is missing, has another shape, or is one that nobody would read.
        """
        found, left = {}, dict(self.files.tensors)
        for entry in self.entries:
            name = next((prefix + tail for prefix, tail in _spellings(entry.name)
                         if prefix + tail in left), None)
            shapes = [self.shape(leaf, entry.layer) for leaf in entry.leaves]
            inputs = num_inputs_of(entry)
            want = their_shape(shapes, entry, inputs)
            if name is None:
                raise InputError(f'{self.path} has no tensor {entry.name}, expected one of shape '
                                 f'{want}; the file is incomplete, or its settings are of another '
                                 'model')
            if left[name].shape != want:
                raise InputError(f'{self.path}: tensor {name} has shape {left[name].shape}, '
                                 f'expected {want} by the model\'s settings; they do not belong '
                                 'together')
            found[entry.name] = name
            del left[name]
        extra = [name for name in left if not _harmless(name, self.model)]
        if extra:
            raise InputError(f'{self.path} has tensors that this model would not use, such as '
                             f'{extra[0]} {left[extra[0]].shape}; it is another architecture than '
                             'its settings say')
        return found

    def check(self):
        """Raises InputError unless all tensors are there and fit."""
        return bool(self._names)

    def load(self, like):
        """The tree `like` (ShapeDtypeStructs with shardings), one tensor at a time."""
        self.check()
        return fill_tree(like, self.get)


def _spellings(name):
    """A tensor's name with the prefixes that wrappers add or leave out."""
    yield '', name
    for prefix in ('model.', 'transformer.'):
        if name.startswith(prefix):
            yield '', name.removeprefix(prefix)
    yield 'language_model.', name
    if name.startswith('model.'):
        yield 'model.language_model.', name.removeprefix('model.')


def _harmless(name, model):
    """Buffers, a tied head that is saved twice, and the towers of a multimodal model."""
    return (name.endswith(('.attn.bias', '.attn.masked_bias', 'rotary_emb.inv_freq'))
            or name == 'rope_freqs.weight'
            or name in ('lm_head.weight', 'output.weight') and model['tie_embeddings']
            or name.startswith(('vision_tower.', 'multi_modal_projector.', 'model.vision_tower.',
                                'model.multi_modal_projector.')))


def unpermuted(tensor, heads):
    """Rows of q or k from the order of interleaved rotary pairs to that of rotated halves."""
    shape = tensor.shape
    pairs = tensor.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(shape)


def permuted(tensor, heads):
    """The inverse of `unpermuted`."""
    shape = tensor.shape
    halves = tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)


def leaf_shapes(model):
    """{path: shape} of all parameters of a ModelConfig."""
    import jax

    from jaxllm.models import transformer
    from jaxllm.sharding import make_mesh
    mesh = jax.sharding.get_abstract_mesh()
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1]) if mesh.empty
                      else jax.sharding.get_mesh()):
        shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), model))
    return {tuple(entry.key for entry in path): x.shape
            for path, x in jax.tree_util.tree_leaves_with_path(shapes)}


def open_model(path):
    """The Foreign at a path: FILE.gguf, or a folder with config.json and *.safetensors.

    Raises:
      InputError: it is neither, is damaged, or is of an architecture that we do not have.
    """
    path = pathlib.Path(path)
    if path.is_file():
        if path.suffix != '.gguf':
            raise InputError(f'{path} is no model that can be read; expected FILE.gguf, or a '
                             'folder with config.json and *.safetensors')
        files = GgufFile(path)
        family, model = gguf_config.model_of(files)
        template = files.fields.get('tokenizer.chat_template', '')
        found = Foreign(path, 'gguf', family, model, template, files)
    else:
        family, model = hf_config.model_of(_read_json(path / 'config.json'))
        found = Foreign(path, 'hf', family, model, _hf_template(path), SafetensorsFolder(path))
    found.check()
    return found


def _read_json(file):
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise InputError(f'{file} cannot be read ({error}); expected the config.json that the '
                         'model was saved with') from error


def _hf_template(folder):
    if (folder / 'chat_template.jinja').exists():
        return (folder / 'chat_template.jinja').read_text(encoding='utf-8')
    if not (folder / 'tokenizer_config.json').exists():
        return ''
    template = _read_json(folder / 'tokenizer_config.json').get('chat_template', '') or ''
    if isinstance(template, list):  # several, by name
        template = next((x['template'] for x in template if x['name'] == 'default'), '')
    return template
