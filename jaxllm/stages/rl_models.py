"""The networks of reinforcement learning: policy, reference, value; shapes and weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm import rng
from jaxllm.errors import InputError
from jaxllm.models import heads, lora
from jaxllm.objectives.policy import Models
from jaxllm.stages import base as bases
from jaxllm.stages import reward_model


@dataclasses.dataclass(frozen=True)
class Parents:
    """What a run is made from, each of them opened and checked. value: a RewardModel, or None."""
    policy: Any
    ref: Any
    value: Any


def open_parents(config, uses_values):
    """The Parents that a config names.

    The reference is the policy as it starts, unless config.parents.ref says another; the value
    network starts from config.parents.value, or else from the first learned reward. With an
    adapter the reference is the base below it, and the value network an adapter on that base.

    Raises:
      InputError: see `bases.open_base`; or models that do not belong together.
    """
    if not config.init_from:
        raise InputError('config.init_from is empty; give the policy to start from: a run of '
                         'supervised fine-tuning or a model file, e.g. '
                         '--config.init_from=runs/sft')
    policy = bases.open_trainable(config.init_from)
    adapter, ref = config.lora.rank > 0, policy
    if config.parents.ref:
        if adapter:
            raise InputError('config.parents.ref with an adapter (lora.rank > 0): its reference is '
                             'the base below it, which costs no memory; leave parents.ref empty')
        ref = bases.open_base(config.parents.ref, what='config.parents.ref')
        if ref.tokenizer().fingerprint != policy.tokenizer().fingerprint:
            raise InputError(f'the reference {ref.path} has another tokenizer than the policy '
                             f'{policy.path}, so that their log-probs cannot be compared')
        if ref.model != policy.model:
            raise InputError(f'the reference {ref.path} is another model than the policy '
                             f'{policy.path}; give one of the same shape')
    if adapter or not uses_values:
        if config.parents.value:
            raise InputError(f'config.parents.value={config.parents.value} is used by no one: '
                             + ('an adapter (lora.rank > 0) has a value adapter on its own base'
                                if adapter else f'{config.algorithm} has no value network')
                             + '; leave it empty')
        return Parents(policy, ref, None)
    learned = [reward.run for reward in config.rewards.values() if reward.kind == 'model']
    path = config.parents.value or next(iter(learned), '')
    return Parents(policy, ref, reward_model.open_reward(path) if path else None)


@dataclasses.dataclass(frozen=True)
class Networks:
    """models: for objectives. trainable, frozen: shapes with places. reference: reference(frozen)
    -> parameters. start: start() -> the first trainable; constants: constants() -> frozen."""
    models: Models
    trainable: Any
    frozen: Any
    reference: Any
    start: Any
    constants: Any


def networks(config, parents, model, adapter, mesh, uses_values):
    """The Networks of a run; `adapter` is a LoraConfig, or None to train all weights."""
    make = _adapted if adapter else _whole
    return make(config, parents, model, adapter, mesh, uses_values)


def _whole(config, parents, model, _, mesh, uses_values):
    like = bases.params_like(model, mesh)
    trainable, value, value_model = {'policy': like}, None, model
    if uses_values:
        if parents.value:
            value_model = parents.value.model
        trainable['value'] = _value_like(value_model, mesh)
        value = lambda trainable, frozen: trainable['value']
    models = Models(model, lambda trainable, frozen: trainable['policy'], value_model, value,
                    config.rollout.temperature)

    def start():
        first = {'policy': _load(parents.policy, model, mesh)}
        if uses_values and parents.value:
            first['value'] = parents.value.load(mesh, merged=True)
        elif uses_values:
            first['value'] = _value_from(_load(parents.policy, model, mesh), model, config.seed,
                                         trainable['value'])
        return first

    return Networks(models, trainable, {'ref': like}, lambda frozen: frozen['ref'], start,
                    lambda: {'ref': _load(parents.ref, model, mesh)})


def _adapted(config, parents, model, adapter, mesh, uses_values):
    with jax.set_mesh(mesh):
        stored = jax.eval_shape(functools.partial(lora.prepare_base, lora=adapter),
                                bases.params_like(model, mesh))
        fresh = jax.eval_shape(lambda x: lora.init_adapter(jax.random.key(0), x, adapter), stored)
    trainable, value = {'policy': bases.placed(fresh, mesh)}, None
    if uses_values:
        head = jax.eval_shape(lambda: heads.init_head(jax.random.key(0), model.d_model))
        trainable['value'] = bases.placed({'model': fresh, 'head': head}, mesh)
        value = lambda trainable, frozen: trainable['value'] | {
            'model': lora.combine(frozen['base'], trainable['value']['model'], adapter)}
    models = Models(model, lambda trainable, frozen: lora.combine(
        frozen['base'], trainable['policy'], adapter), model, value, config.rollout.temperature)
    frozen = {'base': bases.placed(stored, mesh)}

    def start():
        key = rng.key(config.seed, rng.INIT)
        first = {'policy': lora.init_adapter(key, stored, adapter)}
        if uses_values:
            key = rng.key(config.seed, rng.VALUE)
            first['value'] = {'model': lora.init_adapter(key, stored, adapter),
                              'head': heads.init_head(key, model.d_model)}
        return jax.device_put(first, jax.tree.map(lambda x: x.sharding, trainable))

    def constants():
        base = lora.prepare_base(bases.load_plain(parents.policy, mesh), adapter)
        return {'base': jax.device_put(base, jax.tree.map(lambda x: x.sharding, frozen['base']))}

    return Networks(models, trainable, frozen, lambda frozen: frozen['base'], start, constants)


def _load(base, model, mesh):
    """A copy of its own of all weights: what is trained is donated, and a reference must stay."""
    return jax.tree.map(jnp.copy, bases.load_plain(base, mesh))


def _value_like(model, mesh):
    head = jax.eval_shape(lambda: heads.init_head(jax.random.key(0), model.d_model))
    return bases.placed({'model': bases.params_like(model, mesh), 'head': head}, mesh)


def _value_from(params, model, seed, like):
    tree = heads.init_reward(rng.key(seed, rng.VALUE), model, params)
    return jax.device_put(tree, jax.tree.map(lambda x: x.sharding, like))
