"""Reward models: an SFT run and a person's comparisons -> a model that scores answers.

The trainable tree is {'model': all weights or an adapter, 'head': {'kernel', 'bias'}}.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from jaxllm import rng
from jaxllm.config import check_keys, section, write_atomic
from jaxllm.data import chat
from jaxllm.data.comparison_batches import ComparisonBatches
from jaxllm.errors import InputError
from jaxllm.models import heads, lora, transformer
from jaxllm.models.config import model_config
from jaxllm.objectives.base import assembled
from jaxllm.objectives.reward import RewardConfig, reward
from jaxllm.sharding import ShardingConfig, make_mesh
from jaxllm.stages import base as bases
from jaxllm.stages import comparisons, corpus, dialogues, lineage, plan, reward_quality
from jaxllm.stages.reward_hooks import EvalConfig, make_evaluate
from jaxllm.stages.reward_model import REWARD_FILE, ReferenceConfig
from jaxllm.stages.sft import ComputeConfig
from jaxllm.stages.training import Trainer
from jaxllm.stages.world import world_spec
from jaxllm.train import flops
from jaxllm.train.loop import Hooks
from jaxllm.train.progress import stage as say

OUTPUTS = 'checkpoints', 'tokenizer', bases.MODEL_FILE, REWARD_FILE, 'quality.json'

_SECTIONS = ('stage', 'seed', 'init_from', 'data', 'loss', 'lora', 'compute', 'optim', 'train',
             'eval', 'reference', 'sharding', 'checkpoint', 'metrics')


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is known before data and weights are read; see stages.sft.Setup.

    measured: the objective without what is there for training only. trainable: its shapes.
    """
    base: Any
    model: Any
    lora: Any
    loss: RewardConfig
    tokenizer: Any
    template: Any
    trainer: Trainer
    measured: Any


def prepare(config):
    """Checks all of the config that needs no data. Returns the Setup."""
    check_keys(config, (*_SECTIONS, 'world') if 'world' in config else _SECTIONS)
    data = section(comparisons.DataConfig, config.data, 'data')
    section(EvalConfig, config.eval, 'eval')
    section(ReferenceConfig, config.reference, 'reference')
    loss = section(RewardConfig, config.loss, 'loss')
    adapter = section(lora.LoraConfig, config.lora, 'lora')
    comparisons.sources(config)
    if not config.init_from:
        raise InputError('config.init_from is empty; give the run of supervised fine-tuning whose '
                         'answers are to be judged, e.g. --config.init_from=runs/sft')
    if config.train.z_loss:
        raise InputError(f'train.z_loss={config.train.z_loss}: a reward model has no logits whose '
                         'size could be held; use 0')
    base = bases.open_trainable(config.init_from)
    compute = section(ComputeConfig, config.compute, 'compute')
    attention = base.model['attention'] | {'impl': compute.impl, 'chunk_size': compute.chunk_size}
    model = model_config(base.model | {'dtype': compute.dtype, 'remat': compute.remat,
                                       'attention': attention})
    if model.positions == 'learned' and data.seq_len > model.max_seq_len:
        raise InputError(f'data.seq_len={data.seq_len} is beyond the {model.max_seq_len} learned '
                         'positions of the base; use a smaller one')
    tokenizer = base.tokenizer()
    template = dialogues.template_of('', base, tokenizer)
    mesh = make_mesh(section(ShardingConfig, config.sharding, 'sharding'))
    trainable, frozen, assemble = shapes(model, adapter if adapter.rank else None, mesh)
    measured = reward(model, dataclasses.replace(loss, centering=0.0, margin='none'))
    trainer = Trainer(config, model, assembled(reward(model, loss), assemble), trainable=trainable,
                      frozen=frozen)
    return Setup(base, model, adapter if adapter.rank else None, loss, tokenizer, template,
                 trainer, assembled(measured, assemble))


def shapes(model, adapter, mesh):
    """(trainable, frozen, assemble) of a reward model: shapes, constants with places, and
    assemble(trainable, frozen) -> parameters of models/heads.py."""
    whole = bases.params_like(model, mesh)
    with jax.set_mesh(mesh):
        head = jax.eval_shape(lambda: heads.init_head(jax.random.key(0), model.d_model))
        if adapter is None:
            return {'model': whole, 'head': head}, {}, lambda params, frozen: params
        stored = jax.eval_shape(lambda x: lora.prepare_base(x, adapter), whole)
        trained = jax.eval_shape(lambda x: lora.init_adapter(jax.random.key(0), x, adapter), stored)
    assemble = lambda params, frozen: {
        'model': lora.combine(frozen['base'], params['model'], adapter), 'head': params['head']}
    return ({'model': trained, 'head': head}, {'base': bases.placed(stored, mesh)}, assemble)


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    setup = prepare(config)
    B, S = config.train.batch_size, 2 if setup.loss.kind == 'bradley_terry' else 4
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
    batch = {'tokens': ints(B, S, config.data.seq_len), 'lengths': ints(B, S), 'ranks': ints(B, S),
             'margins': jax.ShapeDtypeStruct((B,), np.float32)}
    return plan.describe(config, setup.trainer, batch)


