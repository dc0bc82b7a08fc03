"""A trained reward model: its weights, its scale, and how it scores answers.

    reward = gain * (w . h + b) + bias

has mean 0 and standard deviation 1 on reference samples (reward.json of the run).
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.data import comparisons
from jaxllm.data.comparison_batches import row_length
from jaxllm.errors import InputError
from jaxllm.models import heads, lora
from jaxllm.models.config import ModelConfig, model_config
from jaxllm.sharding import batch_shardings, batch_ways, replicated
from jaxllm.stages import base as bases

REWARD_FILE = 'reward.json'


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """What rewards are shifted and scaled by."""
    prompts: int         # held-out prompts that the parent answers; 0 = the held-out responses
    max_new_tokens: int
    temperature: float

    def __post_init__(self):
        if self.prompts < 0 or self.max_new_tokens < 1 or not self.temperature > 0:
            raise InputError(f'reference: got {self}; expected prompts >= 0, max_new_tokens >= 1 '
                             'and temperature > 0')


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward run. Raw scores are those of `heads.scores`; normalised: gain * raw + bias.

    record: all of reward.json.
    """
    base: bases.Base
    model: ModelConfig
    gain: float
    bias: float
    template: Any
    tokenizer: Any
    record: dict

    def check(self, tokenizer, template):
        """Raises InputError unless it reads what a policy of this tokenizer and template writes."""
        if tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise InputError(
                f'the reward model {self.base.path} reads tokens of another tokenizer '
                f'({self.tokenizer.name}, {self.tokenizer.fingerprint[:12]}) than the policy '
                f'writes ({tokenizer.name}, {tokenizer.fingerprint[:12]}); train one from the '
                'policy\'s own SFT run')
        if template is None or template.fingerprint != self.template.fingerprint:
            name = 'no chat template' if template is None else f'the template {template.name}'
            raise InputError(
                f'the reward model {self.base.path} learned conversations in the template '
                f'{self.template.name}, and the policy has {name}, so that its scores would mean '
                'nothing; train one from the policy\'s own SFT run')

    def encode(self, prompt, response):
        """Token ids of a finished answer: the layout that was trained on."""
        return comparisons.answer_ids(
            self.template, [*prompt, {'role': 'assistant', 'content': response}], self.tokenizer)

    def load(self, mesh, *, merged=False):
        """Parameters of `models/heads.py` on `mesh`; an adapter stands beside its base, or is
        `merged` into it, so that the tree is that of a plain model."""
        head = jax.eval_shape(lambda: heads.init_head(jax.random.key(0), self.model.d_model))
        if not self.base.lora:
            like = {'model': bases.params_like(self.model, mesh), 'head': head}
            return bases.saved_params(self.base, bases.placed(like, mesh))
        with jax.set_mesh(mesh):
            frozen = lora.prepare_base(bases.load_plain(self.base.parent, mesh), self.base.lora)
            adapter = jax.eval_shape(
                lambda x: lora.init_adapter(jax.random.key(0), x, self.base.lora), frozen)
            params = bases.saved_params(self.base, bases.placed({'model': adapter, 'head': head},
                                                                mesh))
            together = lora.merge if merged else lora.combine
            return {'model': together(frozen, params['model'], self.base.lora),
                    'head': params['head']}

    def normalise(self, raw):
        """gain * raw + bias."""
        return self.gain * raw + self.bias


def open_reward(path, tokenizer=None, template=None):
    """The RewardModel of a reward run, at the checkpoint that reward.json is about.

    Args:
      tokenizer, template: of the policy whose answers it is to score; default: not checked.

    Raises:
      InputError: no reward run, one that has not come to its end, or one that reads another
        tokenizer or template.
    """
    path = pathlib.Path(path).resolve()
    if not (path / REWARD_FILE).exists():
        raise InputError(f'{path} has no {REWARD_FILE}, so it is no reward model that came to its '
                         'end; give the --workdir of a run of experiments/reward.py, or let it '
                         'finish')
    record = json.loads((path / REWARD_FILE).read_text())
    base = bases.open_base(path, checkpoint=record['step'], what='the reward model')
    found = RewardModel(base, model_config(base.model), record['gain'], record['bias'],
                        base.template(), base.tokenizer(), record)
    if tokenizer is not None:
        found.check(tokenizer, template)
    return found


def score(params, model, rows, *, batch_size=64, mesh):
    """Raw scores of token id lists, float32 [N]; rows of similar length go together.

    Args:
      params, model: of a RewardModel. rows: each ends with the last token of an answer.
    """
    return _of_rows(_score, params, model, rows, batch_size, mesh, ())


def features(params, model, rows, *, batch_size=64, mesh):
    """What the head reads of each row, float32 [N, D]; arguments as of `score`."""
    return _of_rows(_features, params, model, rows, batch_size, mesh, (model.d_model,))


def _of_rows(function, params, model, rows, batch_size, mesh, shape):
    if empty := [i for i, row in enumerate(rows) if not len(row)]:
        raise InputError(f'row {empty[0]} to be scored has no token; expected at least one')
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = np.zeros((len(rows), *shape), np.float32)
    B = -(-batch_size // batch_ways(mesh)) * batch_ways(mesh)
    with jax.set_mesh(mesh):
        for first in range(0, len(order), B):
            part = order[first:first + B]
            tokens_BL = np.zeros((B, row_length(max(len(rows[i]) for i in part))), np.int32)
            lengths_B = np.zeros(B, np.int32)
            for row, i in enumerate(part):
                tokens_BL[row, :len(rows[i])], lengths_B[row] = rows[i], len(rows[i])
            batch = {'tokens': tokens_BL, 'lengths': lengths_B}
            batch = jax.device_put(batch, batch_shardings(batch, mesh))
            out[part] = jax.device_get(function(params, batch, model, replicated(mesh)))[:len(part)]
    return out


@functools.partial(jax.jit, static_argnames=('model', 'place'))
def _score(params, batch, model, place):
    scores_B = heads.scores(params, model, batch['tokens'], batch['lengths'])
    return jax.lax.with_sharding_constraint(scores_B, place)


@functools.partial(jax.jit, static_argnames=('model', 'place'))
def _features(params, batch, model, place):
    features_BD = heads.features(params, model, batch['tokens'], batch['lengths'])
    return jax.lax.with_sharding_constraint(features_BD.astype(jnp.float32), place)
