"""Direct preference training: an SFT run and pairs of answers -> an aligned model, without rollouts.

The loss is a module of `jaxllm.objectives` (DPO, IPO, KTO, ORPO, SimPO), named by config.method. The
reference is the policy as it starts; its log-probs are computed once and kept in the run.
"""

import collections
import dataclasses
import importlib
import json
from typing import Any

import jax
import numpy as np

from jaxllm import decode, rng
from jaxllm.config import check_keys, section, write_atomic
from jaxllm.data import chat
from jaxllm.data.pairs import WHICH, PairBatches, encode_pairs
from jaxllm.errors import InputError
from jaxllm.models import lora, transformer
from jaxllm.objectives import preference
from jaxllm.rl.rollout import InChunks
from jaxllm.sharding import ShardingConfig, batch_shardings, make_mesh
from jaxllm.stages import base as bases
from jaxllm.stages import comparisons, corpus, dialogues, hooks, lineage, plan
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
_REFERENCE = 'ref_logprobs'


@dataclasses.dataclass(frozen=True)
class DataConfig(comparisons.DataConfig):
    pairs: str    # 'best_worst' of each comparison, or 'all' that are ordered

    def __post_init__(self):
        super().__post_init__()
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
    comparisons.sources(config)
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
        batch[_REFERENCE] = floats(P, sides)
    return plan.describe(config, setup.trainer, batch)


def run(config, workdir):
    """Trains in `workdir`, or goes on there."""
    setup = prepare(config)
    trainer, train, writer = setup.trainer, config.train, jax.process_index() == 0
    corpus.copy_tokenizer(setup.base, workdir / 'tokenizer')
    if writer:
        chat.save_template(workdir / 'tokenizer', setup.template)
        write_atomic(workdir / bases.MODEL_FILE, json.dumps(setup.base.model, indent=1))
    sets, rows = _pairs(config, setup, workdir / 'data')
    with jax.set_mesh(trainer.mesh):
        frozen, start = _weights(config, setup)
        batches = {}
        for part, pairs in sets.items():
            columns = _reference(setup, frozen, pairs, part, workdir / 'data', train.batch_size)
            batches[part] = PairBatches(
                pairs, columns, batch_size=train.batch_size if part == 'train' else 1,
                seed=config.seed, mismatched=setup.method.mismatched,
                process_index=jax.process_index() if part == 'train' else 0,
                process_count=jax.process_count() if part == 'train' else 1)
        source = batches['train']
        sample = hooks.make_sample(
            setup.model, setup.tokenizer, config.sample.prompts,
            section(decode.SamplingConfig, config.sample.sampling, 'sample.sampling'),
            seed=config.seed, encode=lambda prompt: dialogues.request(setup, prompt),
            stop_ids=chat.stop_ids(setup.template, setup.tokenizer),
            assemble=lambda params: setup.assemble(params, frozen))
        if writer:
            _record(config, workdir, setup, source, rows)
        length = sets['train'].tokens.shape[-1]
        trainer.fit(
            workdir, source,
            Hooks(_make_evaluate(setup, batches['held_out'], len(sets['held_out']), frozen,
                                 config), sample),
            params=start, frozen=frozen, data_fingerprint=source.fingerprint,
            tokens_per_step=2 * train.batch_size * length,
            flops_per_token=flops.train_flops_per_token(setup.model, length))


def _pairs(config, setup, folder):
    """({'train', 'held_out'}: PairSet, rows about them)."""
    compared = comparisons.make(config, setup.tokenizer, setup.template, folder)
    counts, sets = collections.Counter(), {}
    for part in comparisons.PARTS:
        found = [c for row in compared.rows for c in compared.comparisons(row['source'], part)]
        sets[part] = encode_pairs(found, setup.template, setup.tokenizer, config.data.pairs, counts)
        if not len(sets[part]):
            raise InputError(f'no pair is left in {part}: all tie or are the same tokens; give '
                             'other comparisons')
    rows = [{'part': part, 'pairs': len(pairs), 'longest': pairs.tokens.shape[-1]}
            for part, pairs in sets.items()]
    return sets, [*rows, dict(counts)]


