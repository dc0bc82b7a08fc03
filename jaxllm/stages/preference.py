"""Direct preference training: an SFT run and pairs of answers -> an aligned model, no rollouts.

The loss is a module of `jaxllm.objectives` (DPO, IPO, KTO, ORPO, SimPO), named by config.method.
The reference is the policy as it starts; its log-probs are computed once and kept in the run.
"""

import dataclasses
import importlib
import json
from typing import Any

import jax
import numpy as np

from jaxllm import decode, rng
from jaxllm.config import check_keys, section, write_atomic
from jaxllm.data import chat
from jaxllm.data.pairs import WHICH, PairBatches
from jaxllm.errors import InputError
from jaxllm.models import lora, transformer
from jaxllm.objectives import preference
from jaxllm.sharding import ShardingConfig, make_mesh
from jaxllm.stages import base as bases
from jaxllm.stages import comparisons, corpus, dialogues, hooks, lineage, plan
from jaxllm.stages import preference_data
from jaxllm.stages import preference_scores as scores
from jaxllm.stages.reward_hooks import EvalConfig
from jaxllm.stages.sft import ComputeConfig, computed_model
from jaxllm.stages.training import Trainer
from jaxllm.stages.world import world_spec
from jaxllm.train import flops
from jaxllm.train.loop import Hooks
from jaxllm.train.progress import stage as say

OUTPUTS = 'checkpoints', 'tokenizer', bases.MODEL_FILE

_SECTIONS = ('stage', 'seed', 'init_from', 'method', 'objective', 'data', 'lora', 'compute',
             'optim', 'train', 'eval', 'sample', 'sharding', 'checkpoint', 'metrics')


