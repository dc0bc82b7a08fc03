"""Pre-training: text -> tokenizer -> packed tokens -> a base model."""

import json

import jax
import numpy as np

from jaxllm import decode
from jaxllm.config import section, write_atomic
from jaxllm.data import tokenizer as tokenizers
from jaxllm.data.infill import InfillConfig
from jaxllm.data.loader import PackedData
from jaxllm.errors import InputError
from jaxllm.models.config import model_config
from jaxllm.objectives.lm import lm
from jaxllm.stages import corpus, hooks, lineage, plan
from jaxllm.stages.training import Trainer
from jaxllm.train import flops
from jaxllm.train.checkpoint import load_params
from jaxllm.train.loop import Hooks
from jaxllm.train.progress import stage as say


def prepare(config):
    """Checks all of the config that needs no data. Returns (trainer, objective, parent run)."""
    model = model_config(config.model.to_dict())
    if model.positions == 'learned' and config.data.seq_len > model.max_seq_len:
        raise InputError(f'data.seq_len={config.data.seq_len} is beyond the position table '
                         f'model.max_seq_len={model.max_seq_len}; raise the latter')
    section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer')
    section(InfillConfig, config.data.infill, 'data.infill')
    section(decode.SamplingConfig, config.sample.sampling, 'sample.sampling')
    corpus.source_specs(config.data)
    objective = lm(model, z_loss=config.train.z_loss)
    return Trainer(config, model, objective), objective, lineage.parent_of(config)


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
    trainer, objective, parent = prepare(config)
    model, data, train = trainer.model, config.data, config.train
    specs = corpus.source_specs(data)
    if parent:
        tokenizer = tokenizers.load(parent / 'tokenizer')
        tokenizer.save(workdir / 'tokenizer')
    else:
        tokenizer = corpus.make_tokenizer(
            section(corpus.TokenizerConfig, config.tokenizer, 'tokenizer'), specs,
            workdir / 'tokenizer')
    if tokenizer.vocab_size > model.vocab_size:
        raise InputError(f'the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size='
                         f'{model.vocab_size} is too small; use '
                         f'--config.model.vocab_size={tokenizer.vocab_size}')
    stores = corpus.make_stores(data, specs, tokenizer, workdir / 'data')
    source = training_data(config, specs, stores)
    rows = corpus.summary(specs, stores, source, train.num_steps, workdir / 'data')
    if jax.process_index() == 0:
        write_atomic(workdir / 'data' / 'summary.json', json.dumps(rows, indent=1))
        lineage.write_lineage(workdir, config, tokenizer=tokenizer.fingerprint,
                              data=source.fingerprint, num_params=trainer.num_params,
                              roles={'init_from': parent})
        say(f'{trainer.num_params:,} parameters, '
            f'{sum(row["tokens"] for row in rows):,} tokens of text, '
            f'{train.num_steps * train.batch_size * data.seq_len:,} to train on')
    with jax.set_mesh(trainer.mesh):
        evaluate = hooks.make_evaluate(
            objective, stores, trainer.param_shardings, trainer.mesh, seq_len=data.seq_len,
            batch_size=train.batch_size, max_rows=config.eval.max_rows)
        sample = hooks.make_sample(
            model, tokenizer, list(config.sample.prompts),
            section(decode.SamplingConfig, config.sample.sampling, 'sample.sampling'),
            seed=config.seed)
        start = (lambda: load_params(parent / 'checkpoints', trainer.params_like())[0]
                 ) if parent else trainer.init_params
        trainer.fit(workdir, source, Hooks(evaluate, sample), params=start, frozen={},
                    data_fingerprint=source.fingerprint,
                    tokens_per_step=train.batch_size * data.seq_len,
                    flops_per_token=flops.train_flops_per_token(model, data.seq_len))
