"""Reinforcement learning from rewards: a policy samples, is scored, and is moved to score higher.

The method is a module of `jaxllm.objectives` (PPO, GRPO, ...), named by config.algorithm.
"""

import contextlib
import dataclasses
import importlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import rng
from jaxllm.config import check_keys, section, write_atomic
from jaxllm.data import chat
from jaxllm.errors import GuardStop, InputError
from jaxllm.models import lora
from jaxllm.rl import alarms, rollout
from jaxllm.rl.source import RolloutSource, history
from jaxllm.sharding import ShardingConfig, make_mesh, replicated
from jaxllm.stages import base as bases
from jaxllm.stages import (corpus, dialogues, lineage, plan, rl_batches, rl_data, rl_eval,
                           rl_models, rl_rewards)
from jaxllm.stages.sft import ComputeConfig, computed_model
from jaxllm.stages.training import Trainer
from jaxllm.stages.world import check_learned, world_spec
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
    alarms: Any
    eval: Any
    mesh: Any
    batches: Any
    prompt_room: int
    stop_ids: tuple

    @property
    def row_room(self):
        """L: tokens of a prompt and its completion."""
        return self.prompt_room + self.rollout.max_new_tokens


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
                         'module with Settings and algorithm, e.g. jaxllm.objectives.ppo'
                         ) from error
    return make(section(settings, config.objective, 'objective'))


def prepare(config):
    """Checks all of the config that needs no data. Returns the Setup."""
    check_keys(config, (*_SECTIONS, 'world') if 'world' in config else _SECTIONS)
    data = section(rl_data.DataConfig, config.data, 'data')
    evaluation = section(rl_eval.EvalConfig, config.eval, 'eval')
    settings = section(rollout.RolloutConfig, config.rollout, 'rollout')
    adapter = section(lora.LoraConfig, config.lora, 'lora')
    compute = section(ComputeConfig, config.compute, 'compute')
    alarm = section(alarms.AlarmConfig, config.alarms, 'alarms')
    algorithm = algorithm_of(config)
    _check(config, settings, algorithm)
    rl_data.sources(config)
    parents = rl_models.open_parents(config, algorithm.uses_values)
    if 'world' in config:
        check_learned('config.init_from', parents.policy.path, world_spec(config.world))
    model = computed_model(parents.policy.model, compute)
    tokenizer = parents.policy.tokenizer()
    template = dialogues.template_of(config.chat.template, parents.policy, tokenizer)
    room = data.max_prompt_tokens + settings.max_new_tokens
    if model.positions == 'learned' and room > model.max_seq_len:
        raise InputError(f'data.max_prompt_tokens + rollout.max_new_tokens = {room} is beyond the '
                         f'{model.max_seq_len} learned positions of the policy; use smaller ones')
    mesh = make_mesh(section(ShardingConfig, config.sharding, 'sharding'))
    networks = rl_models.networks(config, parents, model, adapter if adapter.rank else None, mesh,
                                  algorithm.uses_values)
    return Setup(parents, model, tokenizer, template, algorithm, settings, networks,
                 rl_rewards.make_scorer(config, tokenizer, template),
                 rl_rewards.make_judge(config), alarm, evaluation, mesh,
                 rl_batches.plan(config, algorithm, settings, room, mesh), data.max_prompt_tokens,
                 chat.stop_ids(template, tokenizer))


def _check(config, settings, algorithm):
    if settings.samples < algorithm.min_group:
        raise InputError(f'rollout.samples={settings.samples}: {config.algorithm} compares the '
                         f'completions of a prompt and needs at least {algorithm.min_group}; use '
                         f'e.g. --config.rollout.samples={max(4, algorithm.min_group)}')
    if config.ptx_coef < 0 or bool(config.ptx_coef) != bool(config.data.replay):
        raise InputError(f'ptx_coef={config.ptx_coef} is the weight of a pre-training loss on '
                         f'config.data.replay, which has {len(config.data.replay)} sources; give '
                         'both, or neither')


