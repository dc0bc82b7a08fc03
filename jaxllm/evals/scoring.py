"""Log-probabilities of given answers: many candidates behind one prompt, in few compiled shapes.

What the candidates of an item have in common is computed once: the model reads their common prefix,
and each candidate's own tokens go on from its keys and values.

Beside the letters of the repository: P prompts, R candidates of all of them (rows), L tokens of a
common prefix, T tokens behind it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.decode.batch import bucket
from jaxllm.errors import InputError
from jaxllm.models import transformer
from jaxllm.objectives.ops import token_logprobs
from jaxllm.sharding import batch_shardings, batch_ways, replicated


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of one item, an entry per candidate.

    full_logprob: log p(tokens after BOS) of BOS + encode(prompt + ' ' + candidate) [nats].
    continuation_logprob: the part of it behind the tokens of BOS + encode(prompt); where a token
      reaches over the end of the prompt, from that token on.
    num_tokens: tokens of that part; num_chars: characters of the candidate, without the space.
    """
    full_logprob: np.ndarray
    continuation_logprob: np.ndarray
    num_tokens: np.ndarray
    num_chars: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Group:
    """Token ids of one item: what its candidates share, and each one's rest."""
    prefix: tuple
    rests: tuple
    prompt_length: tuple  # tokens shared with BOS + prompt, per candidate


def score_candidates(params, cfg, tokenizer, prompts, candidates, *, batch_size=1024):
    """Scores every candidate behind its prompt. Needs a mesh: run under `jax.set_mesh`.

    Args:
      params, cfg: a model and its ModelConfig.
      tokenizer: encode, encode_batch, bos_id.
      prompts: texts; '' = from the beginning of a text.
      candidates: a list of texts for each prompt, behind which one space is put.
      batch_size: candidates at once; changes no number beyond rounding.

    Returns:
      A list of Scores.

    Raises:
      InputError: no candidates, or more tokens than the model has positions.
    """
    if len(prompts) != len(candidates):
        raise InputError(f'{len(prompts)} prompts and {len(candidates)} lists of candidates')
    if batch_size < 1:
        raise InputError(f'batch_size={batch_size} must be at least 1')
    groups = _tokenize(tokenizer, prompts, candidates)
    _check_lengths(cfg, groups)
    by_shape = {}
    for i, group in enumerate(groups):
        shape = _power(len(group.prefix), 16), _power(max(map(len, group.rests)), 8)
        by_shape.setdefault(shape, []).append(i)
    results = [None] * len(groups)
    for shape, members in sorted(by_shape.items()):
        for batch in _batches(members, groups, batch_size):
            first_R, rest_R, prefix_PL = _run(params, cfg, [groups[i] for i in batch], shape,
                                              _rows(members, groups, batch_size))
            row = 0
            for p, i in enumerate(batch):
                n = len(groups[i].rests)
                behind = rest_R[row:row + n]
                results[i] = _scores(groups[i], candidates[i], prefix_PL[p], first_R[row:row + n],
                                     behind)
                row += n
    return results


