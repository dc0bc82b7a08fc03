"""What the loop calls of a language-modelling stage: validation per source, and samples."""

import dataclasses
import math

import jax

from jaxllm import decode
from jaxllm.data.loader import EvalBatches
from jaxllm.errors import InputError
from jaxllm.sharding import batch_shardings
from jaxllm.train.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    max_rows: int       # of each validation split, spread evenly over it; 0 = all

    def __post_init__(self):
        if self.max_rows < 0:
            raise InputError(f'eval.max_rows={self.max_rows} must not be negative; 0 = all')


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    prompts: tuple      # texts to continue; () = none
    sampling: object    # decode.SamplingConfig


def weights(state):
    """The parameters to evaluate, sample and ship: the moving average if there is one."""
    return state.ema or state.trainable


def make_evaluate(objective, stores, param_shardings, mesh, *, seq_len, batch_size, max_rows,
                  frozen=None, with_gap=False, apart=()):
    """evaluate(state) -> {'val/loss', 'val/bits_per_byte', 'val/accuracy', 'val/<source>/...'}.

    Every target of the validation splits (or of `max_rows` rows of each, 0 = all) counts once, and
    sums are divided once, so the numbers do not depend on the batch size. `objective` is what is
    measured: for nats per token, one without a z-loss.

    Args:
      frozen: constants of the objective.
      with_gap: also 'train_sample/loss', of as many rows of the training splits, and 'val/gap', the
        validation loss less that: over-fitting.
      apart: names of stores that are measured, and are no part of 'val/loss' and its like.
    """
    def rows(split, most):
        return EvalBatches(split, seq_len=seq_len, batch_size=batch_size, max_rows=most or None,
                           process_index=jax.process_index(), process_count=jax.process_count())

    batches = {name: rows(store.validation, max_rows) for name, store in stores.items()}
    seen = {name: rows(stores[name].train, source.num_rows) for name, source in batches.items()
            if with_gap and name not in apart}
    shards = batch_shardings(next(iter(batches.values()))[0], mesh)
    run = jax.jit(make_eval_step(objective), in_shardings=(param_shardings, None, shards))

    def totals(params, source):
        sums = []
        for i in range(len(source)):
            batch = {key: jax.make_array_from_process_local_data(shards[key], x)
                     for key, x in source[i].items()}
            sums.append(run(params, frozen or {}, batch))
        # Added up as Python floats: float32 would lose digits over many batches.
        return jax.tree.map(lambda *xs: sum(map(float, xs)), *jax.device_get(sums))

    def evaluate(state):
        by_source = {name: totals(weights(state), source) for name, source in batches.items()}
        values = {}
        for name, sums in by_source.items():
            values |= {f'val/{name}/{key}': x for key, x in _means(sums).items()}
        values |= {f'val/{key}': x for key, x in _means(_total(by_source, apart)).items()}
        if with_gap:
            trained = {name: totals(weights(state), source) for name, source in seen.items()}
            values['train_sample/loss'] = _means(_total(trained, apart))['loss']
            values['val/gap'] = values['val/loss'] - values['train_sample/loss']
        return values
    return evaluate


def _total(by_source, apart):
    counted = [sums for name, sums in by_source.items() if name not in apart]
    return jax.tree.map(lambda *xs: sum(xs), *counted)


def _means(sums):
    terms, metrics = sums
    mean = lambda pair: pair[0] / max(pair[1], 1e-9)
    return {'loss': sum(mean(pair) for pair in terms.values()),
            'bits_per_byte': mean(metrics['nats_per_byte']) / math.log(2),
            'accuracy': mean(metrics['accuracy'])}


def make_sample(model, tokenizer, prompts, sampling, *, seed, encode=None, stop_ids=(),
                assemble=None):
    """sample(state) -> [{'prompt', 'completion', 'finish'}], one record per prompt.

    Args:
      encode: prompt -> token ids; default: BOS and the text.
      stop_ids: what ends a completion; default: the end of text.
      assemble: assemble(trained parameters) -> those of the whole model; default: they are.
    """
    encode = encode or (lambda prompt: [tokenizer.bos_id, *tokenizer.encode(prompt)])
    assemble = assemble or (lambda params: params)
    ids = [encode(prompt) for prompt in prompts]

    def sample(state):
        if not prompts:
            return []
        out = decode.generate(assemble(weights(state)), model, ids, sampling, seed=seed,
                              stop_ids=stop_ids or (tokenizer.eos_id,), pad_id=tokenizer.pad_id)
        return [{'prompt': prompt, 'completion': tokenizer.decode(tokens), 'finish': finish}
                for prompt, tokens, finish in zip(prompts, out.tokens, out.finish, strict=True)]
    return sample
