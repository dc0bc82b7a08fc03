"""Tokens for batches of prompts: padding into few shapes, the loop, and what came of each row."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxllm import rng
from jaxllm.decode import loop
from jaxllm.decode.text import TextTail
from jaxllm.errors import InputError
from jaxllm.sharding import batch_shardings, batch_ways, replicated

_CHUNK = 16  # steps between two looks at stop strings


@dataclasses.dataclass(frozen=True)
class Generation:
    """One entry per prompt. T below is the number of tokens of that row.

    tokens: what the model wrote, the stop token or the end of the stop string included.
    logprobs: [T] float32, log p of each token at the sampling temperature (1 if greedy), of the
      whole distribution.
    sample_logprobs: [T] float32, log p under the distribution that was sampled from.
    finish: 'stop' (a stop token), 'stop_string' or 'length'.
    texts: the text up to, and without, what stopped it; '' without a tokenizer.
    candidates: (ids [T, A] int32, logprobs [T, A] float32), likeliest first, if asked for.
    num_steps: tokens computed per row, summed over batches: what early stopping saves.
    """
    tokens: list
    logprobs: list
    sample_logprobs: list
    finish: list
    texts: list
    candidates: list
    num_steps: int


@dataclasses.dataclass(frozen=True)
class Request:
    """Checked arguments of `generate`, shared with `stream`."""
    params: Any
    cfg: Any
    sampling: Any
    stop_ids: tuple
    stop_strings: tuple
    tokenizer: Any
    pad_id: int
    key: Any
    top_candidates: int


def generate(params, cfg, prompts, sampling, *, stop_ids=(), pad_id=0, seed=0, stop_strings=(),
             tokenizer=None, bos_id=None, top_candidates=0, batch_size=0, row_ids=None):
    """Continues each prompt. Needs a mesh: run under `jax.set_mesh`.

    A row's result does not depend on the other rows, on padding or on the order of batches: its
    randomness is fold_in(fold_in(seed, row id), step).

    Args:
      params, cfg: a model (adapters merged) and its ModelConfig.
      prompts: lists of token ids, of any lengths; an empty one starts from `bos_id`.
      sampling: SamplingConfig.
      stop_ids: token ids that end a row; they are kept in its tokens.
      pad_id: fills up rows and batches; it changes nothing else and may be any id.
      seed: int, or a PRNG key.
      stop_strings: texts that end a row; need `tokenizer`.
      tokenizer: has token_bytes(id) and bos_id. With it, `texts` is filled in.
      top_candidates: keep this many likeliest tokens of every step.
      batch_size: rows at once, 0 = all; rows of similar length go together.
      row_ids: an int per prompt in place of 0, 1, ...

    Returns:
      Generation.

    Raises:
      InputError: an empty prompt without a BOS, an id outside the vocabulary, or more tokens than a
        model with learned positions has positions.
    """
    request = make_request(params, cfg, sampling, stop_ids, stop_strings, tokenizer, pad_id, seed,
                           top_candidates)
    prompts = check_prompts(prompts, request, bos_id)
    row_ids = list(range(len(prompts))) if row_ids is None else list(row_ids)
    if len(row_ids) != len(prompts):
        raise InputError(f'{len(row_ids)} row_ids for {len(prompts)} prompts; give one for each')
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batch_size = batch_size or max(len(prompts), 1)
    rows, num_steps = {}, 0
    for first in range(0, len(order), batch_size):
        batch = order[first:first + batch_size]
        new, steps = _batch(request, [prompts[i] for i in batch], [row_ids[i] for i in batch])
        rows |= zip(batch, new, strict=True)
        num_steps += steps
    return to_generation([rows[i] for i in range(len(prompts))], num_steps)


def make_request(params, cfg, sampling, stop_ids, stop_strings, tokenizer, pad_id, seed,
                 top_candidates):
    """A Request, with what can be checked without prompts checked."""
    if stop_strings and tokenizer is None:
        raise InputError(f'stop_strings={list(stop_strings)!r} need the bytes of tokens; give '
                         'the tokenizer too, or use stop_ids')
    for name, ids in (('stop_ids', stop_ids), ('pad_id', (pad_id,))):
        if not all(0 <= i < cfg.vocab_size for i in ids):
            raise InputError(f'{name}={ids} lie outside the vocabulary of {cfg.vocab_size} ids; '
                             'the model and the tokenizer do not belong together')
    if not 0 <= top_candidates <= cfg.vocab_size:
        raise InputError(f'top_candidates={top_candidates} must be from 0 to '
                         f'vocab_size={cfg.vocab_size}')
    TextTail(stop_strings)
    key = rng.key(seed, rng.SAMPLE) if isinstance(seed, (int, np.integer)) else seed
    return Request(params, cfg, sampling, tuple(stop_ids), tuple(stop_strings), tokenizer, pad_id,
                   key, top_candidates)


def check_prompts(prompts, request, bos_id=None):
    """Prompts as lists of int, an empty one as [BOS]; raises InputError where one cannot be fed."""
    cfg, new = request.cfg, request.sampling.max_new_tokens
    if bos_id is None and request.tokenizer is not None:
        bos_id = request.tokenizer.bos_id
    checked = []
    for i, prompt in enumerate(prompts):
        ids = [int(x) for x in prompt]
        if not ids and bos_id is None:
            raise InputError(f'prompt {i} is empty and there is no BOS token to start from; give '
                             'bos_id, or a prompt of at least one token')
        ids = ids or [bos_id]
        if wrong := [x for x in ids if not 0 <= x < cfg.vocab_size]:
            raise InputError(f'prompt {i} has token id {wrong[0]}, outside the vocabulary of '
                             f'{cfg.vocab_size} ids; the model and the tokenizer do not belong '
                             'together')
        if cfg.positions == 'learned' and len(ids) + new > cfg.max_seq_len:
            raise InputError(
                f'prompt {i} has {len(ids)} tokens, and with max_new_tokens={new} exceeds the '
                f'{cfg.max_seq_len} learned positions of the model; use max_new_tokens='
                f'{max(cfg.max_seq_len - len(ids), 0)} or a shorter prompt')
        checked.append(ids)
    return checked


def bucket(size, least=16):
    """The next of 16, 24, 32, 48, 64, 96, ...: few shapes to compile, at most half too much."""
    power = least
    while power < size:
        if size <= power * 3 // 2:
            return power * 3 // 2
        power *= 2
    return power


class Runner:
    """One batch on its way: the state on the devices, and how to advance it."""

    def __init__(self, request, prompts, row_ids):
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            raise ValueError('generation needs a mesh: run under `with jax.set_mesh(make_mesh())`')
        cfg, new = request.cfg, request.sampling.max_new_tokens
        longest = max(map(len, prompts))
        L = bucket(longest)
        if cfg.positions == 'learned':
            L = min(L, cfg.max_seq_len)
        ways = batch_ways(mesh)
        B = ways * bucket(-(-len(prompts) // ways), least=1)
        tokens_BL = np.full((B, L), request.pad_id, np.int32)
        lengths_B = np.ones((B,), np.int32)
        for row, ids in enumerate(prompts):
            tokens_BL[row, :len(ids)] = ids
            lengths_B[row] = len(ids)
        ids_B = np.zeros((B,), np.int32)
        ids_B[:len(row_ids)] = row_ids
        rows = {'tokens': tokens_BL, 'lengths': lengths_B, 'real': np.arange(B) < len(prompts),
                'ids': ids_B}
        self._rows = jax.device_put(rows, batch_shardings(rows, mesh))
        self._rows['keys'] = jax.vmap(jax.random.fold_in, (None, 0))(request.key,
                                                                     self._rows.pop('ids'))
        stops = np.full((bucket(len(request.stop_ids), least=4),), -1, np.int32)
        stops[:len(request.stop_ids)] = request.stop_ids
        self._args = jax.device_put((stops, request.sampling.numbers), replicated(mesh))
        self._plan = loop.Plan(cfg, max(L, bucket(longest + new)), bucket(new),
                               request.sampling.switches, request.top_candidates)
        self._params = request.params
        self._state = None

    def advance(self, limit):
        """Goes on until each row has `limit` tokens or is done."""
        if self._state is None:
            rows, self._rows = self._rows, None
            self._state = loop.start(self._params, rows['tokens'], rows['lengths'], rows['real'],
                                     rows['keys'], *self._args, plan=self._plan)
        if limit > 1:
            self._state = loop.run(self._params, self._state, np.int32(limit), *self._args,
                                   plan=self._plan)

    def finish(self, rows):
        """Marks rows as done."""
        done_B = self._fetch(self._state.done_B).copy()
        done_B[rows] = True
        self._state = self._state.replace(
            done_B=jax.device_put(done_B, self._state.done_B.sharding))

    def read(self):
        """(step, done_B, counts_B, out) on the host."""
        state = self._state
        return jax.tree.map(self._fetch, (state.step, state.done_B, state.counts_B, state.out))

    def _fetch(self, x):
        if x.is_fully_addressable:
            return np.asarray(x)
        from jax.experimental import multihost_utils
        return multihost_utils.process_allgather(x, tiled=True)


def _batch(request, prompts, row_ids):
    """Returns ([(tokens, logprobs, sample_logprobs, finish, text, candidates)], steps)."""
    runner, limit = Runner(request, prompts, row_ids), request.sampling.max_new_tokens
    tails = [TextTail(request.stop_strings) for _ in prompts]
    read = [0] * len(prompts)
    if request.stop_strings:
        for end in range(_CHUNK, limit, _CHUNK):
            runner.advance(end)
            _, done_B, counts_B, out = runner.read()
            for row, tail in enumerate(tails):
                read[row] = push(request, tail, out['tokens'][row], read[row], counts_B[row])
            stopped = [row for row, tail in enumerate(tails) if tail.stopped]
            if all(done_B | np.isin(np.arange(len(done_B)), stopped)):
                break
            runner.finish(stopped)
        else:
            runner.advance(limit)
    else:
        runner.advance(limit)
    step, _, counts_B, out = runner.read()
    for row, tail in enumerate(tails):
        read[row] = push(request, tail, out['tokens'][row], read[row], counts_B[row])
    return [row_result(request, tail, {name: x[row, :read[row]] for name, x in out.items()})
            for row, tail in enumerate(tails)], int(step)


def push(request, tail, tokens_T, start, end):
    """Pushes tokens [start, end) to the tail, as far as a stop string; returns how far it came."""
    if request.tokenizer is None or tail.stopped:
        return start if tail.stopped else int(end)
    for i in range(start, int(end)):
        token = int(tokens_T[i])
        # The token that stops a row is no part of its text, even where it stands for some.
        if token not in request.stop_ids and tail.push(request.tokenizer.token_bytes(token)):
            return i + 1
    return int(end)


def row_result(request, tail, out):
    """The fields of a Generation for one row; `out` holds its tokens and no more."""
    tokens = out['tokens'].tolist()
    finish = 'length'
    if tail.stopped:
        finish = 'stop_string'
    elif tokens[-1] in request.stop_ids:
        finish = 'stop'
    candidates = (out['ids'], out['id_logprobs']) if request.top_candidates else ()
    return tokens, out['logprobs'], out['sample_logprobs'], finish, tail.text, candidates


def to_generation(rows, num_steps):
    """Generation of the results of rows."""
    fields = zip(*rows, strict=True) if rows else [[]] * 6
    return Generation(*map(list, fields), num_steps)