@dataclasses.dataclass(frozen=True)
class DataConfig(comparisons.DataConfig):
    pairs: str        # 'best_worst' of each comparison, or 'all' that are ordered
    labelled: object  # {name: DialogueSpec} of good and bad answers, in place of comparisons

    def __post_init__(self):
        super().__post_init__()
        if self.labelled and self.comparisons:
            raise InputError('data.comparisons and data.labelled are both given; use one of them, '
                             'or write both answers of each comparison as labelled records')
        if self.pairs not in WHICH:
            raise InputError(f'data.pairs={self.pairs!r} is unknown; use one of '
                             f'{", ".join(WHICH)}')


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is known before data and weights are read; see stages.sft.Setup."""
    base: Any
    model: Any
    lora: Any
    tokenizer: Any
    template: Any
    method: Any
    trainer: Any
    objective: Any
    assemble: Any


def method_of(config):
    """The Method that config.method and config.objective name.

    Raises:
      InputError: no such module, or other settings than its own.
    """
    try:
        module = importlib.import_module(config.method)
        settings, make = module.Settings, module.method
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f'config.method={config.method!r} is no loss on pairs: {error}; expected '
                         'a module with Settings and method, e.g. jaxllm.objectives.dpo') from error
    return make(section(settings, config.objective, 'objective'))


def prepare(config):
    """Checks all of the config that needs no data. Returns the Setup."""
    check_keys(config, (*_SECTIONS, 'world') if 'world' in config else _SECTIONS)
    data = section(DataConfig, config.data, 'data')
    section(EvalConfig, config.eval, 'eval')
    section(hooks.SampleConfig, config.sample, 'sample')
    section(decode.SamplingConfig, config.sample.sampling, 'sample.sampling')
    adapter = section(lora.LoraConfig, config.lora, 'lora')
    if not adapter.rank and adapter.base != 'float32':
        raise InputError(f'lora.base={adapter.base} stores frozen weights, and lora.rank=0 trains '
                         'all of them; use lora.base=float32, or a rank')
    method = method_of(config)
    if data.labelled and not method.unpaired:
        raise InputError(f'config.data.labelled has answers to different prompts, and '
                         f'{config.method} compares two to one prompt; use '
                         'jaxllm.objectives.kto, or give comparisons')
    specs = preference_data.labelled(config) if data.labelled else comparisons.sources(config)
    if any(spec.weight != 1 for spec in specs):
        raise InputError('config.data: a source with a weight other than 1, and pairs of all '
                         'sources are shuffled together, each once an epoch; use max_records to '
                         'take less of a source')
    if method.mismatched and config.train.batch_size < 2:
        raise InputError(f'train.batch_size={config.train.batch_size}: {config.method} compares '
                         'the answers of different prompts in a batch; use at least 2')
    if config.train.z_loss:
        raise InputError(f'train.z_loss={config.train.z_loss} is read by no loss on pairs; use 0')
    if not config.init_from:
        raise InputError('config.init_from is empty; give the run of supervised fine-tuning to '
                         'start from, e.g. --config.init_from=runs/sft')
    base = bases.open_trainable(config.init_from)
    model = computed_model(base.model, section(ComputeConfig, config.compute, 'compute'))
    if model.positions == 'learned' and data.seq_len > model.max_seq_len:
        raise InputError(f'data.seq_len={data.seq_len} is beyond the {model.max_seq_len} learned '
                         'positions of the policy; use a smaller one')
    tokenizer = base.tokenizer()
    return _setup(config, base, model, adapter if adapter.rank else None, tokenizer,
                  dialogues.template_of('', base, tokenizer), method)


def _setup(config, base, model, adapter, tokenizer, template, method):
    assemble, extra = (lambda params, frozen: params), {}
    if adapter:
        mesh = make_mesh(section(ShardingConfig, config.sharding, 'sharding'))
        with jax.set_mesh(mesh):
            stored = jax.eval_shape(lambda x: lora.prepare_base(x, adapter),
                                    bases.params_like(model, mesh))
            extra['trainable'] = jax.eval_shape(
                lambda x: lora.init_adapter(jax.random.key(0), x, adapter), stored)
        extra['frozen'] = {'base': bases.placed(stored, mesh)}
        assemble = lambda params, frozen: lora.combine(frozen['base'], params, adapter)
    objective = preference.make_objective(method, model, assemble)
    trainer = Trainer(config, model, objective,
                      prepare=preference.make_prepare(method, model, assemble), **extra)
    return Setup(base, model, adapter, tokenizer, template, method, trainer, objective, assemble)


def describe(config):
    """What a run would be, as text (`--dry_run`)."""
    setup = prepare(config)
    P, L = config.train.batch_size, config.data.seq_len
    sides = 3 if setup.method.mismatched else 2
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    batch = {'tokens': ints(P, sides, L), 'lengths': ints(P, sides), 'starts': ints(P, sides),
             'completions': ints(P, sides, L), 'mask': floats(P, sides, L),
             'pair_weights': floats(P)}
    if setup.method.needs_reference:
        batch[scores.REFERENCE] = floats(P, sides)
    return plan.describe(config, setup.trainer, batch)


def run(config, workdir):
    """Trains in `workdir`, or goes on there."""
    setup = prepare(config)
    trainer, train, writer = setup.trainer, config.train, jax.process_index() == 0
    corpus.copy_tokenizer(setup.base, workdir / 'tokenizer')
    if writer:
        chat.save_template(workdir / 'tokenizer', setup.template)
        write_atomic(workdir / bases.MODEL_FILE, json.dumps(setup.base.model, indent=1))
    sets, about = preference_data.make(config, setup, workdir / 'data')
    with jax.set_mesh(trainer.mesh):
        frozen, start = _weights(config, setup)
        scorer = scores.Scorer(setup, train.batch_size)
        columns = {part: scores.reference(setup, scorer, frozen, start, pairs, part,
                                          workdir / 'data') for part, pairs in sets.items()}
        source = PairBatches(
            sets['train'], columns['train'], batch_size=train.batch_size, seed=config.seed,
            mismatched=setup.method.mismatched, process_index=jax.process_index(),
            process_count=jax.process_count())
        evaluate = scores.make_evaluate(setup, scorer, sets['held_out'], columns['held_out'],
                                        frozen, config.eval.max_comparisons)
        sample = hooks.make_sample(
            setup.model, setup.tokenizer, config.sample.prompts,
            section(decode.SamplingConfig, config.sample.sampling, 'sample.sampling'),
            seed=config.seed, encode=lambda prompt: dialogues.request(setup, prompt),
            stop_ids=chat.stop_ids(setup.template, setup.tokenizer),
            assemble=lambda params: setup.assemble(params, frozen))
        if writer:
            _record(config, workdir, setup, source, about)
        trainer.fit(
            workdir, source, Hooks(evaluate, sample), params=start, frozen=frozen,
            data_fingerprint=source.fingerprint, tokens_per_step=source.tokens_per_step,
            flops_per_token=_flops_per_token(setup, sets['train']))


def _flops_per_token(setup, pairs):
    length = int(pairs.lengths.mean())
    if setup.lora is None:
        return flops.train_flops_per_token(setup.model, length)
    return flops.adapter_train_flops_per_token(setup.model, setup.trainer.state_shape.trainable,
                                               length)


def _weights(config, setup):
    """(constants, start) of a run: start() gives the first trainable parameters."""
    trainer = setup.trainer
    if setup.lora is None:
        return {}, lambda: bases.load_plain(setup.base, trainer.mesh)
    stored = lora.prepare_base(bases.load_plain(setup.base, trainer.mesh), setup.lora)
    frozen = {'base': jax.device_put(stored, jax.tree.map(lambda x: x.sharding,
                                                          trainer.frozen['base']))}
    key = rng.key(config.seed, rng.INIT)
    return frozen, lambda: trainer.place(lambda base: lora.init_adapter(key, base, setup.lora),
                                         frozen['base'])


def _record(config, workdir, setup, source, about):
    world = {'world': world_spec(config.world).fingerprint} if 'world' in config else {}
    whole = transformer.num_params(bases.params_like(setup.model, setup.trainer.mesh))
    write_atomic(workdir / 'data' / 'summary.json', json.dumps(about['sources'], indent=1))
    write_atomic(workdir / 'data' / 'pairs.json', json.dumps(about['pairs'], indent=1))
    lineage.write_lineage(workdir, config, tokenizer=setup.tokenizer.fingerprint,
                          template=setup.template.fingerprint, data=source.fingerprint,
                          num_params=whole, num_trained=setup.trainer.num_params,
                          roles={'init_from': setup.base.role, 'ref': setup.base.role,
                                 **comparisons.makers(config)}, **world)
    say(f'{setup.trainer.num_params:,} of {whole:,} parameters are trained, on '
        f'{about["pairs"]["learned from"]:,} pairs; {about["pairs"]["held out"]:,} are held out')
