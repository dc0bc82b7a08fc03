"""A model to use: of a finished or unfinished run, or of a model file."""

import dataclasses
import json
from typing import Any

from jaxllm.data import chat
from jaxllm.errors import InputError
from jaxllm.models.config import ModelConfig, model_config
from jaxllm.sharding import make_mesh
from jaxllm.stages.base import load_assembled, open_base


@dataclasses.dataclass(frozen=True)
class Artifact:
    """`params` live on `mesh`; use them under `jax.set_mesh(mesh)`.

    config: of the run, {} of a model file and of a rack. template: ChatTemplate, or None of a base
    model. stop_ids: what ends an answer.
    """
    config: dict
    model: ModelConfig
    params: Any
    tokenizer: Any
    step: int
    mesh: Any
    template: Any
    stop_ids: tuple
    base: Any

    def prompt(self, text):
        """Token ids of a text to continue, or in a chat model of a request to answer."""
        if self.template is None:
            return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
        return self.conversation([{'role': 'user', 'content': text}])

    def conversation(self, messages):
        """Token ids of messages, up to where the model's next turn begins."""
        return chat.render(self.template, messages, self.tokenizer, add_generation_prompt=True,
                           train=False).ids


def check_checkpoint(checkpoint):
    """Raises InputError unless `checkpoint` is one that `load` knows."""
    if checkpoint not in ('last', 'best') and not checkpoint.isdecimal():
        raise InputError(f'config.checkpoint={checkpoint!r} is unknown; use last, best or the '
                         'number of a step that was kept')


def load(path, checkpoint='best'):
    """The Artifact of a run (its best checkpoint, its last, or that of a step), a FILE.gguf or a
    folder of weights.

    The best one has the lowest validation loss. Where a run kept a moving average of the
    parameters, that is what it evaluated and what is loaded. A run that trained an adapter is
    loaded with its base.

    Raises:
      InputError: no model there, no checkpoint yet, or no such `checkpoint`.
    """
    check_checkpoint(checkpoint)
    return load_base(open_base(path, checkpoint))


def load_base(base):
    """The Artifact of an opened Base."""
    mesh, tokenizer, template = make_mesh(), base.tokenizer(), base.template()
    stop_ids = chat.stop_ids(template, tokenizer) if template else (tokenizer.eos_id,)
    file = base.path / 'config.json'
    config = json.loads(file.read_text()) if file.exists() and not base.foreign else {}
    return Artifact(config, model_config(base.model), load_assembled(base, mesh), tokenizer,
                    base.step, mesh, template, tuple(stop_ids), base)
