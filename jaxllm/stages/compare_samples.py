"""Answers of the models of a comparison: sampled once, kept in files, held to the reference."""

import dataclasses
import functools
import json

import jax
import numpy as np

from jaxllm import decode, rng
from jaxllm.config import write_atomic
from jaxllm.errors import InputError
from jaxllm.objectives import policy
from jaxllm.rl import best_of_n, rollout
from jaxllm.rl.rewards import Answered
from jaxllm.train.progress import stage as say

_ROOM = 16  # lengths of prompts are rounded up to a multiple, so that fewer programs are compiled


@dataclasses.dataclass(frozen=True)
class Entry:
    """A section of config.artefacts."""
    path: str
    checkpoint: str      # best, last, a step, or all
    temperature: float   # 0 = greedy
    best_of: int         # answers to each prompt, of which
    reward: str          # this one of config.rewards picks; '' for 1
    method: str

    def __post_init__(self):
        if self.best_of < 1 or not self.temperature >= 0:
            raise InputError(f'best_of={self.best_of}, temperature={self.temperature}: expected at '
                             'least 1 and at least 0')
        if (self.best_of > 1) != bool(self.reward):
            raise InputError(f'best_of={self.best_of} with reward={self.reward!r}: the best of '
                             'several is picked by a reward, and one answer is not picked; give '
                             'both, or neither')
        if self.best_of > 1 and self.temperature == 0:
            raise InputError(f'best_of={self.best_of} at temperature=0: all answers are the same; '
                             'use e.g. 1.0')


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    max_new_tokens: int      # of an answer, its end included
    batch_size: int          # rows that are sampled at once; 0 = all
    score_batch_size: int    # rows of a forward pass

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.batch_size < 0 or self.score_batch_size < 1:
            raise InputError(f'sampling: got {self}; expected max_new_tokens and score_batch_size '
                             'of at least 1, batch_size of at least 0 (all)')


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """What `rollout.sample` reads of its settings."""
    samples: int
    sampling: decode.SamplingConfig
    batch_size: int
    refill: bool = True


def prompt_ids(template, conversation, tokenizer, prompt):
    """Token ids of a prompt as this model is asked it: a base model continues its text."""
    if template:
        return tuple(conversation(list(prompt.messages)))
    text = '\n'.join(message['content'] for message in prompt.messages)
    return (tokenizer.bos_id, *tokenizer.encode(text + '\n'))


def answers(name, entry, base, load, prompts, settings, pick, seed, folder):
    """Rows of samples/<name>.jsonl, one of each prompt; those of an earlier start are kept.

    Args:
      load: load() -> Artifact, called where something has to be sampled. pick: scores of Answered
        by the reward that picks, or None. seed: of the sampling, the same for every model.
    """
    path, state = folder / f'{name}.jsonl', f'{base.fingerprint}@{base.step}'
    if path.exists():
        rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        if [(row['id'], row['of']) for row in rows] == [(p.id, state) for p in prompts]:
            say(f'{name}: {len(rows):,} answers are there')
            return rows
    say(f'{name}: {len(prompts):,} prompts, {entry.best_of} answers to each ...')
    artefact = load()
    ids = [prompt_ids(artefact.template, artefact.conversation, artefact.tokenizer, prompt)
           for prompt in prompts]
    how = _Drawn(entry.best_of, decode.SamplingConfig(
        max_new_tokens=settings.max_new_tokens, temperature=entry.temperature), settings.batch_size)
    with jax.set_mesh(artefact.mesh):
        drawn = rollout.sample(artefact.params, artefact.model, ids, how, artefact.tokenizer,
                               artefact.stop_ids, rng.key(seed, rng.SAMPLE))
    chosen = np.arange(len(prompts)) * entry.best_of
    if entry.best_of > 1:
        asked = [prompt for prompt in prompts for _ in range(entry.best_of)]
        scores = pick(answered(asked, drawn.texts, drawn.tokens, drawn.finished))
        chosen = chosen + best_of_n.pick(np.reshape(scores, (len(prompts), entry.best_of)))
    rows = [{'id': prompt.id, 'prompt': prompt.text, 'response': drawn.texts[i],
             'tokens': [int(x) for x in drawn.tokens[i]], 'finished': bool(drawn.finished[i]),
             'of': state} for prompt, i in zip(prompts, chosen, strict=True)]
    logprobs = sequence_logprobs(artefact, ids, rows, entry.temperature, settings)
    rows = [row | {'logprob': None if logprobs is None else round(float(logprobs[i]), 5)}
            for i, row in enumerate(rows)]
    if jax.process_index() == 0:
        folder.mkdir(exist_ok=True)
        write_atomic(path, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
    return rows


def answered(prompts, texts, tokens, finished):
    """Records for rewards."""
    return [Answered(prompt.messages, text, len(ids), bool(end), prompt.fields)
            for prompt, text, ids, end in zip(prompts, texts, tokens, finished, strict=True)]


def sequence_logprobs(artefact, ids, rows, temperature, settings):
    """log p of each answer after its prompt, at a temperature, float [N]; None at 0, where it is 0
    or minus infinity."""
    if temperature == 0:
        return None
    room = -(-max(map(len, ids)) // _ROOM) * _ROOM
    drawn = rollout.Samples([row['tokens'] for row in rows], [], np.zeros(len(rows), np.float32),
                            [np.zeros(len(row['tokens'])) for row in rows], 0)
    arrays = rollout.to_arrays(ids, drawn, 1, room, settings.max_new_tokens,
                               artefact.tokenizer.pad_id)
    sums = _compiled(artefact.model, temperature, min(settings.score_batch_size, len(rows)),
                     artefact.mesh)
    with jax.set_mesh(artefact.mesh):
        return sums(artefact.params, batch=arrays)


@functools.lru_cache
def _compiled(model, temperature, rows, mesh):
    """Models of one shape share a program."""
    return rollout.InChunks(functools.partial(_sums, model, temperature), rows, mesh)


def _sums(model, temperature, params, batch):
    logprobs_BT, _ = policy.completion_logprobs(params, model, batch, temperature=temperature)
    return policy.sequence_sum(logprobs_BT, batch['mask_BT'])
