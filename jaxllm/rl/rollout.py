"""Completions sampled from a policy, as arrays by row, with the log-probs that training needs.

The sampler decodes with a cache; log-probs are computed anew by the forward pass that training
differentiates, so that the first step's ratio is 1. How far the two are apart is reported.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxllm import decode
from jaxllm.errors import InputError
from jaxllm.objectives import policy
from jaxllm.sharding import batch_shardings, batch_ways, replicated


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    prompts: int            # per rollout, over all processes
    samples: int            # completions of each prompt
    epochs: int             # how often a rollout is trained on
    max_new_tokens: int     # a completion's room, the end token included
    temperature: float
    batch_size: int         # rows that are sampled at once; 0 = all
    refill: bool            # rows that are done make room for prompts that wait
    share_prompts: bool     # a prompt is read once for all its completions, where that is possible
    score_batch_size: int   # rows of a forward pass without gradients
    unfinished: str         # of a completion that did not end: 'reward', 'replace', 'subtract'
    unfinished_value: float
    standardise: bool       # scale functions, too, by the reference's answers to held-out prompts

    def __post_init__(self):
        for name in ('prompts', 'samples', 'epochs', 'max_new_tokens', 'score_batch_size'):
            if getattr(self, name) < 1:
                raise InputError(f'rollout.{name}={getattr(self, name)} must be at least 1')
        if self.batch_size < 0:
            raise InputError(f'rollout.batch_size={self.batch_size} must not be negative; 0 = all')
        if not self.temperature > 0:
            raise InputError(f'rollout.temperature={self.temperature} must be positive: a policy '
                             'learns from what it samples, e.g. 1.0')
        if self.unfinished not in ('reward', 'replace', 'subtract'):
            raise InputError(f"rollout.unfinished={self.unfinished!r} is unknown; use 'reward' (as "
                             "scored), 'replace' (by unfinished_value) or 'subtract' (it)")

    @property
    def rows(self):
        return self.prompts * self.samples

    @property
    def sampling(self):
        """The whole distribution: truncation would sample another policy than the one trained."""
        return decode.SamplingConfig(max_new_tokens=self.max_new_tokens,
                                     temperature=self.temperature)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Completions by row: token ids (the end token included), texts without it, whether they ended,
    the sampler's log-probs, and steps per row that the sampler computed."""
    tokens: list
    texts: list
    finished: np.ndarray
    logprobs: list
    num_steps: int


def sample(params, model, prompts, config, tokenizer, stop_ids, key):
    """`config.samples` completions of each prompt, neighbours answering the same one.

    Args:
      prompts: lists of token ids. key: PRNG key of this rollout; rows fold in their number.
    """
    rows = [ids for ids in prompts for _ in range(config.samples)]
    out = decode.generate(params, model, rows, config.sampling, stop_ids=stop_ids,
                          pad_id=tokenizer.pad_id, seed=key, batch_size=config.batch_size,
                          vocab_size=tokenizer.vocab_size, refill=config.refill)
    finished = np.array([finish == 'stop' for finish in out.finish], np.float32)
    texts = [tokenizer.decode(tokens[:-1] if end else tokens)
             for tokens, end in zip(out.tokens, finished, strict=True)]
    return Samples(out.tokens, texts, finished, out.logprobs, out.num_steps)