def _weights(config, setup):
    """(constants, start) of a run: start() gives the first trainable parameters."""
    trainer = setup.trainer
    plain = bases.load_plain(setup.base, trainer.mesh)
    if setup.lora is None:
        return {}, lambda: trainer.place(lambda x: jax.tree.map(lambda leaf: leaf + 0, x), plain)
    stored = lora.prepare_base(plain, setup.lora)
    frozen = {'base': jax.device_put(stored, jax.tree.map(lambda x: x.sharding,
                                                          trainer.frozen['base']))}
    key = rng.key(config.seed, rng.INIT)
    return frozen, lambda: trainer.place(lambda base: lora.init_adapter(key, base, setup.lora),
                                         frozen['base'])


def _reference(setup, frozen, pairs, part, folder, rows):
    """{'ref_logprobs': [N, 2 or 3]} of the model as it starts, from `folder` where they are."""
    if not setup.method.needs_reference:
        return {}
    about = f'{pairs.fingerprint}/{setup.base.fingerprint}/{setup.base.step}/' \
            f'{setup.template.fingerprint}/{setup.method.mismatched}'
    file = folder / f'reference-{part}.npz'
    if file.exists():
        with np.load(file, allow_pickle=False) as stored:
            if str(stored['about']) == about:
                return {_REFERENCE: stored[_REFERENCE]}
    say(f'log-probs of the reference for {len(pairs)} pairs ({part}) ...')
    params = frozen['base'] if setup.lora else bases.load_plain(setup.base, setup.trainer.mesh)
    run = InChunks(lambda params, batch: preference.read_pairs(params, setup.model, batch).logprobs,
                   rows, setup.trainer.mesh)
    found = np.concatenate([
        run(params, batch=pairs.rows(np.arange(first, min(first + rows, len(pairs))),
                                     setup.method.mismatched))
        for first in range(0, len(pairs), rows)])
    if jax.process_index() == 0:
        partial = file.with_name(f'{file.stem}.partial.npz')
        np.savez(partial, about=np.array(about), **{_REFERENCE: found})
        partial.replace(file)
    return {_REFERENCE: found}


def _make_evaluate(setup, batches, count, frozen, config):
    """evaluate(state) -> {'val/loss', 'val/accuracy', ...} over held-out pairs, each once."""
    most = min(config.eval.max_comparisons or count, count)
    wanted = np.arange(most) * count // most
    rows = config.train.batch_size

    def one(params, frozen, batch):
        prepare = preference.make_prepare(setup.method, setup.model, setup.assemble)
        batch = prepare(params, frozen, batch) if prepare else batch
        sums = setup.objective(params, frozen, batch, jax.random.key(0))
        return sums.terms['preference'][:2], sums.metrics

    run = jax.jit(one)
    place = lambda batch: jax.device_put(batch, batch_shardings(batch, setup.trainer.mesh))

    def evaluate(state):
        totals = []
        for first in range(0, most, rows):
            part = wanted[first:first + rows]
            batch = batches.batch(np.resize(part, rows))
            batch['pair_weights'][len(part):] = 0.0
            totals.append(jax.device_get(run(hooks.weights(state), frozen, place(batch))))
        (loss, weight), metrics = jax.tree.map(lambda *xs: sum(map(float, xs)), *totals)
        return {'val/loss': loss / weight} | {
            f'val/{name}': total / max(of, 1e-9) for name, (total, of) in metrics.items()}
    return evaluate


def _record(config, workdir, setup, source, rows):
    world = {'world': world_spec(config.world).fingerprint} if 'world' in config else {}
    whole = transformer.num_params(bases.params_like(setup.model, setup.trainer.mesh))
    write_atomic(workdir / 'data' / 'pairs.json', json.dumps(rows, indent=1))
    lineage.write_lineage(workdir, config, tokenizer=setup.tokenizer.fingerprint,
                          template=setup.template.fingerprint, data=source.fingerprint,
                          num_params=whole, num_trained=setup.trainer.num_params,
                          roles={'init_from': setup.base.role, 'ref': setup.base.role}, **world)
    say(f'{setup.trainer.num_params:,} of {whole:,} parameters are trained, on {rows[0]["pairs"]:,} '
        f'pairs; {rows[1]["pairs"]:,} are held out')