def _tokenize(tokenizer, prompts, candidates):
    flat = [f'{prompt} {candidate}' for prompt, some in zip(prompts, candidates, strict=True)
            for candidate in some]
    ids = iter(tokenizer.encode_batch(flat))
    heads = {prompt: [tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in set(prompts)}
    groups = []
    for prompt, some in zip(prompts, candidates, strict=True):
        if not len(some):
            raise InputError(f'no candidates for the prompt {prompt[:60]!r}; give at least one')
        sequences = [[tokenizer.bos_id, *next(ids).tolist()] for _ in some]
        shared = _common(sequences)
        # At least one token of its own for each.
        shared = min(shared, min(map(len, sequences)) - 1)
        groups.append(_Group(tuple(sequences[0][:shared]),
                             tuple(tuple(ids[shared:]) for ids in sequences),
                             tuple(min(_common([heads[prompt], ids]), len(ids) - 1)
                                   for ids in sequences)))
    return groups


def _common(sequences):
    """Length of the longest common beginning."""
    shortest = min(map(len, sequences))
    for i in range(shortest):
        if any(ids[i] != sequences[0][i] for ids in sequences):
            return i
    return shortest


def _check_lengths(cfg, groups):
    longest = max((len(g.prefix) + max(map(len, g.rests)) for g in groups), default=0)
    if cfg.positions == 'learned' and longest > cfg.max_seq_len + 1:
        raise InputError(f'a prompt with an answer has {longest} tokens, and the model '
                         f'{cfg.max_seq_len} learned positions; use shorter items')


def _batches(members, groups, batch_size):
    """Lists of items with at most `batch_size` candidates together, or one item."""
    batch, rows = [], 0
    for i in members:
        n = len(groups[i].rests)
        if batch and rows + n > batch_size:
            yield batch
            batch, rows = [], 0
        batch.append(i)
        rows += n
    if batch:
        yield batch


def _power(size, least):
    """The next power of two: a program takes longer to compile than short rows to compute."""
    return max(least, 1 << (size - 1).bit_length())


def _rows(members, groups, batch_size):
    """(prompts, candidates) of the largest batch: all batches get its shape."""
    sizes = [(len(batch), sum(len(groups[i].rests) for i in batch))
             for batch in _batches(members, groups, batch_size)]
    ways = batch_ways(jax.sharding.get_mesh())
    return tuple(ways * bucket(-(-max(n) // ways), least=4) for n in zip(*sizes, strict=True))


def _run(params, cfg, groups, shape, rows):
    """Log-probs: of each row's first own token [R] and of the others [R, T], of the prefix."""
    (L, T), (P, R) = shape, rows
    if cfg.positions == 'learned':
        L = min(L, cfg.max_seq_len)
    # Prefixes stand on the right of their room, where the candidates go on.
    prefix_PL, lengths_P = np.zeros((P, L), np.int32), np.ones((P,), np.int32)
    rest_RT, parent_R = np.zeros((R, T), np.int32), np.zeros((R,), np.int32)
    row = 0
    for p, group in enumerate(groups):
        prefix_PL[p, L - len(group.prefix):] = group.prefix
        lengths_P[p] = len(group.prefix)
        for rest in group.rests:
            rest_RT[row, :len(rest)] = rest
            parent_R[row] = p
            row += 1
    only_first = all(len(rest) == 1 for group in groups for rest in group.rests)
    arrays = {'prefix': prefix_PL, 'lengths': lengths_P, 'rest': rest_RT, 'parent': parent_R}
    mesh = jax.sharding.get_mesh()
    arrays = jax.device_put(arrays, batch_shardings(arrays, mesh))
    out = _program(mesh)(params, **arrays, cfg=cfg, only_first=only_first)
    return jax.device_get(out)


@functools.cache
def _program(mesh):
    """The compiled function of a mesh; what it returns is whole on every device."""
    return jax.jit(_logprobs, static_argnames=('cfg', 'only_first'),
                   out_shardings=replicated(mesh))


def _logprobs(params, prefix, lengths, rest, parent, *, cfg, only_first):
    L, R = prefix.shape[1], len(rest)
    table_VD = transformer.unembed_matrix(params, cfg)
    logprobs = functools.partial(token_logprobs, unembed_VD=table_VD, softcap=cfg.logit_softcap)
    valid_PL = (jnp.arange(L)[None] >= L - lengths[:, None]).astype(jnp.int32)
    hidden_PLD, read = transformer.read_prefix(params, cfg, prefix, valid_PL)
    prefix_PL = logprobs(hidden_PLD, targets_BL=jnp.roll(prefix, -1, axis=1))
    first_R = logprobs(hidden_PLD[parent, -1:], targets_BL=rest[:, :1])[:, 0]
    if only_first:
        return first_R, jnp.zeros((R, 0), jnp.float32), prefix_PL
    hidden_RTD = transformer.apply_hidden(params, cfg, rest[:, :-1], prefix=read.take(parent))
    return first_R, logprobs(hidden_RTD, targets_BL=rest[:, 1:]), prefix_PL


def _scores(group, candidates, prefix_L, first_R, rest_RT):
    """Adds up in float64 what the devices computed per token."""
    full, behind, tokens = [], [], []
    shared = prefix_L[len(prefix_L) - len(group.prefix):-1].astype(np.float64)
    for r, rest in enumerate(group.rests):
        own = np.array([first_R[r], *rest_RT[r, :len(rest) - 1]], np.float64)
        every = np.concatenate([shared, own])  # entry i: token i + 1 of the sequence
        start = max(group.prompt_length[r] - 1, 0)
        full.append(every.sum())
        behind.append(every[start:].sum())
        tokens.append(len(every) - start)
    sizes = [len(text) for text in candidates]
    return Scores(np.array(full), np.array(behind), np.array(tokens), np.array(sizes))