def to_arrays(prompts, samples, group_size, prompt_room, room, pad_id):
    """The model's inputs of `objectives.policy`, as numpy arrays.

    Args:
      prompts: token ids of each prompt, at most `prompt_room`. room: T.
    """
    N = len(samples.tokens)
    out = {'tokens_BL': np.full((N, prompt_room + room), pad_id, np.int32),
           'lengths_B': np.zeros((N,), np.int32), 'starts_B': np.zeros((N,), np.int32),
           'completions_BT': np.full((N, room), pad_id, np.int32),
           'mask_BT': np.zeros((N, room), np.float32),
           'sampler_logprobs_BT': np.zeros((N, room), np.float32)}
    for row, tokens in enumerate(samples.tokens):
        prompt, count = prompts[row // group_size], len(tokens)
        out['tokens_BL'][row, :len(prompt) + count] = [*prompt, *tokens]
        out['lengths_B'][row], out['starts_B'][row] = len(prompt) + count, len(prompt) - 1
        out['completions_BT'][row, :count] = tokens
        out['mask_BT'][row, :count] = 1.0
        out['sampler_logprobs_BT'][row, :count] = samples.logprobs[row][:count]
    return out | {'finished_B': samples.finished}


def judged_by_end(config, rewards, finished):
    """Rewards with `config.unfinished` applied to completions that did not end by themselves.

    Ref: Huang et al. 2024 (arXiv 2403.17031), detail 11: a fixed score for a missing end token.
    """
    ended = finished > 0
    if config.unfinished == 'replace':
        return np.where(ended, rewards, np.float32(config.unfinished_value)).astype(np.float32)
    if config.unfinished == 'subtract':
        return (rewards - (~ended) * config.unfinished_value).astype(np.float32)
    return rewards


def make_forward(models, reference, with_policy=True):
    """forward(trainable, frozen, batch) -> {ref_logprobs_BT[, values_BT]}, and with the policy's
    own pass {logprobs_BT, entropy_BT}, too.

    Args:
      models: objectives.policy.Models. reference: reference(frozen) -> parameters of the model that
        the policy is held to.
    """
    def forward(trainable, frozen, batch):
        ref_logprobs_BT, _ = policy.completion_logprobs(
            reference(frozen), models.model, batch, temperature=models.temperature,
            chunk_size=models.chunk_size, group_size=models.group_size)
        out = {'ref_logprobs_BT': ref_logprobs_BT}
        if with_policy:
            out['logprobs_BT'], out['entropy_BT'] = policy.policy_logprobs(models, trainable,
                                                                           frozen, batch)
        if models.value:
            out['values_BT'] = policy.policy_values(models, trainable, frozen, batch)
        return out
    return forward


class InChunks:
    """Runs a function of rows in chunks of one size, so that it is compiled once.

    fn(*args, batch) -> tree of arrays by row; `batch` has numpy arrays by row. Results are numpy
    arrays, the same on every process.
    """

    def __init__(self, fn, rows, mesh, group_size=1):
        """`rows` is rounded up to whole groups on each device."""
        least = batch_ways(mesh) * group_size
        self.rows, self.mesh = -(-rows // least) * least, mesh
        self.fn = jax.jit(fn, out_shardings=replicated(mesh))

    def __call__(self, *args, batch):
        N = len(next(iter(batch.values())))
        parts = []
        for first in range(0, N, self.rows):
            part = {name: _padded(x[first:first + self.rows], self.rows)
                    for name, x in batch.items()}
            part = jax.device_put(part, batch_shardings(part, self.mesh))
            parts.append(self.fn(*args, part))
        return jax.tree.map(lambda *xs: np.concatenate([local(x) for x in xs])[:N], *parts)


def _padded(x, rows):
    """The last row again and again: rows of padding must be real, lest they make NaNs."""
    return np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)]) if len(x) < rows else x


def local(x):
    """A replicated array on the host."""
    return np.asarray(x.addressable_data(0))


SUMMARY = ('reward', 'reward_std', 'kl', 'kl_max', 'entropy', 'length', 'finished', 'repetition',
           'equal_groups')
_GAPS = 'sampler_gap', 'sampler_gap_max'


def summary_names(recompute):
    """The metrics of `summary`, with or without log-probs of the trainer."""
    return SUMMARY + _GAPS if recompute else SUMMARY


def summary(rollout: dict[str, Any], scores, group_size):
    """Means over a rollout: {metric: float}.

    kl: nats per sequence, sum of log(pi / ref). sampler_gap, sampler_gap_max: |log-prob of the
    sampler - of the trainer| per token. repetition: share of a completion's 3-grams that
    stood in it before.
    equal_groups: share of prompts whose completions have all the same reward.

    Where the trainer has not yet computed log-probs (its one step on the rollout will, and tells
    the gap), those of the sampler stand for them, and the entropy is the mean of -log pi.
    """
    mask, log_pi_BT = rollout['mask_BT'] > 0, logprobs(rollout)
    kl_B = np.sum((log_pi_BT - rollout['ref_logprobs_BT']) * mask, axis=1)
    rewards_PS = rollout['rewards_B'].reshape(-1, group_size)
    values = {
        'reward': rollout['rewards_B'].mean(), 'reward_std': rollout['rewards_B'].std(),
        'kl': kl_B.mean(), 'kl_max': kl_B.max(),
        'entropy': rollout.get('entropy_BT', -log_pi_BT)[mask].mean(),
        'length': mask.sum(axis=1).mean(),
        'finished': rollout['finished_B'].mean(),
        'repetition': np.mean([repetition(row[real]) for row, real in
                               zip(rollout['completions_BT'], mask, strict=True)]),
        'equal_groups': np.mean(np.ptp(rewards_PS, axis=1) < 1e-8)}
    if 'logprobs_BT' in rollout:
        gap = np.abs(rollout['sampler_logprobs_BT'] - log_pi_BT)[mask]
        values |= dict(zip(_GAPS, (gap.mean(), gap.max()), strict=True))
    values |= {name: score.mean() for name, score in scores.items()}
    return {name: float(value) for name, value in values.items()}


def logprobs(rollout):
    """[B, T]: log pi at sampling time, the trainer's where it has computed them."""
    return rollout.get('logprobs_BT', rollout['sampler_logprobs_BT'])


def repetition(tokens, n=3):
    """Share of n-grams that have stood before; 0 for fewer than two of them."""
    grams = [tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0
