"""How the next token is chosen: temperature, truncation, repetition penalty, and its log-probs."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import InputError


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Truncations apply in the order top_k, top_p, min_p, each to what the one before has left.

    Of tokens whose probability ties with the last one kept, all are kept.
    """
    max_new_tokens: int = 128
    temperature: float = 1.0         # 0 = greedy: always the likeliest token
    top_k: int = 0                   # keep the k likeliest tokens; 0 = off
    top_p: float = 1.0               # keep the fewest likeliest tokens with this mass; 1 = off
    min_p: float = 0.0               # keep tokens of at least min_p * the largest probability
    repetition_penalty: float = 1.0  # > 1 makes tokens of the prompt and the text rarer; 1 = off

    def __post_init__(self):
        self._need('max_new_tokens', self.max_new_tokens >= 1, 'at least 1')
        self._need('temperature', 0 <= self.temperature < math.inf, '0 (greedy) or more, e.g. 0.8')
        self._need('top_k', self.top_k >= 0, '0 (off) or more, e.g. 50')
        self._need('top_p', 0 < self.top_p <= 1, 'above 0 and at most 1 (off), e.g. 0.95')
        self._need('min_p', 0 <= self.min_p <= 1, 'from 0 (off) to 1, e.g. 0.05')
        self._need('repetition_penalty', 0 < self.repetition_penalty < math.inf,
                   'above 0; 1 is off, e.g. 1.1')

    def _need(self, name, true, expected):
        if not true:
            raise InputError(f'sampling.{name}={getattr(self, name)} is not usable; '
                             f'it must be {expected}')

    @property
    def switches(self):
        cut = self.temperature > 0
        return Switches(not cut, cut and self.top_k > 0, cut and self.top_p < 1,
                        cut and self.min_p > 0, self.repetition_penalty != 1)

    @property
    def numbers(self):
        return Numbers(np.float32(self.temperature or 1), np.float32(self.top_k),
                       np.float32(self.top_p), np.float32(self.min_p),
                       np.float32(self.repetition_penalty), np.int32(self.max_new_tokens))


class Switches(NamedTuple):
    """What a compiled loop depends on; all else about sampling is traced."""
    greedy: bool
    top_k: bool
    top_p: bool
    min_p: bool
    penalty: bool


class Numbers(NamedTuple):
    """Scalars of a SamplingConfig; traced, so that other values compile nothing anew."""
    temperature: jax.Array  # 1 where the choice is greedy
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    penalty: jax.Array
    max_new_tokens: jax.Array  # int32, the others float32


class Choice(NamedTuple):
    """tokens_B; log p of them at the temperature, whole distribution and sampled one; log p_BV."""
    tokens_B: jax.Array
    logprobs_B: jax.Array
    sample_logprobs_B: jax.Array
    logprobs_BV: jax.Array


def choose(logits_BV, keys_B, seen_BV, numbers, switches):
    """Draws one token per row.

        p = softmax(logits / T);  q = softmax(truncate(penalise(logits) / T));  token ~ q

    Args:
      logits_BV: float32.
      keys_B: one PRNG key per row: a row's token does not depend on its neighbours.
      seen_BV: bool, tokens of the prompt and the text so far; None without a penalty.
      numbers, switches: see above.

    Returns:
      Choice; log-probs are float32. `logprobs_B` is log p (what a trainer at this temperature
      computes), `sample_logprobs_B` is log q. A greedy q has all its mass on one token: 0.
    """
    logprobs_BV = jax.nn.log_softmax(logits_BV / numbers.temperature)
    if switches.penalty:
        logits_BV = penalise(logits_BV, seen_BV, numbers.penalty)
    if switches.greedy:
        tokens_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        sampled_B = jnp.zeros(tokens_B.shape, jnp.float32)
    else:
        kept_BV = truncate(logits_BV / numbers.temperature, numbers, switches)
        log_q_BV = jax.nn.log_softmax(kept_BV)
        tokens_B = draw(jnp.exp(log_q_BV), keys_B)
        sampled_B = _at(log_q_BV, tokens_B)
    return Choice(tokens_B, _at(logprobs_BV, tokens_B), sampled_B, logprobs_BV)


