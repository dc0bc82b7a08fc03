"""The compiled part of generation: feed the prompts, then one loop that writes a token per step.

Each function is compiled once per (model, shapes, switches); T is the room for new tokens, S the
number of stop tokens and A that of the candidates kept per step.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxllm.decode.sampling import choose
from jaxllm.models import cache as caches
from jaxllm.models import stack, transformer
from jaxllm.sharding import constrain


# The fields of a State with a row for each prompt, beside the cache.
_BY_ROW = ('keys_B', 'tokens_B', 'done_B', 'counts_B', 'out', 'seen_BV')


class Plan(NamedTuple):
    """Static: the model, cache length, room for new tokens, sampling switches, candidates, and the
    number of ids that may be written."""
    cfg: Any
    cache_length: int
    room: int
    switches: Any
    top_candidates: int
    vocab_size: int


@flax.struct.dataclass
class State:
    """Between two steps. Donated to the loop."""
    cache: caches.Cache
    keys_B: jax.Array    # PRNG key of each row, folded with the number of its tokens
    tokens_B: jax.Array  # the last token of each row, not yet in the cache
    done_B: jax.Array
    step: jax.Array      # [] int32: tokens computed per row, whether it was done or not
    counts_B: jax.Array  # tokens written
    out: dict            # {'tokens', 'logprobs', 'sample_logprobs'}_BT, {'ids', 'id_logprobs'}_BTA
    seen_BV: Any         # tokens of prompt and text, or None where no penalty needs them


@jax.jit
def row_keys(key, ids_B):
    """The PRNG key of each row."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, ids_B)


@functools.partial(jax.jit, static_argnames='plan')
def start(params, tokens_PL, lengths_P, real_B, keys_B, stop_ids_S, numbers, *, plan):
    """Feeds right-padded prompts and writes the first token of each row.

    Args:
      tokens_PL: prompts, int32, each of B / P neighbouring rows; lengths_P: of each, at least 1.
      real_B: bool; other rows fill up the batch and are done at once.
      keys_B: PRNG key of each row.
      stop_ids_S: int32, -1 = none.
    """
    cfg, L, B = plan.cfg, tokens_PL.shape[1], len(real_B)
    params = transformer.compute_params(params, cfg)
    hidden_PD, cache = caches.prefill(params, cfg, tokens_PL, lengths_P, plan.cache_length)
    hidden_BD, tokens_BL, lengths_B = (stack.of_rows(x, B)
                                       for x in (hidden_PD, tokens_PL, lengths_P))
    cache = caches.placed(caches.unrolled(cache.of_rows(B), cfg))
    out = {'tokens': jnp.zeros((B, plan.room), jnp.int32),
           'logprobs': jnp.zeros((B, plan.room), jnp.float32),
           'sample_logprobs': jnp.zeros((B, plan.room), jnp.float32)}
    if plan.top_candidates:
        shape = B, plan.room, plan.top_candidates
        out |= {'ids': jnp.zeros(shape, jnp.int32), 'id_logprobs': jnp.zeros(shape, jnp.float32)}
    seen_BV = None
    if plan.switches.penalty:
        rows_BL = jnp.broadcast_to(jnp.arange(B)[:, None], (B, L))
        valid_BL = jnp.arange(L)[None] < lengths_B[:, None]
        # Padding is sent beyond the vocabulary, where it is dropped.
        ids_BL = jnp.where(valid_BL, tokens_BL, cfg.vocab_size)
        seen_BV = jnp.zeros((B, cfg.vocab_size), bool).at[rows_BL, ids_BL].set(True, mode='drop')
    state = State(cache, keys_B, tokens_BL[:, 0], ~real_B, jnp.zeros((), jnp.int32),
                  jnp.zeros((B,), jnp.int32), out, seen_BV)
    return _write(params, hidden_BD, state, stop_ids_S, numbers, plan)


@functools.partial(jax.jit, static_argnames='cfg')
def for_run(params, cfg):
    """The parameters as `run` takes them: made once for all its calls."""
    return stack.unrolled(transformer.compute_params(params, cfg), cfg)


