"""Pre-training: text -> tokenizer -> packed tokens -> a base model."""

import json

import jax
import numpy as np

from jaxllm import decode
from jaxllm.config import check_keys, section, write_atomic
from jaxllm.data.infill import InfillConfig
from jaxllm.data.loader import PackedData
from jaxllm.errors import InputError
from jaxllm.models.config import model_config
from jaxllm.objectives.lm import lm
from jaxllm.stages import base as bases
from jaxllm.stages import cleaning, corpus, hooks, lineage, plan
from jaxllm.stages.training import Trainer
from jaxllm.stages.world import world_spec
from jaxllm.train import flops
from jaxllm.train.checkpoint import has_checkpoint
from jaxllm.train.loop import Hooks
from jaxllm.train.progress import stage as say

OUTPUTS = 'checkpoints', 'tokenizer'

_SECTIONS = ('stage', 'seed', 'init_from', 'data', 'tokenizer', 'model', 'optim', 'train', 'eval',
             'sample', 'sharding', 'checkpoint', 'metrics')


def prepare(config, resuming=False):
    """Checks all of the config that needs no data. Returns (trainer, objective, parent Base).

    A run that is resumed has its own checkpoints and needs its parent no more.
    """
    check_keys(config, (*_SECTIONS, 'world') if 'world' in config else _SECTIONS)
    data = section(corpus.DataConfig, config.data, 'data')
    section(hooks.EvalConfig, config.eval, 'eval')
    section(hooks.SampleConfig, config.sample, 'sample')
    section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer')
    section(InfillConfig, config.data.infill, 'data.infill')
    cleaning.settings(config.data)
    section(decode.SamplingConfig, config.sample.sampling, 'sample.sampling')
    corpus.source_specs(config)
    model = model_config(config.model.to_dict())
    if model.positions == 'learned' and data.seq_len > model.max_seq_len:
        raise InputError(f'data.seq_len={data.seq_len} is beyond the position table '
                         f'model.max_seq_len={model.max_seq_len}; raise the latter')
    objective = lm(model, z_loss=config.train.z_loss)
    parent = None if resuming else bases.matching_base(config)
    return Trainer(config, model, objective), objective, parent


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    trainer, _, _ = prepare(config)
    shape = config.train.batch_size, config.data.seq_len
    batch = {name: jax.ShapeDtypeStruct(shape, np.int32)
             for name in ('tokens', 'targets', 'segment_ids', 'positions')}
    batch |= {'loss_weights': jax.ShapeDtypeStruct(shape, np.float32),
              'num_bytes': jax.ShapeDtypeStruct(shape[:1], np.float32)}
    return plan.describe(config, trainer, batch)


def training_data(config, specs, stores):
    """The mixture of all sources, as batches by step."""
    return PackedData(
        [(spec.name, stores[spec.name].train, spec.weight) for spec in specs],
        seq_len=config.data.seq_len, batch_size=config.train.batch_size, seed=config.seed,
        infill=section(InfillConfig, config.data.infill, 'data.infill'),
        process_index=jax.process_index(), process_count=jax.process_count())


def run(config, workdir):
    """Trains in `workdir`, or goes on there."""
    trainer, _, parent = prepare(config, resuming=has_checkpoint(workdir / 'checkpoints'))
    model, data, train = trainer.model, config.data, config.train
    specs = corpus.source_specs(config)
    if parent:
        corpus.copy_tokenizer(parent, workdir / 'tokenizer')
    tokenizer = corpus.make_tokenizer(
        section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer'), specs,
        workdir / 'tokenizer', corpus.reader(data, workdir / 'data'))
    if tokenizer.vocab_size != model.vocab_size:
        raise InputError(f'the tokenizer has {tokenizer.vocab_size} tokens and the model '
                         f'model.vocab_size={model.vocab_size}; use '
                         f'--config.tokenizer.vocab_size={tokenizer.vocab_size}, which sets both')
    stores = corpus.make_stores(data, specs, tokenizer, workdir / 'data')
    source = training_data(config, specs, stores)
    rows = corpus.summary(specs, stores, source, train.num_steps, workdir / 'data')
    with jax.set_mesh(trainer.mesh):
        # Without the z-loss: what is reported is nats per token.
        evaluate = hooks.make_evaluate(
            lm(model), stores, trainer.param_shardings, trainer.mesh, seq_len=data.seq_len,
            batch_size=train.batch_size, max_rows=config.eval.max_rows)
        sample = hooks.make_sample(
            model, tokenizer, config.sample.prompts,
            section(decode.SamplingConfig, config.sample.sampling, 'sample.sampling'),
            seed=config.seed)
        start, roles = trainer.init_params, {}
        if parent:
            params = bases.load_plain(parent, trainer.mesh)
            start, roles = (lambda: params), {'init_from': parent.role}
        clean = cleaning.settings(data)
        roles |= lineage.makers({'tokenizer': config.tokenizer.path,
                                 'cleaning': clean.run if clean else ''})
        world = {'world': world_spec(config.world).fingerprint} if 'world' in config else {}
        if jax.process_index() == 0:
            write_atomic(workdir / 'data' / 'summary.json', json.dumps(rows, indent=1))
            lineage.write_lineage(workdir, config, tokenizer=tokenizer.fingerprint,
                                  data=source.fingerprint, num_params=trainer.num_params,
                                  roles=roles, **world)
            say(f'{trainer.num_params:,} parameters, '
                f'{sum(row["tokens"] for row in rows):,} tokens of text, '
                f'{train.num_steps * train.batch_size * data.seq_len:,} to train on')
        trainer.fit(workdir, source, Hooks(evaluate, sample), params=start, frozen={},
                    data_fingerprint=source.fingerprint,
                    tokens_per_step=train.batch_size * data.seq_len,
                    flops_per_token=flops.train_flops_per_token(model, data.seq_len))
