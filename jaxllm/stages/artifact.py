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


def load(workdir):
    """The best checkpoint of a run (its moving average where it kept one).

    Raises:
      InputError: no run there, or no checkpoint yet.
    """
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
    params, step = load_weights(workdir, like)
    return Artifact(config, model, params, tokenizers.load(workdir / 'tokenizer'), step, mesh)


def load_weights(workdir, like):
    """(parameters, step) of the best checkpoint; `like` has their shapes and shardings.

    Where a run kept a moving average, that is what it evaluated and what is loaded.
    """
    config = json.loads((workdir / 'config.json').read_text())
    part = 'ema' if config['optim']['ema_decay'] else 'params'
    return load_params(workdir / 'checkpoints', like, part=part)
