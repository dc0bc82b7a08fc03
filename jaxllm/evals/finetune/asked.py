"""A chat model that is asked: what it thinks of given answers, and what it answers itself."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from jaxllm import decode
from jaxllm.data import chat
from jaxllm.decode.batch import bucket
from jaxllm.models import transformer
from jaxllm.objectives.ops import token_logprobs
from jaxllm.sharding import batch_shardings, batch_ways, replicated

_TOKENS = 4096  # per batch of given answers


@dataclasses.dataclass(frozen=True)
class Asked:
    """A model and how it is talked to; use under `jax.set_mesh`. context: tokens that it sees."""
    params: Any
    cfg: Any
    tokenizer: Any
    template: Any
    stop_ids: tuple
    context: int

    def prompt(self, messages):
        """Token ids of messages, up to where the answer begins."""
        return chat.render(self.template, messages, self.tokenizer, add_generation_prompt=True,
                           train=False).ids


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Of the answers of each record, float64 [records]: -log p [nats], tokens, bytes of text."""
    nll: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray


def likelihood(asked, conversations):
    """What a model thinks of given answers: the tokens that fine-tuning learns, and only these.

    Args:
      conversations: lists of messages; each is cut at the context.

    Returns:
      Likelihood.
    """
    rendered = [chat.render(asked.template, messages, asked.tokenizer)
                for messages in conversations]
    ids = [one.ids[:asked.context + 1] for one in rendered]
    weights = [one.loss_weights[:asked.context + 1] for one in rendered]
    lengths = asked.tokenizer.byte_lengths()
    out = np.zeros((3, len(ids)))
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    while order:
        L = bucket(len(ids[order[-1]]) - 1)
        some, order = order[-max(1, _TOKENS // L):], order[:-max(1, _TOKENS // L)]
        logprobs_BL = _logprobs(asked, [ids[i] for i in some], L)
        for row, i in enumerate(some):
            weight = np.array(weights[i][1:])
            out[0, i] = -(logprobs_BL[row, :len(weight)].astype(np.float64) * weight).sum()
            out[1, i] = weight.sum()
            out[2, i] = (lengths[ids[i][1:]] * weight).sum()
    return Likelihood(*out)


def _logprobs(asked, rows, L):
    mesh = jax.sharding.get_mesh()
    B = batch_ways(mesh) * bucket(-(-len(rows) // batch_ways(mesh)), least=1)
    tokens_BL, targets_BL = np.zeros((B, L), np.int32), np.zeros((B, L), np.int32)
    for row, ids in enumerate(rows):
        tokens_BL[row, :len(ids) - 1] = ids[:-1]
        targets_BL[row, :len(ids) - 1] = ids[1:]
    batch = {'tokens': tokens_BL, 'targets': targets_BL}
    batch = jax.device_put(batch, batch_shardings(batch, mesh))
    return jax.device_get(_program(mesh)(asked.params, batch['tokens'], batch['targets'],
                                         cfg=asked.cfg))


@functools.cache
def _program(mesh):
    def run(params, tokens_BL, targets_BL, *, cfg):
        hidden_BLD = transformer.apply_hidden(params, cfg, tokens_BL)
        return token_logprobs(hidden_BLD, transformer.unembed_matrix(params, cfg), targets_BL,
                              softcap=cfg.logit_softcap)
    return jax.jit(run, static_argnames='cfg', out_shardings=replicated(mesh))


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model answered. stopped: by itself; confidence: mean probability per token."""
    text: str
    stopped: bool
    confidence: float


def replies(asked, conversations, *, max_new_tokens, temperature=0.0, seed=0, batch_size=16):
    """A Reply to each list of messages (the last one a user's), greedy or sampled.

    Prompts beyond the context lose their beginning.
    """
    if not conversations:
        return []
    room = max(asked.context - max_new_tokens, 1)
    prompts = [asked.prompt(messages)[-room:] for messages in conversations]
    out = decode.generate(
        asked.params, asked.cfg, prompts,
        decode.SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature),
        stop_ids=asked.stop_ids, pad_id=asked.tokenizer.pad_id, seed=seed,
        tokenizer=asked.tokenizer, batch_size=batch_size)
    return [Reply(text.strip(), finish == 'stop', float(np.exp(np.mean(logprobs))))
            for text, finish, logprobs in zip(out.texts, out.finish, out.logprobs, strict=True)]