def draw(probs_BV, keys_B):
    """A token of each row with its probability, from one random number: the first token at which
    the running sum of probabilities exceeds it.

    The sum runs over blocks of the vocabulary, then within one of them. (The Gumbel trick takes a
    random number for each token of the vocabulary.) No token of probability 0 is drawn.
    """
    B, V = probs_BV.shape
    size = 1 << max(0, math.ceil(math.log2(V) / 2))
    blocks = -(-V // size)
    probs_BNM = jnp.pad(probs_BV, ((0, 0), (0, blocks * size - V))).reshape(B, blocks, size)
    sums_BN = probs_BNM.sum(axis=2)
    uniform_B1 = jax.vmap(jax.random.uniform)(keys_B)[:, None]
    block_B, rest_B1 = _first_beyond(sums_BN, uniform_B1 * sums_BN.sum(axis=1, keepdims=True))
    in_block_BM = jnp.take_along_axis(probs_BNM, block_B[:, None, None], axis=1)[:, 0]
    index_B, _ = _first_beyond(in_block_BM, rest_B1)
    return (block_B * size + index_B).astype(jnp.int32)


def _first_beyond(weights_BN, target_B1):
    """(first index with a weight whose running sum exceeds the target, what the target is beyond
    the sum before it). Where rounding leaves none, the last index with a weight."""
    running_BN = jnp.cumsum(weights_BN, axis=1)
    some_BN, index_N = weights_BN > 0, jnp.arange(weights_BN.shape[1])[None, :]
    first_B = jnp.min(jnp.where(some_BN & (running_BN > target_B1), index_N, index_N.size), axis=1)
    last_B = jnp.max(jnp.where(some_BN, index_N, 0), axis=1)
    found_B1 = jnp.minimum(first_B, last_B)[:, None]
    before_B1 = jnp.take_along_axis(running_BN - weights_BN, found_B1, axis=1)
    return found_B1[:, 0], target_B1 - before_B1


def _at(x_BV, tokens_B):
    return jnp.take_along_axis(x_BV, tokens_B[:, None], axis=1)[:, 0]


def penalise(logits_BV, seen_BV, penalty):
    """Positive logits of seen tokens are divided by `penalty`, negative ones multiplied.

    Ref: Keskar et al. 2019, CTRL (arXiv 1909.05858), 4.1; there all logits are divided, which
    makes tokens with a negative one likelier.
    """
    weaker_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return jnp.where(seen_BV, weaker_BV, logits_BV)


def truncate(scaled_BV, numbers, switches):
    """-inf for all tokens but those that top-k, top-p and min-p keep.

    Args:
      scaled_BV: logits over the temperature, float32.

    Ref: Holtzman 2019 (arXiv 1904.09751) for top-p, Nguyen 2024 (arXiv 2407.01082) for min-p.
    """
    if switches.top_k:
        scaled_BV = _keep_likeliest(scaled_BV, jnp.ones_like(scaled_BV), numbers.top_k)
    if switches.top_p:
        scaled_BV = _keep_likeliest(scaled_BV, jax.nn.softmax(scaled_BV), numbers.top_p)
    if switches.min_p:
        least_B1 = scaled_BV.max(axis=-1, keepdims=True) + jnp.log(numbers.min_p)
        scaled_BV = jnp.where(scaled_BV >= least_B1, scaled_BV, -jnp.inf)
    return scaled_BV


def _keep_likeliest(x_BV, weights_BV, total):
    """-inf below the highest threshold at which what is kept weighs at least `total`.

    The threshold is found bit by bit, in 32 sums over the vocabulary and without sorting it: the
    bits of floats, with those of negative ones flipped, are ordered as the floats are.
    """
    bits_BV = jax.lax.bitcast_convert_type(x_BV, jnp.uint32)
    top = jnp.uint32(1 << 31)
    order_BV = jnp.where(bits_BV >= top, ~bits_BV, bits_BV | top)

    def set_bit(i, threshold_B1):
        tried_B1 = threshold_B1 | (top >> i.astype(jnp.uint32))
        kept_B1 = jnp.sum(jnp.where(order_BV >= tried_B1, weights_BV, 0.0), 1, keepdims=True)
        return jnp.where(kept_B1 >= total, tried_B1, threshold_B1)

    start_B1 = jnp.zeros((x_BV.shape[0], 1), jnp.uint32)
    threshold_B1 = jax.lax.fori_loop(0, 32, set_bit, start_B1)
    return jnp.where(order_BV >= threshold_B1, x_BV, -jnp.inf)
