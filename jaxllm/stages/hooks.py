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


def make_evaluate(objective, stores, param_shardings, mesh, *, seq_len, batch_size, max_rows):
    """evaluate(state) -> {'val/loss', 'val/bits_per_byte', 'val/accuracy', 'val/<source>/...'}.

    Every target of the validation splits (or of `max_rows` rows of each, 0 = all) counts once, and
    sums are divided once, so the numbers do not depend on the batch size. `objective` is what is
    measured: for nats per token, one without a z-loss.
    """
    batches = {name: EvalBatches(store.validation, seq_len=seq_len, batch_size=batch_size,
                                 max_rows=max_rows or None, process_index=jax.process_index(),
                                 process_count=jax.process_count())
               for name, store in stores.items()}
    shards = batch_shardings(next(iter(batches.values()))[0], mesh)
    run = jax.jit(make_eval_step(objective), in_shardings=(param_shardings, None, shards))

    def totals(params, source):
        sums = []
        for i in range(len(source)):
            batch = {key: jax.make_array_from_process_local_data(shards[key], x)
                     for key, x in source[i].items()}
            sums.append(run(params, {}, batch))
        # Added up as Python floats: float32 would lose digits over many batches.
        return jax.tree.map(lambda *xs: sum(map(float, xs)), *jax.device_get(sums))

    def evaluate(state):
        by_source = {name: totals(weights(state), source) for name, source in batches.items()}
        values = {}
        for name, sums in by_source.items():
            values |= {f'val/{name}/{key}': x for key, x in _means(sums).items()}
        every = jax.tree.map(lambda *xs: sum(xs), *by_source.values())
        return {f'val/{key}': x for key, x in _means(every).items()} | values
    return evaluate


def _means(sums):
    terms, metrics = sums
    mean = lambda pair: pair[0] / max(pair[1], 1e-9)
    return {'loss': sum(mean(pair) for pair in terms.values()),
            'bits_per_byte': mean(metrics['nats_per_byte']) / math.log(2),
            'accuracy': mean(metrics['accuracy'])}


def make_sample(model, tokenizer, prompts, sampling, *, seed):
    """sample(state) -> [{'prompt', 'completion'}], one record per prompt."""
    ids = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]

    def sample(state):
        if not prompts:
            return []
        out = decode.generate(weights(state), model, ids, sampling, seed=seed,
                              stop_ids=(tokenizer.eos_id,), pad_id=tokenizer.pad_id)
        return [{'prompt': prompt, 'completion': tokenizer.decode(tokens)}
                for prompt, tokens in zip(prompts, out.tokens, strict=True)]
    return sample
