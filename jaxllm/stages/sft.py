"""Supervised fine-tuning: a base model and conversations -> a model that answers, and stops.

All weights are trained, or an adapter (config.lora.rank > 0) beside frozen ones.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from jaxllm import decode, rng
from jaxllm.config import check_keys, section, write_atomic
from jaxllm.data import chat
from jaxllm.data.loader import PackedData
from jaxllm.errors import InputError
from jaxllm.models import lora, transformer
from jaxllm.models.config import model_config
from jaxllm.objectives.base import assembled
from jaxllm.objectives.lm import lm
from jaxllm.sharding import ShardingConfig, make_mesh
from jaxllm.stages import base as bases
from jaxllm.stages import corpus, dialogues, hooks, lineage, plan
from jaxllm.stages.training import Trainer
from jaxllm.stages.world import world_spec
from jaxllm.train import flops
from jaxllm.train.checkpoint import has_checkpoint
from jaxllm.train.loop import Hooks
from jaxllm.train.progress import stage as say

OUTPUTS = 'checkpoints', 'tokenizer', bases.MODEL_FILE, 'stops.json'

_SECTIONS = ('stage', 'seed', 'init_from', 'fresh_weights', 'chat', 'data', 'lora', 'compute',
             'neftune_alpha', 'optim', 'train', 'eval', 'sample', 'sharding', 'checkpoint',
             'metrics')


@dataclasses.dataclass(frozen=True)
class ChatConfig:
    template: str     # of a name or FILE.jinja; '' = the base's own, or ChatML for a base without
    stop_prompts: int  # held-out prompts answered at the end, to see whether answers stop


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How the base's model is computed, and not what."""
    dtype: str
    remat: str
    impl: str          # of attention
    chunk_size: int    # of attention


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is known before data and weights are read.

    objective: of the whole run without noise, for evaluation. assemble: from trained parameters
    and constants to those of the whole model.
    """
    base: Any
    model: Any
    lora: Any
    chat: ChatConfig
    tokenizer: Any
    template: Any
    trainer: Trainer
    objective: Any
    assemble: Any


def prepare(config):
    """Checks all of the config that needs no data. Returns the Setup."""
    check_keys(config, (*_SECTIONS, 'world') if 'world' in config else _SECTIONS)
    data = section(dialogues.DataConfig, config.data, 'data')
    section(hooks.EvalConfig, config.eval, 'eval')
    section(hooks.SampleConfig, config.sample, 'sample')
    section(decode.SamplingConfig, config.sample.sampling, 'sample.sampling')
    settings = section(ChatConfig, config.chat, 'chat')
    adapter = section(lora.LoraConfig, config.lora, 'lora')
    if not adapter.rank and adapter.base != 'float32':
        raise InputError(f'lora.base={adapter.base} stores frozen weights, and lora.rank=0 trains '
                         'all of them; use lora.base=float32, or a rank')
    dialogues.sources(config)
    if not config.init_from:
        raise InputError('config.init_from is empty; give the base to fine-tune: a run directory, '
                         'a FILE.gguf or a folder of weights, e.g. --config.init_from=runs/base')
    base = bases.open_trainable(config.init_from)
    model = computed_model(base.model, section(ComputeConfig, config.compute, 'compute'))
    if model.positions == 'learned' and data.seq_len > model.max_seq_len:
        raise InputError(f'data.seq_len={data.seq_len} is beyond the {model.max_seq_len} learned '
                         'positions of the base; use a smaller one')
    tokenizer = base.tokenizer()
    template = dialogues.template_of(settings.template, base, tokenizer)
    return _setup(config, base, model, adapter if adapter.rank else None, settings, tokenizer,
                  template)


def computed_model(settings, compute):
    """The ModelConfig of a model on disk (nested settings), computed as a ComputeConfig says."""
    attention = settings['attention'] | {'impl': compute.impl, 'chunk_size': compute.chunk_size}
    return model_config(settings | {'dtype': compute.dtype, 'remat': compute.remat,
                                    'attention': attention})


def _setup(config, base, model, adapter, settings, tokenizer, template):
    if config.neftune_alpha < 0:
        raise InputError(f'neftune_alpha={config.neftune_alpha} must not be negative; 0 = no noise')
    whole = lm(model, z_loss=config.train.z_loss, neftune_alpha=config.neftune_alpha)
    if adapter is None:
        trainer = Trainer(config, model, whole)
        return Setup(base, model, None, settings, tokenizer, template, trainer, lm(model),
                     lambda params, frozen: params)
    if config.fresh_weights:
        raise InputError('fresh_weights=True with an adapter: an adapter on random weights learns '
                         'next to nothing; train all weights with --config.lora.rank=0')
    mesh = make_mesh(section(ShardingConfig, config.sharding, 'sharding'))
    with jax.set_mesh(mesh):
        stored = jax.eval_shape(lambda x: lora.prepare_base(x, adapter),
                                bases.params_like(model, mesh))
        trained = jax.eval_shape(lambda x: lora.init_adapter(jax.random.key(0), x, adapter), stored)
    assemble = lambda params, frozen: lora.combine(frozen['base'], params, adapter)
    trainer = Trainer(config, model, assembled(whole, assemble), trainable=trained,
                      frozen={'base': bases.placed(stored, mesh)})
    return Setup(base, model, adapter, settings, tokenizer, template, trainer,
                 assembled(lm(model), assemble), assemble)


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    setup = prepare(config)
    shape = config.train.batch_size, config.data.seq_len
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32)
             for name in ('tokens', 'targets', 'segment_ids', 'positions')}
    batch |= {'loss_weights': jax.ShapeDtypeStruct(shape, np.float32),
              'num_bytes': jax.ShapeDtypeStruct(shape[:1], np.float32)}
    return plan.describe(config, setup.trainer, batch)


def run(config, workdir):
    """Trains in `workdir`, or goes on there."""
    resuming = has_checkpoint(workdir / 'checkpoints')
    setup = prepare(config)
    trainer, data, train = setup.trainer, config.data, config.train
    corpus.copy_tokenizer(setup.base, workdir / 'tokenizer')
    if jax.process_index() == 0:
        chat.save_template(workdir / 'tokenizer', setup.template)
        write_atomic(workdir / bases.MODEL_FILE, json.dumps(setup.base.model, indent=1))
    stores, replay = dialogues.make_stores(config, setup, workdir / 'data')
    every = stores | replay
    source = PackedData(
        [(name, every[name].train, weight) for name, weight in dialogues.weights(config).items()],
        seq_len=data.seq_len, batch_size=train.batch_size, seed=config.seed,
        process_index=jax.process_index(), process_count=jax.process_count())
    rows = dialogues.summary(config, every, source, workdir / 'data')
    with jax.set_mesh(trainer.mesh):
        frozen, start = _weights(config, setup, resuming)
        evaluate = hooks.make_evaluate(
            setup.objective, every, trainer.param_shardings, trainer.mesh, seq_len=data.seq_len,
            batch_size=train.batch_size, max_rows=config.eval.max_rows, frozen=frozen,
            with_gap=True, apart=tuple(replay))
        sample = hooks.make_sample(
            setup.model, setup.tokenizer, config.sample.prompts,
            section(decode.SamplingConfig, config.sample.sampling, 'sample.sampling'),
            seed=config.seed, encode=lambda prompt: dialogues.request(setup, prompt),
            stop_ids=chat.stop_ids(setup.template, setup.tokenizer),
            assemble=lambda params: setup.assemble(params, frozen))
        if jax.process_index() == 0:
            _record(config, workdir, setup, source, rows)
        state = trainer.fit(
            workdir, source, Hooks(evaluate, sample), params=start, frozen=frozen,
            data_fingerprint=source.fingerprint,
            tokens_per_step=train.batch_size * data.seq_len,
            flops_per_token=_flops_per_token(setup, data.seq_len))
        stops = dialogues.stop_check(setup, setup.assemble(hooks.weights(state), frozen), stores,
                                     config)
    if jax.process_index() == 0:
        write_atomic(workdir / 'stops.json', json.dumps(stops, indent=1, ensure_ascii=False))
        say(stops['text'])


def _flops_per_token(setup, seq_len):
    if setup.lora is None:
        return flops.train_flops_per_token(setup.model, seq_len)
    return flops.adapter_train_flops_per_token(setup.model, setup.trainer.state_shape.trainable,
                                               seq_len)


def _weights(config, setup, resuming):
    """(constants, start) of a run: start() gives the first trainable parameters."""
    trainer = setup.trainer
    if setup.lora is None:
        if config.fresh_weights:
            return {}, trainer.init_params
        return {}, lambda: bases.load_plain(setup.base, trainer.mesh)
    stored = lora.prepare_base(bases.load_plain(setup.base, trainer.mesh), setup.lora)
    frozen = {'base': jax.device_put(stored, jax.tree.map(lambda x: x.sharding,
                                                          trainer.frozen['base']))}
    key = rng.key(config.seed, rng.INIT)
    return frozen, lambda: trainer.place(lambda base: lora.init_adapter(key, base, setup.lora),
                                         frozen['base'])


def _record(config, workdir, setup, source, rows):
    world = {'world': world_spec(config.world).fingerprint} if 'world' in config else {}
    whole = transformer.num_params(bases.params_like(setup.model, setup.trainer.mesh))
    write_atomic(workdir / 'data' / 'summary.json', json.dumps(rows, indent=1))
    lineage.write_lineage(workdir, config, tokenizer=setup.tokenizer.fingerprint,
                          template=setup.template.fingerprint, data=source.fingerprint,
                          num_params=whole, num_trained=setup.trainer.num_params,
                          roles={'init_from': setup.base.role}, **world)
    say(f'{setup.trainer.num_params:,} of {whole:,} parameters are trained, on '
        f'{sum(row["documents"] for row in rows):,} conversations and texts')
