"""What the loop calls of a language-modelling stage: validation per source, and samples."""

import math

import jax
import jax.numpy as jnp

from jaxllm import decode
from jaxllm.data.loader import eval_batches
from jaxllm.sharding import batch_shardings
from jaxllm.train.step import make_eval_step


def weights(state):
    """The parameters to evaluate, sample and ship: the moving average if there is one."""
    return state.ema or state.trainable


def make_evaluate(objective, stores, param_shardings, mesh, *, seq_len, batch_size, max_rows):
    """evaluate(state) -> {'val/loss', 'val/bits_per_byte', 'val/accuracy', 'val/<source>/...'}.

    Every target of the validation splits (or of `max_rows` rows of each, 0 = all) counts once, and
    sums are divided once, so the numbers do not depend on the batch size.
    """
    batches = {name: eval_batches(store.validation, seq_len=seq_len, batch_size=batch_size,
                                  max_rows=max_rows or None, process_index=jax.process_index(),
                                  process_count=jax.process_count())
               for name, store in stores.items()}
    shards = batch_shardings(next(iter(batches.values()))[0], mesh)
    run = jax.jit(make_eval_step(objective), in_shardings=(param_shardings, None, shards))

    def totals(params, source):
        total = None
        for i in range(len(source)):
            batch = {key: jax.make_array_from_process_local_data(shards[key], x)
                     for key, x in source[i].items()}
            sums = run(params, {}, batch)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        return jax.device_get(total)

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
    mean = lambda pair: float(pair[0]) / max(float(pair[1]), 1e-9)
    return {'loss': sum(mean(pair) for pair in terms.values()), 'nll': mean(metrics['nll']),
            'bits_per_byte': mean(metrics['nats_per_byte']) / math.log(2),
            'accuracy': mean(metrics['accuracy'])}


def make_sample(model, tokenizer, prompts, sampling, *, seed):
    """sample(state) -> [{'prompt', 'completion'}], one record per prompt."""
    ids = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    # A model may have more rows than the tokenizer has tokens, and at first it writes them.
    text = lambda tokens: tokenizer.decode([i for i in tokens if i < tokenizer.vocab_size])

    def sample(state):
        if not prompts:
            return []
        out = decode.generate(weights(state), model, ids, sampling, seed=seed,
                              stop_ids=(tokenizer.eos_id,), pad_id=tokenizer.pad_id)
        return [{'prompt': prompt, 'completion': text(tokens)}
                for prompt, tokens in zip(prompts, out.tokens, strict=True)]
    return sample
