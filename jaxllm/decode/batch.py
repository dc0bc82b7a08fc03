"""Batches of prompts on the devices: padding into few shapes, and what came of each row."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np

from jaxllm.decode import loop
from jaxllm.decode.text import TextTail
from jaxllm.models import stack
from jaxllm.sharding import batch_shardings, batch_ways, replicated

CHUNK = 16  # steps between two looks at stop strings


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
    vocab_size: int


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

    def __init__(self, request, prompts, row_ids, longest=0):
        """The cache has room for prompts of `longest` tokens, 0 = the longest of these."""
        mesh = jax.sharding.get_mesh()
        if mesh.empty:
            raise ValueError('generation needs a mesh: run under `with jax.set_mesh(make_mesh())`')
        self._request, self._mesh = request, mesh
        cfg, new = request.cfg, request.sampling.max_new_tokens
        longest = longest or max(map(len, prompts))
        stops = np.full((bucket(len(request.stop_ids), least=4),), -1, np.int32)
        stops[:len(request.stop_ids)] = request.stop_ids
        self._args = jax.device_put((stops, request.sampling.numbers), replicated(mesh))
        self._plan = loop.Plan(cfg, max(self._length(longest), bucket(longest + new)), bucket(new),
                               request.sampling.switches, request.top_candidates,
                               request.vocab_size)
        self.size = self.padded(len(prompts))
        self._rows = self._on_devices(prompts, row_ids, self.size, self._length(longest))
        # Of models whose layers are scanned, a copy would not be small, and saves a cast only.
        self._params = (loop.for_run(request.params, cfg) if stack.unrolls(cfg)
                        else request.params)
        self._state = None

    def padded(self, count):
        """The number of rows of a batch that takes `count` of them."""
        ways = batch_ways(self._mesh)
        return ways * bucket(-(-count // ways), least=1)

    def _length(self, longest):
        L, cfg = bucket(longest), self._request.cfg
        return min(L, cfg.max_seq_len) if cfg.positions == 'learned' else L

    def _on_devices(self, prompts, row_ids, B, L):
        """What `loop.start` takes: each prompt once for the neighbours that share it, and of each
        row the rest. Rows beyond the prompts fill up the batch."""
        share = self._sharing(prompts, B)
        tokens_PL = np.full((B // share, L), self._request.pad_id, np.int32)
        lengths_P = np.ones((B // share,), np.int32)
        for row, ids in enumerate(prompts[::share]):
            tokens_PL[row, :len(ids)] = ids
            lengths_P[row] = len(ids)
        ids_B = np.zeros((B,), np.int32)
        ids_B[:len(row_ids)] = row_ids
        rows = {'tokens': tokens_PL, 'lengths': lengths_P, 'real': np.arange(B) < len(prompts),
                'ids': ids_B}
        rows = jax.device_put(rows, batch_shardings(rows, self._mesh))
        ids_B = rows.pop('ids')
        return rows | {'keys': loop.row_keys(self._request.key, ids_B)}

    def _sharing(self, prompts, B):
        """So many neighbours have the same prompt, everywhere in the batch."""
        runs = [len(list(same)) for _, same in itertools.groupby(prompts)]
        share = math.gcd(*runs)
        return share if B % (share * batch_ways(self._mesh)) == 0 else 1

    def _start(self, rows, plan):
        return loop.start(self._request.params, rows['tokens'], rows['lengths'], rows['real'],
                          rows['keys'], *self._args, plan=plan)

    def advance(self, limit, free=0):
        """Goes on for `limit` steps in all, but ends where `free` rows are done, 0 = all."""
        if self._state is None:
            rows, self._rows = self._rows, None
            self._state = self._start(rows, self._plan)
        if limit > 1:
            self._state = loop.run(self._params, self._state, np.int32(limit),
                                   np.int32(free or self.size), *self._args, plan=self._plan)

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


def generate_batch(request, prompts, row_ids):
    """Returns ([(tokens, logprobs, sample_logprobs, finish, text, candidates)], steps)."""
    runner, limit = Runner(request, prompts, row_ids), request.sampling.max_new_tokens
    tails = [TextTail(request.stop_strings) for _ in prompts]
    read = [0] * len(prompts)
    if request.stop_strings:
        for end in range(CHUNK, limit, CHUNK):
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
