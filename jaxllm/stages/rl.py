"""Reinforcement learning from rewards: a policy samples, is scored, and is moved towards what scores.

The method is a module of `jaxllm.objectives` (PPO, GRPO, ...), named by config.algorithm.
"""

import dataclasses
import importlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import rng
from jaxllm.config import check_keys, section, to_plain, write_atomic
from jaxllm.data import chat
from jaxllm.errors import GuardStop, InputError
from jaxllm.models import lora
from jaxllm.objectives import policy
from jaxllm.rl import alarms, rollout
from jaxllm.rl.source import RolloutSource, history
from jaxllm.sharding import ShardingConfig, make_mesh, replicated
from jaxllm.stages import base as bases
from jaxllm.stages import corpus, dialogues, lineage, plan, rl_data, rl_eval, rl_models, rl_rewards
from jaxllm.stages.sft import ChatConfig, ComputeConfig, computed_model
from jaxllm.stages.training import Trainer
from jaxllm.stages.world import world_spec
from jaxllm.train import flops
from jaxllm.train.loop import Hooks
from jaxllm.train.progress import stage as say

OUTPUTS = 'checkpoints', 'tokenizer', bases.MODEL_FILE, 'rollouts'

_SECTIONS = ('stage', 'seed', 'init_from', 'parents', 'algorithm', 'objective', 'rewards',
             'combine', 'chat', 'data', 'rollout', 'ptx_coef', 'alarms', 'lora', 'compute', 'optim',
             'train', 'eval', 'sharding', 'checkpoint', 'metrics')


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is known before data and weights are read."""
    parents: Any
    model: Any
    tokenizer: Any
    template: Any
    algorithm: Any
    rollout: Any
    networks: Any
    scorer: Any
    judge: Any
    mesh: Any
    alarms: Any
    eval: Any


def algorithm_of(config):
    """The Algorithm that config.algorithm and config.objective name.

    Raises:
      InputError: no such module, or other settings than its own.
    """
    try:
        module = importlib.import_module(config.algorithm)
        settings, make = module.Settings, module.algorithm
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f'config.algorithm={config.algorithm!r} is no method: {error}; expected a '
                         'module with Settings and algorithm, e.g. jaxllm.objectives.ppo') from error
    return make(section(settings, config.objective, 'objective'))


def prepare(config):
    """Checks all of the config that needs no data. Returns the Setup."""
    check_keys(config, (*_SECTIONS, 'world') if 'world' in config else _SECTIONS)
    section(rl_data.DataConfig, config.data, 'data')
    evaluation = section(rl_eval.EvalConfig, config.eval, 'eval')
    settings = section(rollout.RolloutConfig, config.rollout, 'rollout')
    adapter = section(lora.LoraConfig, config.lora, 'lora')
    compute = section(ComputeConfig, config.compute, 'compute')
    chat_config = section(ChatConfig, {**config.chat, 'stop_prompts': 0}, 'chat')
    alarm = section(alarms.AlarmConfig, config.alarms, 'alarms')
    algorithm = algorithm_of(config)
    if settings.samples < algorithm.min_group:
        raise InputError(f'rollout.samples={settings.samples}: {config.algorithm} compares the '
                         f'completions of a prompt and needs at least {algorithm.min_group}; use '
                         f'e.g. --config.rollout.samples={max(4, algorithm.min_group)}')
    if config.ptx_coef and not config.data.replay:
        raise InputError(f'ptx_coef={config.ptx_coef} mixes in a pre-training loss, and '
                         'config.data.replay has no text for it; add a source, or use 0')
    rl_data.sources(config)
    parents = rl_models.open_parents(config, algorithm.uses_values)
    model = computed_model(parents.policy.model, compute)
    tokenizer = parents.policy.tokenizer()
    template = dialogues.template_of(chat_config.template, parents.policy, tokenizer)
    room = config.data.max_prompt_tokens + settings.max_new_tokens
    if model.positions == 'learned' and room > model.max_seq_len:
        raise InputError(f'data.max_prompt_tokens + rollout.max_new_tokens = {room} is beyond the '
                         f'{model.max_seq_len} learned positions of the policy; use smaller ones')
    scorer = rl_rewards.make_scorer(config, parents.policy, None)
    mesh = make_mesh(section(ShardingConfig, config.sharding, 'sharding'))
    networks = rl_models.networks(config, parents, model, adapter if adapter.rank else None, mesh,
                                  algorithm.uses_values)
    return Setup(parents, model, tokenizer, template, algorithm, settings, networks, scorer,
                 rl_rewards.make_judge(config), mesh, alarm, evaluation)


def make_trainer(config, setup, prompt_room):
    """(Trainer, shapes of a batch, examples of a rollout) of a run."""
    like = _rollout_like(setup, prompt_room)
    aux = {name: jnp.float32(x) for name, x in setup.algorithm.aux.items()}
    examples = lambda arrays, aux: setup.algorithm.examples(arrays, setup.rollout.samples, aux)
    shapes = jax.eval_shape(examples, like, aux)
    update, size = setup.algorithm.update_aux, config.train.batch_size
    objective = rl_data.with_columns(setup.algorithm.objective(setup.networks.models),
                                     setup.networks.models, config.ptx_coef)
    trainer = Trainer(
        config, setup.model, objective, trainable=setup.networks.trainable,
        frozen=setup.networks.frozen, aux=aux,
        update_aux=update and (lambda aux, metrics: update(aux, metrics | {'examples': size})))
    num = len(next(iter(jax.tree.leaves(shapes))))if False else next(iter(shapes.values())).shape[0]
    return trainer, shapes, num, jax.jit(examples, out_shardings=replicated(setup.mesh))
