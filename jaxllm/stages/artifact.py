"""A finished or unfinished run as something to use: its model, parameters and tokenizer."""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from jaxllm.data import tokenizer as tokenizers
from jaxllm.errors import InputError
from jaxllm.models import transformer
from jaxllm.models.config import ModelConfig, model_config
from jaxllm.sharding import make_mesh, shardings
from jaxllm.train.checkpoint import load_params


@dataclasses.dataclass(frozen=True)
class Artifact:
    """`params` live on `mesh`; use them under `jax.set_mesh(mesh)`."""
    config: dict
    model: ModelConfig
    params: Any
    tokenizer: Any
    step: int
    mesh: Any


def check_checkpoint(checkpoint):
    """Raises InputError unless `checkpoint` is one that `load` knows."""
    if checkpoint not in ('last', 'best'):
        raise InputError(f'config.checkpoint={checkpoint!r} is unknown; use last or best')


def load(workdir, checkpoint='best'):
    """The Artifact of a run: of its best checkpoint, or of its last.

    The best one has the lowest validation loss. Where a run kept a moving average of the
    parameters, that is what it evaluated and what is loaded.

    Raises:
      InputError: no run there, no checkpoint yet, or `checkpoint` is neither 'best' nor 'last'.
    """
    check_checkpoint(checkpoint)
    workdir = pathlib.Path(workdir)
    file = workdir / 'config.json'
    if not file.exists():
        raise InputError(f'{workdir} is no run directory (no config.json there); give the '
                         '--workdir of a run')
    config = json.loads(file.read_text())
    if 'model' not in config:
        raise InputError(f'{workdir} is a run of {config["stage"]}, which makes no model; give one '
                         'that does, such as jaxllm.stages.pretrain')
    model, mesh = model_config(config['model']), make_mesh()
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: transformer.init(jax.random.key(0), model))
    places = shardings(transformer.param_axes(shapes), shapes, mesh)
    like = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                        shapes, places)
    params, step = load_weights(workdir, like, checkpoint)
    return Artifact(config, model, params, tokenizers.load(workdir / 'tokenizer'), step, mesh)


def load_weights(workdir, like, checkpoint='best'):
    """(parameters, step) of a checkpoint, see `load`; `like` has their shapes and shardings."""
    config = json.loads((workdir / 'config.json').read_text())
    part = 'ema' if config['optim']['ema_decay'] else 'params'
    folder, step = workdir / 'checkpoints', None
    if checkpoint == 'last':
        step = max((int(path.name) for path in folder.glob('*') if path.name.isdigit()),
                   default=None)
    return load_params(folder, like, step=step, part=part)
