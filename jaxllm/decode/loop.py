"""The compiled part of generation: feed the prompts, then one loop that writes a token per step.

Both functions are compiled once per (model, shapes, switches); T is the room for new tokens, S the
number of stop tokens and A that of the candidates kept per step.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxllm.decode.sampling import choose
from jaxllm.models import cache as caches
from jaxllm.models import transformer
from jaxllm.sharding import constrain


class Plan(NamedTuple):
    """Static: the model, cache length, room for new tokens, sampling switches, candidates."""
    cfg: Any
    cache_length: int
    room: int
    switches: Any
    top_candidates: int


@flax.struct.dataclass
class State:
    """Between two steps. Donated to the loop."""
    cache: caches.Cache
    keys_B: jax.Array    # PRNG key of each row, folded with the step
    tokens_B: jax.Array  # the last token of each row, not yet in the cache
    done_B: jax.Array
    step: jax.Array      # [] int32: tokens written per row that is not done
    counts_B: jax.Array  # tokens written
    out: dict            # {'tokens', 'logprobs', 'sample_logprobs'}_BT, {'ids', 'id_logprobs'}_BTA
    seen_BV: Any         # tokens of prompt and text, or None where no penalty needs them


@functools.partial(jax.jit, static_argnames='plan')
def start(params, tokens_BL, lengths_B, real_B, keys_B, stop_ids_S, numbers, *, plan):
    """Feeds right-padded prompts and writes the first token of each row.

    Args:
      tokens_BL: prompts, int32; lengths_B: of each, at least 1.
      real_B: bool; other rows fill up the batch and are done at once.
      keys_B: PRNG key of each row.
      stop_ids_S: int32, -1 = none.
    """
    cfg, (B, L) = plan.cfg, tokens_BL.shape
    params = transformer.compute_params(params, cfg)
    hidden_BD, cache = caches.prefill(params, cfg, tokens_BL, lengths_B, plan.cache_length)
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


@functools.partial(jax.jit, static_argnames='plan', donate_argnames='state')
def run(params, state, limit, stop_ids_S, numbers, *, plan):
    """Writes tokens until each row has `limit` of them or is done: (state)."""
    params = transformer.compute_params(params, plan.cfg)

    def body(state):
        hidden_BD, cache = caches.step(params, plan.cfg, state.tokens_B, state.cache)
        return _write(params, hidden_BD, state.replace(cache=cache), stop_ids_S, numbers, plan)

    going = lambda state: (state.step < limit) & ~jnp.all(state.done_B)
    return jax.lax.while_loop(going, body, state)


def _write(params, hidden_BD, state, stop_ids_S, numbers, plan):
    """Chooses the next token of each row and writes it where the row is not done."""
    logits_BV = transformer.unembed(params, plan.cfg, hidden_BD[:, None])[:, 0]
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(state.keys_B, state.step)
    choice = choose(logits_BV, keys_B, state.seen_BV, numbers, plan.switches)
    new = {'tokens': choice.tokens_B, 'logprobs': choice.logprobs_B,
           'sample_logprobs': choice.sample_logprobs_B}
    if plan.top_candidates:
        new['id_logprobs'], new['ids'] = jax.lax.top_k(choice.logprobs_BV, plan.top_candidates)
    # Column `step` of every row, done or not: what stands behind a row's count means nothing.
    out = {name: jax.lax.dynamic_update_index_in_dim(state.out[name], value, state.step, 1)
           for name, value in new.items()}
    seen_BV = state.seen_BV
    if plan.switches.penalty:
        seen_BV = seen_BV.at[jnp.arange(seen_BV.shape[0]), choice.tokens_B].set(True)
    stops_B = jnp.any(choice.tokens_B[:, None] == stop_ids_S[None], axis=1)
    return _placed(state.replace(
        tokens_B=choice.tokens_B, done_B=state.done_B | stops_B, step=state.step + 1,
        counts_B=state.counts_B + ~state.done_B, out=out, seen_BV=seen_BV))


def _placed(state):
    """Pins the sharding of a state, so that the loop gives back what it was given."""
    rows = lambda x: constrain(x, 'batch', *(None,) * (x.ndim - 1))
    fields = {name: jax.tree.map(rows, getattr(state, name))
              for name in ('keys_B', 'tokens_B', 'done_B', 'counts_B', 'out', 'seen_BV')}
    return state.replace(cache=caches.placed(state.cache), **fields)
