"""What a model can be started from, known before its weights are read: a run, or a model file."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from jaxllm.config import flatten, section, to_plain
from jaxllm.data import chat
from jaxllm.data import tokenizer as tokenizers
from jaxllm.errors import InputError
from jaxllm.models import convert, lora, transformer
from jaxllm.models.config import model_config
from jaxllm.sharding import shardings
from jaxllm.stages import lineage
from jaxllm.train.checkpoint import load_params, saved_step, saved_steps

MODEL_FILE = 'model.json'  # of runs whose model comes from their parent
RACK_FILE = 'adapters.json'  # of a directory with several adapters for one base
ADAPTER_FILE = 'adapter.npz'
# Settings of a model that change how it is computed and not what.
_HOW_NOT_WHAT = ('attention.impl', 'attention.chunk_size', 'remat', 'dtype')


@dataclasses.dataclass(frozen=True)
class Base:
    """A model on disk.

    path: a run directory, FILE.gguf, or a folder of Hugging Face weights.
    model: nested settings, see models.config.model_config.
    step: of the checkpoint; 0 for a model file.
    fingerprint: of the run, or the sha256 of a model file's content.
    foreign: models.convert.Foreign of a model file, else None.
    lora, parent: of an adapter: its settings and the Base that it stands on.
    adapter: the folder of an adapter in a rack, whose path is `path`; else its run's checkpoint.
    """
    path: pathlib.Path
    model: dict
    step: int
    fingerprint: str
    foreign: Any = None
    lora: Any = None
    parent: Any = None
    adapter: Any = None

    @property
    def role(self):
        """What lineage.json says of it."""
        return lineage.Parent(self.path, self.step, self.fingerprint)

    def tokenizer(self):
        if self.adapter:
            return self.parent.tokenizer()
        if self.foreign:
            return self.foreign.tokenizer()
        found = tokenizers.load(self.path / 'tokenizer')
        if found.vocab_size > self.model['vocab_size']:
            raise InputError(f'the tokenizer of {self.path} has {found.vocab_size} tokens and the '
                             f'model {self.model["vocab_size"]} embeddings, so that they do not '
                             'belong together; bring the tokenizer folder back from a copy')
        return found

    def template(self):
        """Its ChatTemplate, or None."""
        if not self.foreign:
            return chat.read_template(self.adapter or self.path / 'tokenizer')
        source = self.foreign.chat_template
        return chat.ChatTemplate(self.path.name, source, derived=True) if source else None


def open_base(path, checkpoint='best', what='the model'):
    """The Base at a path.

    Args:
      path: see Base.
      checkpoint: of a run: 'best' by validation loss, 'last', or a step, as a number or text.
      what: names it in messages, e.g. 'config.init_from'.

    Raises:
      InputError: nothing there that is a model, no checkpoint yet, or its own base is gone or is
        another one by now.
    """
    path = pathlib.Path(path).resolve()
    if not path.exists():
        raise InputError(f'{what}: {path} does not exist; expected a run directory, a FILE.gguf or '
                         'a folder with config.json and *.safetensors')
    if path.is_file() or not (path / 'lineage.json').exists() and list(path.glob('*.safetensors')):
        foreign = convert.open_model(path)
        return Base(path, foreign.model, 0, foreign.fingerprint, foreign=foreign)
    if (path / RACK_FILE).exists():
        rack = json.loads((path / RACK_FILE).read_text())
        return open_rack(path, rack['active']) if rack['active'] else rack_base(path, rack)
    if not (path / 'config.json').exists():
        raise InputError(f'{what}: {path} is no run directory (no config.json there) and holds no '
                         '*.safetensors; give the --workdir of a run, or a model file')
    config = json.loads((path / 'config.json').read_text())
    model = model_section(path, config)
    if not (path / 'lineage.json').exists():
        raise InputError(f'{what}: {path} has not begun (no lineage.json there); run it first')
    step = _step(path / 'checkpoints', checkpoint)
    record = lineage.read_lineage(path)
    settings = lora_settings(config)
    parent = parent_base(path, record) if settings else None
    return Base(path, model, step, record['fingerprint'], lora=settings, parent=parent)


def rack_base(path, rack):
    """The Base of a rack of adapters, checked to be the one that they were made for."""
    about = rack['base']
    base = open_base(about['path'], checkpoint=about['step'] or 'best', what=f'the base of {path}')
    _check_unchanged(base, about['fingerprint'], f'{path} holds adapters')
    return base


def open_rack(path, name):
    """The Base of one adapter of a rack."""
    rack = json.loads((path / RACK_FILE).read_text())
    base, settings = rack_base(path, rack), rack['adapters'][name]['lora']
    settings = lora.LoraConfig(**settings | {'targets': tuple(settings['targets'])})
    return Base(path, base.model, base.step, base.fingerprint, lora=settings, parent=base,
                adapter=path / name)


def lora_dict(settings):
    """A LoraConfig as JSON."""
    return dataclasses.asdict(settings) | {'targets': list(settings.targets)}


def flat(tree):
    """{'layers/layer_0/...': array} of nested dicts."""
    return {'/'.join(entry.key for entry in path): np.asarray(x)
            for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def open_trainable(path, what='config.init_from'):
    """The Base that training begins from. Raises InputError: see `open_base`, or a rack, whose
    active adapter may be another one tomorrow."""
    base = open_base(path, what=what)
    if (base.path / RACK_FILE).exists():
        raise InputError(f'{what}={path} is a rack of adapters, which nothing can be trained from; '
                         f'merge one (`jaxllm adapters merge {path} NAME --out=FOLDER`) and give '
                         'that folder')
    return base


def matching_base(config):
    """The Base that `config.init_from` names, or None; its model computes what config.model does.

    Raises:
      InputError: see `open_base`, or the model is another one.
    """
    if not config.init_from:
        return None
    base = open_trainable(config.init_from)
    theirs, ours = flatten(base.model), flatten(to_plain(config)['model'])
    other = [f'{key} {theirs.get(key)!r} there, {ours[key]!r} here' for key in ours
             if _plain(theirs.get(key)) != ours[key] and key not in _HOW_NOT_WHAT]
    if other:
        raise InputError(f'the model of config.init_from={config.init_from} is another one '
                         f'({"; ".join(other[:4])}); use the same config.model')
    return base


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def model_section(path, config):
    """The model settings of a run. Raises InputError if it makes no model."""
    if 'model' in config:
        return config['model']
    if not (path / MODEL_FILE).exists():
        raise InputError(f'{path} is a run of {config["stage"]}, which makes no model (or has not '
                         'begun); give one that does, such as a run of jaxllm.stages.pretrain')
    return json.loads((path / MODEL_FILE).read_text())


def lora_settings(config):
    """LoraConfig of a run's config (nested dict), or None where all weights were trained."""
    if 'lora' not in config or not config['lora']['rank']:
        return None
    return section(lora.LoraConfig, config['lora'], 'lora')