@functools.partial(jax.jit, static_argnames='plan', donate_argnames='state')
def run(params, state, limit, free, stop_ids_S, numbers, *, plan):
    """Writes tokens until there were `limit` steps or `free` of the rows are done: (state).

    Args:
      params: from `for_run`; of a model whose layers are not unrolled, also as they are.
    """
    params = transformer.compute_params(params, plan.cfg)

    def body(state):
        hidden_BD, cache = caches.step(params, plan.cfg, state.tokens_B, state.cache)
        return _write(params, hidden_BD, state.replace(cache=cache), stop_ids_S, numbers, plan)

    going = lambda state: (state.step < limit) & (jnp.sum(state.done_B) < free)
    return jax.lax.while_loop(going, body, state)


@functools.partial(jax.jit, donate_argnames='state')
def insert(state, new, slots_R):
    """Puts the R rows of `new`, just started, into the slots of a state: (state).

    Args:
      new: a State with the same room; its cache covers the prompts and no more.
      slots_R: int32; rows for a slot beyond the last one are dropped.
    """
    put = lambda old, rows: old.at[slots_R].set(rows, mode='drop')
    # What an earlier row has left behind the new prompt is hidden until it is written over.
    in_cache = lambda old, rows: old.at[:, slots_R, :, :rows.shape[3]].set(rows, mode='drop')
    cache = state.cache.replace(
        k_NBKMC=jax.tree.map(in_cache, state.cache.k_NBKMC, new.cache.k_NBKMC),
        v_NBKMC=jax.tree.map(in_cache, state.cache.v_NBKMC, new.cache.v_NBKMC),
        lengths_B=put(state.cache.lengths_B, new.cache.lengths_B))
    fields = {name: jax.tree.map(put, getattr(state, name), getattr(new, name))
              for name in _BY_ROW}
    return placed(state.replace(cache=cache, **fields))


@jax.jit
def keep(state, slots_R):
    """A state of R of the rows."""
    take, cache = lambda x: x[slots_R], state.cache.take(slots_R)
    fields = {name: jax.tree.map(take, getattr(state, name)) for name in _BY_ROW}
    return placed(state.replace(cache=cache, **fields))


def _write(params, hidden_BD, state, stop_ids_S, numbers, plan):
    """Chooses the next token of each row and writes it where the row is not done."""
    logits_BV = transformer.unembed(params, plan.cfg, hidden_BD[:, None])[:, 0]
    if plan.vocab_size < plan.cfg.vocab_size:
        logits_BV = jnp.where(jnp.arange(plan.cfg.vocab_size)[None] < plan.vocab_size, logits_BV,
                              -jnp.inf)
    keys_B = jax.vmap(jax.random.fold_in)(state.keys_B, state.counts_B)
    choice = choose(logits_BV, keys_B, state.seen_BV, numbers, plan.switches)
    new = {'tokens': choice.tokens_B, 'logprobs': choice.logprobs_B,
           'sample_logprobs': choice.sample_logprobs_B}
    if plan.top_candidates:
        new['id_logprobs'], new['ids'] = jax.lax.top_k(choice.logprobs_BV, plan.top_candidates)
    # Also of rows that are done: what stands behind a row's count means nothing.
    here_BT = jnp.arange(plan.room)[None] == state.counts_B[:, None]
    put = lambda out, value: jnp.where(here_BT.reshape(*here_BT.shape, *(1,) * (out.ndim - 2)),
                                       value[:, None], out)
    out = {name: put(state.out[name], value) for name, value in new.items()}
    seen_BV = state.seen_BV
    if plan.switches.penalty:
        seen_BV = seen_BV.at[jnp.arange(seen_BV.shape[0]), choice.tokens_B].set(True)
    stops_B = jnp.any(choice.tokens_B[:, None] == stop_ids_S[None], axis=1)
    counts_B = state.counts_B + ~state.done_B
    return placed(state.replace(
        tokens_B=choice.tokens_B, step=state.step + 1, counts_B=counts_B, out=out, seen_BV=seen_BV,
        done_B=state.done_B | stops_B | (counts_B >= numbers.max_new_tokens)))


def placed(state):
    """Pins the sharding of a state, so that the loop gives back what it was given."""
    rows = lambda x: constrain(x, 'batch', *(None,) * (x.ndim - 1))
    fields = {name: jax.tree.map(rows, getattr(state, name)) for name in _BY_ROW}
    return state.replace(cache=caches.placed(state.cache), **fields)