def run(config, workdir):
    """Trains in `workdir`, or goes on there; then sets the scale and measures the quality."""
    setup = prepare(config)
    trainer, train = setup.trainer, config.train
    corpus.copy_tokenizer(setup.base, workdir / 'tokenizer')
    if jax.process_index() == 0:
        chat.save_template(workdir / 'tokenizer', setup.template)
        write_atomic(workdir / bases.MODEL_FILE, json.dumps(setup.base.model, indent=1))
    compared = comparisons.make(config, setup.tokenizer, setup.template, workdir / 'data')
    source = ComparisonBatches(
        [(spec.name, compared.train[spec.name], spec.weight)
         for spec in comparisons.sources(config)],
        batch_size=train.batch_size, seed=config.seed, process_index=jax.process_index(),
        process_count=jax.process_count())
    if setup.loss.kind == 'bradley_terry' and source.num_responses > 2:
        raise InputError(f'loss.kind=bradley_terry with up to {source.num_responses} responses per '
                         'prompt; use --config.loss.kind=plackett_luce or all_pairs')
    with jax.set_mesh(trainer.mesh):
        frozen, start = _weights(config, setup)
        evaluate = make_evaluate(setup.measured, compared.held_out, trainer, frozen,
                                 batch_size=train.batch_size, most=config.eval.max_comparisons)
        if jax.process_index() == 0:
            _record(config, workdir, setup, source, compared)
        trainer.fit(workdir, source, Hooks(evaluate, lambda state: []), params=start,
                    frozen=frozen, data_fingerprint=source.fingerprint,
                    tokens_per_step=source.tokens_per_step,
                    flops_per_token=_flops_per_token(setup, source.longest))
    reward_quality.finish(config, workdir, setup, compared)


def _flops_per_token(setup, length):
    if setup.lora is None:
        return flops.train_flops_per_token(setup.model, length)
    return flops.adapter_train_flops_per_token(
        setup.model, setup.trainer.state_shape.trainable['model'], length)


def _weights(config, setup):
    """(constants, start) of a run: start() gives the first trainable parameters."""
    trainer, key = setup.trainer, rng.key(config.seed, rng.INIT)
    head_key, adapter_key = jax.random.split(key)
    if setup.lora is None:
        return {}, lambda: trainer.place(
            lambda params: heads.init_reward(head_key, setup.model, params),
            bases.load_plain(setup.base, trainer.mesh))
    stored = lora.prepare_base(bases.load_plain(setup.base, trainer.mesh), setup.lora)
    frozen = {'base': jax.device_put(stored, jax.tree.map(lambda x: x.sharding,
                                                          trainer.frozen['base']))}
    return frozen, lambda: trainer.place(
        lambda base: heads.init_reward(head_key, setup.model,
                                       lora.init_adapter(adapter_key, base, setup.lora)),
        frozen['base'])


def _record(config, workdir, setup, source, compared):
    world = {'world': world_spec(config.world).fingerprint} if 'world' in config else {}
    whole = transformer.num_params(bases.params_like(setup.model, setup.trainer.mesh))
    epochs = source.epochs(config.train.num_steps)
    rows = [row | {'share': source.shares[row['source']], 'epochs': epochs[row['source']]}
            for row in compared.rows]
    write_atomic(workdir / 'data' / 'summary.json', json.dumps(rows, indent=1))
    lineage.write_lineage(workdir, config, tokenizer=setup.tokenizer.fingerprint,
                          template=setup.template.fingerprint, data=source.fingerprint,
                          num_params=whole, num_trained=setup.trainer.num_params,
                          roles={'init_from': setup.base.role, **comparisons.makers(config)},
                          **world)
    say(f'{setup.trainer.num_params:,} parameters are trained (the model has {whole:,}), on '
        f'{sum(row["comparisons"] for row in rows):,} comparisons of up to '
        f'{source.num_responses} responses and {source.longest} tokens')