def make_trainer(config, setup):
    """(Trainer, shapes of the examples of a rollout, examples(arrays, aux) compiled)."""
    algorithm = setup.algorithm
    models = setup.networks.models._replace(group_size=setup.batches.batch_group)
    update, size = algorithm.update_aux, float(config.train.batch_size)
    trainer = Trainer(
        config, setup.model, rl_data.with_columns(algorithm.objective(models), models,
                                                  config.ptx_coef),
        trainable=setup.networks.trainable, frozen=setup.networks.frozen,
        aux={name: jnp.float32(x) for name, x in algorithm.aux.items()},
        update_aux=update and (lambda aux, metrics: update(aux, metrics | {'examples': size})))
    shapes = rl_batches.example_shapes(algorithm, setup.rollout, setup.row_room,
                                       recompute=setup.batches.recompute)
    examples = lambda arrays, aux: algorithm.examples(arrays, setup.rollout.samples, aux)
    return trainer, shapes, jax.jit(examples, out_shardings=replicated(setup.mesh))


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    setup = prepare(config)
    trainer, shapes, _ = make_trainer(config, setup)
    size, L = config.train.batch_size, config.data.replay_seq_len
    batch = {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
             for name, x in shapes.items()}
    if config.ptx_coef:
        batch |= {rl_data.PTX + name: jax.ShapeDtypeStruct((size, L), np.int32)
                  for name in ('tokens', 'targets', 'segment_ids', 'positions')}
        batch |= {f'{rl_data.PTX}loss_weights': jax.ShapeDtypeStruct((size, L), np.float32),
                  f'{rl_data.PTX}num_bytes': jax.ShapeDtypeStruct((size,), np.float32)}
    return plan.describe(config, trainer, batch, seq_len=setup.row_room)


def run(config, workdir):
    """Trains in `workdir`, or goes on there."""
    setup = prepare(config)
    trainer, shapes, examples = make_trainer(config, setup)
    writer = jax.process_index() == 0
    corpus.copy_tokenizer(setup.parents.policy, workdir / 'tokenizer')
    if writer:
        chat.save_template(workdir / 'tokenizer', setup.template)
        write_atomic(workdir / bases.MODEL_FILE, json.dumps(setup.parents.policy.model, indent=1))
    prompts = rl_data.read(config, setup.template, setup.tokenizer, setup.eval.max_prompts,
                           workdir / 'data')
    extra, extra_fingerprint = rl_data.replay(config, setup.tokenizer, workdir / 'data')
    with jax.set_mesh(trainer.mesh), contextlib.ExitStack() as stack:
        frozen = setup.networks.constants()
        scorer = setup.scorer.opened(trainer.mesh, setup.rollout.score_batch_size,
                                     workdir / 'rewards')
        stack.callback(scorer.close)
        setup = dataclasses.replace(setup, scorer=scorer)
        if setup.rollout.standardise:
            setup = dataclasses.replace(setup, scorer=dataclasses.replace(
                scorer, standardise=rl_eval.standardiser(setup, prompts.held_out, frozen,
                                                         config.seed, workdir)))
        batches = setup.batches
        source = RolloutSource(
            _maker(config, setup, prompts, frozen, _forward(
                setup, batches.rollout_group, with_policy=batches.recompute), examples),
            num_examples=batches.num_examples, epochs=setup.rollout.epochs,
            batch_size=config.train.batch_size, seed=config.seed, folder=workdir / 'rollouts',
            group_size=setup.rollout.samples if batches.batch_group > 1 else 1,
            check=lambda number, metrics: _alarm(
                setup.alarms, history(workdir / 'rollouts', number), metrics, number),
            extra=extra, like=shapes | _columns(setup), process_index=jax.process_index(),
            process_count=jax.process_count())
        fingerprint = f'{prompts.fingerprint}/{extra_fingerprint}'
        if writer:
            _record(config, workdir, setup, trainer, prompts, source, fingerprint)
        evaluate = rl_eval.make_evaluate(setup, prompts.held_out, frozen, _forward(setup, 1),
                                         config.seed, workdir / 'answers')
        trainer.fit(workdir, source, Hooks(evaluate, lambda state: []),
                    params=setup.networks.start, frozen=frozen, data_fingerprint=fingerprint,
                    tokens_per_step=config.train.batch_size * setup.row_room,
                    flops_per_token=flops.train_flops_per_token(setup.model, setup.row_room)
                    * batches.computed_share(setup.row_room, setup.rollout.max_new_tokens))


