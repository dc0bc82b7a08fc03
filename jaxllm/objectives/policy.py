"""What the methods of reinforcement learning share: their contract, log-probs, surrogates, KL.

A method is a module with

    Settings             frozen dataclass, the leaves of config.objective
    algorithm(settings)  -> Algorithm

and a config names it by its path. A rollout and what is made of it are dicts of arrays by row; all
that is known of tokens is [B, T], where column t is the choice of the completion's token t.

Of a rollout (N rows, `group_size` neighbours answer one prompt):
    tokens_BL          prompt and completion, padded on the right with anything
    lengths_B          tokens of the row that are real
    starts_B           index of the prompt's last token, from which completion token 0 is predicted
    completions_BT     the completion's tokens; mask_BT 1.0 where there is one
    sampler_logprobs_BT  log pi at the temperature, as the sampler computed it
    logprobs_BT        the same by the trainer's forward pass; absent where a rollout is one step
                       and the method can do without (`needs_logprobs`)
    ref_logprobs_BT    the same of the reference
    values_BT          of the value network, where the algorithm uses one
    rewards_B          combined score of a row; finished_B 1.0 where it ended by itself
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models import heads, stack, transformer
from jaxllm.objectives import ops


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A method of reinforcement learning.

    examples: examples(rollout, group_size, aux) -> {name: array}, what is trained on. Pure,
      compiled once, over the whole global rollout, so that statistics are those of all devices.
    objective: objective(models) -> an objective of `base`, on batches of such examples.
    uses_values: a value network is trained beside the policy.
    min_group: the fewest completions of a prompt that it can work with.
    needs_logprobs: its examples depend on log-probs at sampling time. Otherwise they are not
      computed for a rollout of one step: the step's own are the same.
    keeps_groups: its examples are the rows of the rollout, in their order: a prompt can then be
      read once for all its completions.
    aux: what it adapts, saved with the state, {name: float}.
    update_aux: update_aux(aux, metrics) -> aux, after each step; None = nothing.
    """
    examples: Callable
    objective: Callable
    uses_values: bool = False
    min_group: int = 1
    needs_logprobs: bool = True
    keeps_groups: bool = False
    aux: dict = dataclasses.field(default_factory=dict)
    update_aux: Callable | None = None


class Models(NamedTuple):
    """How an objective gets at the networks.

    policy: policy(trainable, frozen) -> parameters of a whole model. value: the same for the value
    network, see `models.heads`. temperature: of sampling, and so of every log-prob.
    group_size: so many neighbours of a batch answer one prompt, which is then read once for all of
    them; 1 = each row is read as a whole.
    """
    model: Any
    policy: Callable
    value_model: Any
    value: Callable
    temperature: float
    chunk_size: int = 512
    group_size: int = 1


def segment_ids(batch):
    """[B, L]: 1 for what is real, 0 for padding."""
    L = batch['tokens_BL'].shape[1]
    return (jnp.arange(L)[None, :] < batch['lengths_B'][:, None]).astype(jnp.int32)


def at_completion(x_BLD, batch):
    """[B, T, ...] of [B, L, ...]: where each token of the completion is predicted."""
    T = batch['completions_BT'].shape[1]
    index_BT = batch['starts_B'][:, None] + jnp.arange(T)[None, :]
    index_BT = jnp.minimum(index_BT, x_BLD.shape[1] - 1)
    index = index_BT.reshape(*index_BT.shape, *(1,) * (x_BLD.ndim - 2))
    return jnp.take_along_axis(x_BLD, index, axis=1)


def completion_hidden(params, model, batch, group_size=1):
    """[B, T, D]: the hidden state that predicts each token of the completion.

    With `group_size` S > 1, rows iS .. iS + S - 1 have one prompt, whose tokens are read once:
    L - T + S T tokens in place of S L. What comes out, and its gradient, is the same.
    """
    if group_size == 1:
        return at_completion(transformer.apply_hidden(
            params, model, batch['tokens_BL'], segment_ids_BL=segment_ids(batch)), batch)
    completions_BT = batch['completions_BT']
    B, T = completions_BT.shape
    hidden_PLD, prefix = transformer.read_prefix(params, model, *_prompts(batch, group_size))
    lengths_B = batch['lengths_B'] - batch['starts_B'] - 1
    valid_BT = (jnp.arange(T)[None, :] < lengths_B[:, None]).astype(jnp.int32)
    hidden_BTD = transformer.apply_hidden(params, model, completions_BT, segment_ids_BL=valid_BT,
                                          prefix=prefix)
    first_B1D = stack.of_rows(hidden_PLD[:, -1:], B)
    return jnp.concatenate([first_B1D, hidden_BTD[:, :-1]], axis=1)