def parent_base(path, record):
    """The Base that a run's adapter stands on, checked to be the one it was trained on."""
    parent = record['parents']['init_from']
    if not pathlib.Path(parent['run']).exists():
        raise InputError(f'{path} is an adapter for {parent["run"]}, which is not there any more; '
                         'bring it back, or put a link there')
    base = open_base(parent['run'], checkpoint=parent['step'], what=f'the base of {path}')
    _check_unchanged(base, parent['fingerprint'], f'{path} is an adapter')
    return base


def _check_unchanged(base, fingerprint, what):
    """Raises InputError if a base is another one than an adapter was trained on."""
    if base.fingerprint != fingerprint:
        raise InputError(f'{what} for {base.path} with fingerprint {fingerprint[:12]}, and what is '
                         f'there now is another model ({base.fingerprint[:12]}); bring the old one '
                         'back')


def _step(folder, checkpoint):
    if checkpoint in ('best', 'last'):
        return saved_step(folder, checkpoint)
    steps = saved_steps(folder)
    if int(checkpoint) not in steps:
        raise InputError(f'{folder} has no checkpoint of step {checkpoint} (any more), but of '
                         f'{", ".join(map(str, steps))}; use one of these, or bring it back from a '
                         'copy. A run keeps its best and its last checkpoint.keep_last')
    return int(checkpoint)


def params_like(model, mesh):
    """Shapes and places of a whole model's parameters on `mesh`; `model` is a ModelConfig."""
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), model))
    return placed(shapes, mesh)


def placed(shapes, mesh):
    """A tree of shapes as ShapeDtypeStructs with the shardings of their names."""
    places = shardings(transformer.param_axes(shapes), shapes, mesh)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                        shapes, places)


def load_plain(base, mesh):
    """All parameters of a Base as a plain tree; an adapter is merged into what it stands on."""
    if base.lora:
        frozen, adapter = load_parts(base, mesh)
        with jax.set_mesh(mesh):
            return lora.merge(frozen, adapter, base.lora)
    like = params_like(model_config(base.model), mesh)
    if base.foreign:
        return base.foreign.load(like)
    return saved_params(base, like)


def load_parts(base, mesh):
    """(frozen base as it is stored, adapter) of a Base with an adapter."""
    with jax.set_mesh(mesh):
        frozen = lora.prepare_base(load_plain(base.parent, mesh), base.lora)
        if base.adapter:
            return frozen, _of_rack(base, mesh)
        shapes = jax.eval_shape(
            lambda params: lora.init_adapter(jax.random.key(0), params, base.lora), frozen)
    return frozen, saved_params(base, placed(shapes, mesh))


def _of_rack(base, mesh):
    with np.load(base.adapter / ADAPTER_FILE, allow_pickle=False) as stored:
        tree = flax.traverse_util.unflatten_dict(
            {tuple(name.split('/')): stored[name] for name in stored.files})
    return jax.device_put(tree, shardings(transformer.param_axes(tree), tree, mesh))


def load_assembled(base, mesh):
    """Parameters that the transformer applies to: plain, or a base with its adapter beside it."""
    if not base.lora:
        return load_plain(base, mesh)
    frozen, adapter = load_parts(base, mesh)
    with jax.set_mesh(mesh):
        return lora.combine(frozen, adapter, base.lora)


def saved_params(base, like):
    """The trained parameters of a run's checkpoint: their moving average where there is one. Of a
    run of reinforcement learning, which may train a value network too, the policy."""
    config = json.loads((base.path / 'config.json').read_text())
    if config['stage'] == 'jaxllm.stages.reward' and 'model' not in like:
        raise InputError(f'{base.path} is a reward model, which scores answers and gives none; '
                         'give a run that does, such as the one that it was trained from')
    part = 'ema' if config['optim']['ema_decay'] else 'params'
    branch = 'policy' if 'algorithm' in config else ''
    return load_params(base.path / 'checkpoints', like, step=base.step, part=part,
                       branch=branch)[0]


def tensor_hashes(params):
    """{path: sha256 of the tensor's bytes}."""
    return {'/'.join(entry.key for entry in path): hashlib.sha256(
        np.asarray(x).tobytes()).hexdigest()
        for path, x in jax.tree_util.tree_leaves_with_path(params)}


def hash_of(hashes):
    """One hash of all tensors."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