def _forward(setup, group_size, with_policy=True):
    models = setup.networks.models._replace(group_size=group_size)
    return rollout.InChunks(
        rollout.make_forward(models, setup.networks.reference, with_policy=with_policy),
        setup.rollout.score_batch_size, setup.mesh, group_size)


def _columns(setup):
    """Shapes of what `rollout.summary` adds to each batch."""
    names = (*rollout.summary_names(setup.batches.recompute), *setup.scorer.specs)
    return {f'rollout/{name}': jax.ShapeDtypeStruct((1,), np.float32) for name in names}


def _maker(config, setup, prompts, frozen, forward, examples):
    """make(number, state) of a RolloutSource: sample, score, look back, turn into examples."""
    settings, order = setup.rollout, rl_data.PromptOrder(prompts.train, config.seed)

    def make(number, state):
        asked = order.take(number * settings.prompts, settings.prompts)
        ids = [prompt.ids for prompt in asked]
        key = jax.random.fold_in(rng.key(config.seed, rng.ROLLOUT), number)
        params = setup.networks.models.policy(state.trainable, frozen)
        samples = rollout.sample(params, setup.model, ids, settings, setup.tokenizer,
                                 setup.stop_ids, key)
        arrays = rollout.to_arrays(ids, samples, settings.samples, setup.prompt_room,
                                   settings.max_new_tokens, setup.tokenizer.pad_id)
        arrays |= forward(state.trainable, frozen, batch=arrays)
        scores = setup.scorer.scores(asked, samples, arrays, settings.samples)
        rewards = setup.scorer.combined(scores, asked, settings.samples)
        arrays['rewards_B'] = rollout.judged_by_end(settings, rewards, samples.finished)
        metrics = rollout.summary(arrays, scores, settings.samples)
        aux = {name: state.aux[name] for name in setup.algorithm.aux}
        made = jax.tree.map(rollout.local, examples(arrays, aux))
        return made, metrics, rl_data.records(asked, samples, arrays, scores, settings.samples)
    return make


def _alarm(settings, past, metrics, number):
    """Says what looks like reward hacking, and stops the run where that is asked for."""
    for alarm in alarms.check(settings, past, metrics):
        say(f'rollout {number}: {alarm.message}')
        if alarm.severity == 'stop':
            raise GuardStop(f'rollout {number}: {alarm.message}; the last checkpoint is intact. '
                            'Raise the KL coefficient or lower optim.lr and use a new --workdir, '
                            'or go on here with --config.alarms.stop=False')


def _record(config, workdir, setup, trainer, prompts, source, fingerprint):
    world = {'world': world_spec(config.world).fingerprint} if 'world' in config else {}
    roles = {'init_from': setup.parents.policy.role}
    if config.parents.ref:
        roles['ref'] = setup.parents.ref.role
    if setup.parents.value:
        roles['value'] = setup.parents.value.base.role
    roles |= {f'reward/{name}': model.base.role for name, model in setup.scorer.learned.items()}
    lineage.write_lineage(workdir, config, tokenizer=setup.tokenizer.fingerprint,
                          template=setup.template.fingerprint, data=fingerprint,
                          num_trained=trainer.num_params, roles=roles, **world)
    say(f'{trainer.num_params:,} parameters are trained on '
        f'{sum(row["prompts"] for row in prompts.rows):,} prompts, {len(prompts.held_out)} held '
        f'out; {setup.rollout.rows} completions per rollout, {source.period} steps on each; '
        + ('each prompt is read once for its completions' if setup.batches.batch_group > 1
           else 'each completion is read with its prompt'))