def _prompts(batch, group_size):
    """(tokens_PL, segment_ids_PL): the prompt of each group, moved to the right."""
    tokens_PL, starts_P = (batch[name][::group_size] for name in ('tokens_BL', 'starts_B'))
    room = tokens_PL.shape[1] - batch['completions_BT'].shape[1]
    index_PL = jnp.arange(room)[None, :] - (room - 1 - starts_P)[:, None]
    tokens_PL = jnp.take_along_axis(tokens_PL, jnp.maximum(index_PL, 0), axis=1)
    return tokens_PL, (index_PL >= 0).astype(jnp.int32)


def completion_logprobs(params, model, batch, *, temperature, chunk_size=512, group_size=1):
    """(logprobs_BT, entropy_BT) of the completion's tokens, at the sampling temperature.

    Only hidden states of the completion are unembedded. What stands outside the mask means nothing.
    """
    return ops.token_logprobs(
        completion_hidden(params, model, batch, group_size),
        transformer.unembed_matrix(params, model), batch['completions_BT'],
        temperature=temperature, softcap=model.logit_softcap, chunk_size=chunk_size,
        with_entropy=True)


def policy_logprobs(models, trainable, frozen, batch):
    """(logprobs_BT, entropy_BT) of what is trained."""
    return completion_logprobs(models.policy(trainable, frozen), models.model, batch,
                               temperature=models.temperature, chunk_size=models.chunk_size,
                               group_size=models.group_size)


def policy_values(models, trainable, frozen, batch):
    """[B, T]: the value of what stands before each token of the completion."""
    params = models.value(trainable, frozen)
    return heads.apply_head(params['head'], completion_hidden(
        params['model'], models.value_model, batch, models.group_size))


def clipped_surrogate(logprobs, old_logprobs, advantages, low, high):
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)) with rho = exp(logprobs - old_logprobs).

    Returns (losses, was_clipped), shaped like the log-probs.

    Ref: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    ratio = jnp.exp(logprobs - old_logprobs)
    plain, clipped = -advantages * ratio, -advantages * jnp.clip(ratio, 1 - low, 1 + high)
    return jnp.maximum(plain, clipped), (clipped > plain).astype(jnp.float32)


def k1(logprobs, ref_logprobs):
    """log(pi / ref): unbiased for KL(pi || ref) under samples of pi; belongs into rewards."""
    return logprobs - ref_logprobs


def k3(logprobs, ref_logprobs):
    """ref/pi - 1 - log(ref/pi) >= 0, unbiased for KL(pi || ref), and as a loss with the right
    direction, unlike k1. Ref: Schulman 2020, "Approximating KL divergence"."""
    log_ratio = ref_logprobs - logprobs
    return jnp.exp(log_ratio) - 1 - log_ratio


def old_logprobs(logprobs_BT, batch):
    """Those of sampling time; in a rollout's only step they are the present ones, as constants."""
    return jax.lax.stop_gradient(batch.get('logprobs_BT', logprobs_BT))


def step_metrics(logprobs_BT, entropy_BT, clipped_BT, batch, weights_BT=None):
    """How far this step is from the rollout: {metric: (sum, weight)}.

    Where the trainer computes log-probs for the first time, also how far the sampler's were.
    """
    weights_BT = batch['mask_BT'] if weights_BT is None else weights_BT
    weight = weights_BT.sum()
    old_BT = old_logprobs(logprobs_BT, batch)
    mean = lambda x_BT: (jnp.sum(jnp.where(weights_BT > 0, x_BT, 0.0) * weights_BT), weight)
    metrics = {'approx_kl': mean(k3(old_BT, logprobs_BT)),
               'clip_fraction': mean(clipped_BT),
               'ratio_off': mean(jnp.abs(jnp.exp(logprobs_BT - old_BT) - 1)),
               'entropy': mean(entropy_BT)}
    if 'logprobs_BT' not in batch:
        gap_BT = jnp.abs(batch['sampler_logprobs_BT'] - logprobs_BT)
        metrics['rollout/sampler_gap'] = mean(gap_BT)
        metrics['rollout/sampler_gap_max'] = (
            jnp.max(jnp.where(weights_BT > 0, gap_BT, 0.0)), jnp.float32(1))
    return jax.lax.stop_gradient(metrics)


def masked_sum(x_BT, weights_BT):
    """sum(w x) where nothing outside the weights can make it NaN."""
    return jnp.sum(jnp.where(weights_BT > 0, x_BT, 0.0) * weights_BT)


def sequence_sum(x_BT, mask_BT):
    """[B]: the sum over the tokens of each completion."""
    return jnp.sum(jnp.where(mask_BT > 0, x_BT, 0.0) * mask_BT, axis=1)


def model_inputs(rollout):
    """The arrays of a rollout that every objective needs."""
    known = 'logprobs_BT' if 'logprobs_BT' in rollout else 'sampler_logprobs_BT'
    return {name: rollout[name] for name in (
        'tokens_BL', 'lengths_B', 'starts_B', 'completions_BT', 'mask_BT', known)}
