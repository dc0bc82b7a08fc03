"""Tokens for prompts: what is asked for is checked, and its rows are written in batches."""

import dataclasses

import numpy as np

from jaxllm import rng
from jaxllm.decode.batch import Request, generate_batch
from jaxllm.decode.refill import generate_refilled
from jaxllm.decode.text import TextTail
from jaxllm.errors import InputError


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


def generate(params, cfg, prompts, sampling, *, stop_ids=(), pad_id=0, seed=0, stop_strings=(),
             tokenizer=None, bos_id=None, top_candidates=0, batch_size=0, row_ids=None,
             vocab_size=0, refill=False):
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
      vocab_size: ids from this one on are never written and their logits count for nothing in the
        log-probs: for models with more embeddings than their tokenizer has tokens. 0 = all ids.
      refill: rows that are done make room for the prompts that wait (see `refill.py`), in place of
        one batch after the other. The same tokens; more programs to compile.

    Returns:
      Generation.

    Raises:
      InputError: an empty prompt without a BOS, an id outside the vocabulary, or more tokens than a
        model with learned positions has positions.
    """
    request = make_request(params, cfg, sampling, stop_ids, stop_strings, tokenizer, pad_id, seed,
                           top_candidates, vocab_size)
    prompts = check_prompts(prompts, request, bos_id)
    row_ids = list(range(len(prompts))) if row_ids is None else list(row_ids)
    if len(row_ids) != len(prompts):
        raise InputError(f'{len(row_ids)} row_ids for {len(prompts)} prompts; give one for each')
    batch_size = batch_size or max(len(prompts), 1)
    if refill and prompts:
        return to_generation(*generate_refilled(request, prompts, row_ids, batch_size))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rows, num_steps = {}, 0
    for first in range(0, len(order), batch_size):
        batch = order[first:first + batch_size]
        new, steps = generate_batch(request, [prompts[i] for i in batch],
                                    [row_ids[i] for i in batch])
        rows |= zip(batch, new, strict=True)
        num_steps += steps
    return to_generation([rows[i] for i in range(len(prompts))], num_steps)


def make_request(params, cfg, sampling, stop_ids, stop_strings, tokenizer, pad_id, seed,
                 top_candidates, vocab_size=0):
    """A Request, with what can be checked without prompts checked."""
    if stop_strings and tokenizer is None:
        raise InputError(f'stop_strings={list(stop_strings)!r} need the bytes of tokens; give '
                         'the tokenizer too, or use stop_ids')
    if not 0 <= vocab_size <= cfg.vocab_size:
        raise InputError(f'vocab_size={vocab_size} must be from 1 to the {cfg.vocab_size} ids of '
                         'the model, or 0 for all of them; the tokenizer has more tokens than the '
                         'model has embeddings')
    vocab_size = vocab_size or cfg.vocab_size
    for name, ids in (('stop_ids', stop_ids), ('pad_id', (pad_id,))):
        if not all(0 <= i < vocab_size for i in ids):
            raise InputError(f'{name}={ids} lie outside the vocabulary of {vocab_size} ids; '
                             'the model and the tokenizer do not belong together')
    if not 0 <= top_candidates <= vocab_size:
        raise InputError(f'top_candidates={top_candidates} must be from 0 to '
                         f'vocab_size={vocab_size}')
    TextTail(stop_strings)
    key = rng.key(seed, rng.SAMPLE) if isinstance(seed, (int, np.integer)) else seed
    return Request(params, cfg, sampling, tuple(stop_ids), tuple(stop_strings), tokenizer, pad_id,
                   key, top_candidates, vocab_size)


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


def to_generation(rows, num_steps):
    """Generation of the results of rows."""
    fields = zip(*rows, strict=True) if rows else [[]] * 6
    return Generation(*map(list, fields), num_steps)
