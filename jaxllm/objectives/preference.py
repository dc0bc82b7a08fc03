"""What the direct preference losses share: their contract, and log-probs of both answers of a pair.

A loss is a module with

    Settings          frozen dataclass, the leaves of config.objective
    method(settings)  -> Method

and a config names it by its path. A batch has P pairs, the better answer first, in arrays with a
second axis of 2 (3 for a method with `mismatched`):
    tokens [P, 2, L], lengths, starts [P, 2]   prompt and answer; the prompt's last token
    completions, mask [P, 2, T]                the answer's tokens, its end included
    ref_logprobs [P, 2]                        sum of log-probs of the answer under the reference
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.objectives import policy
from jaxllm.objectives.base import LossSums, Term


_TIE = 1e-3  # nats: sums of many log-probs in float32 are no closer


@dataclasses.dataclass(frozen=True)
class Method:
    """A loss on pairs.

    losses: losses(pairs, batch) -> [P] float32. needs_reference: it reads `ref_logprobs`.
    mismatched: each pair has a third row, its prompt with the answer to another one.
    prepare: prepare(pairs, batch) -> {name: array}, constants of the global batch, added to it.
    unpaired: it looks at each answer by itself, so that the two of a pair may have two prompts.
    """
    losses: Callable
    needs_reference: bool = True
    mismatched: bool = False
    prepare: Callable | None = None
    unpaired: bool = False


class Pairs(NamedTuple):
    """Per answer, [P, rows]: the sum of log-probs, the number of tokens, and log(pi / ref) summed
    (0 without a reference)."""
    logprobs: jax.Array
    tokens: jax.Array
    ratios: jax.Array

    @property
    def mean_logprobs(self):
        return self.logprobs / self.tokens


def read_pairs(params, model, batch, chunk_size=512):
    """The Pairs of a batch under `params`: one forward pass over all answers."""
    rows = {name: batch[name].reshape(-1, *batch[name].shape[2:]) for name in (
        'tokens', 'lengths', 'starts', 'completions', 'mask')}
    logprobs_BT, _ = policy.completion_logprobs(params, model, {
        'tokens_BL': rows['tokens'], 'lengths_B': rows['lengths'], 'starts_B': rows['starts'],
        'completions_BT': rows['completions']}, temperature=1.0, chunk_size=chunk_size)
    shape = batch['lengths'].shape
    sums = policy.sequence_sum(logprobs_BT, rows['mask']).reshape(shape)
    tokens = jnp.maximum(batch['mask'].sum(axis=-1), 1.0)
    ratios = sums - batch['ref_logprobs'] if 'ref_logprobs' in batch else jnp.zeros_like(sums)
    return Pairs(sums, tokens, ratios)


def loss_sums(method, pairs, batch):
    """LossSums of Pairs; `batch` has pair_weights and whatever the method prepared.

    Metrics beside the loss, all means over pairs but the last: pair_accuracy, how often the better
    answer has the greater score (log(pi / ref) summed, or the mean log-prob without a reference; a
    tie is half right), margin, chosen_score and rejected_score; likelier, how often the better
    answer has the greater log-prob; chosen_logprob and rejected_logprob, sums over an answer;
    chosen_nll, nats per token.
    """
    weights_P = batch['pair_weights']
    count = weights_P.sum()
    mean = lambda x_P: (jnp.sum(weights_P * x_P), count)
    first = lambda x: jnp.where(jnp.abs(x[:, 0] - x[:, 1]) < _TIE, 0.5,
                                (x[:, 0] > x[:, 1]).astype(jnp.float32))
    score = pairs.ratios if method.needs_reference else pairs.mean_logprobs
    logprobs = pairs.logprobs
    metrics = {'pair_accuracy': mean(first(score)), 'likelier': mean(first(logprobs)),
               'margin': mean(score[:, 0] - score[:, 1]),
               'chosen_score': mean(score[:, 0]), 'rejected_score': mean(score[:, 1]),
               'chosen_logprob': mean(logprobs[:, 0]), 'rejected_logprob': mean(logprobs[:, 1]),
               'chosen_nll': (-jnp.sum(weights_P * logprobs[:, 0]),
                              jnp.sum(weights_P * pairs.tokens[:, 0]))}
    return LossSums({'preference': Term(mean(method.losses(pairs, batch))[0], count)},
                    jax.lax.stop_gradient(metrics))


def make_objective(method, model, assemble, chunk_size=512):
    """The objective of `base` for a Method; assemble(trainable, frozen) -> parameters."""
    def objective(trainable, frozen, batch, rng):
        del rng
        both = {name: x[:, :2] if x.ndim > 1 else x for name, x in batch.items()}
        pairs = read_pairs(assemble(trainable, frozen), model, both, chunk_size)
        return loss_sums(method, pairs, batch)
    return objective


def make_prepare(method, model, assemble, chunk_size=512):
    """prepare(trainable, frozen, batch) for the train step, or None."""
    if method.prepare is None:
        return None

    def prepare(trainable, frozen, batch):
        pairs = read_pairs(assemble(trainable, frozen), model, batch, chunk_size)
        return batch | method.prepare(pairs, batch)
    return prepare


def whole_set(method, pairs, batch):
    """LossSums of a whole set of Pairs at once, its statistics those of all of it: however the set
    was cut into batches to get the log-probs, the result is the same."""
    prepared = method.prepare(pairs, batch) if method.prepare else {}
    return loss_sums(method, Pairs(*(x[:, :2] for x in pairs)), batch | prepared)
