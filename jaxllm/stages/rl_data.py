"""The data of reinforcement learning: prompts to answer, in which order, and text for a
pre-training loss beside it."""

import dataclasses
import hashlib
import json
from typing import Any

import grain
import jax
import numpy as np

from jaxllm.config import section, write_atomic
from jaxllm.data import prompts as readers
from jaxllm.data.dialogues import DialogueSpec
from jaxllm.data.loader import Indices, PackedData, component_seed
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.evals.items import spread
from jaxllm.objectives.base import LossSums, Term
from jaxllm.objectives.lm import lm
from jaxllm.rl import rollout
from jaxllm.stages import corpus

PTX = 'ptx/'  # of arrays of the pre-training text in a batch


@dataclasses.dataclass(frozen=True)
class DataConfig:
    prompts: object          # {name: DialogueSpec}
    replay: object           # {name: records.SourceSpec}: text for ptx_coef
    max_prompt_tokens: int   # rendered; longer prompts are rejected and counted
    holdout_share: float     # of the prompts of a source without a validation split
    max_reject_share: float
    replay_seq_len: int      # tokens per row of that text; as many rows as train.batch_size

    def __post_init__(self):
        if self.max_prompt_tokens < 1 or self.replay_seq_len < 2:
            raise InputError(f'data.max_prompt_tokens={self.max_prompt_tokens} and replay_seq_len='
                             f'{self.replay_seq_len} must be at least 1 and 2')
        if not 0 < self.holdout_share < 1 or not 0 <= self.max_reject_share <= 1:
            raise InputError(f'data.holdout_share={self.holdout_share}, max_reject_share='
                             f'{self.max_reject_share}: expected shares, the first within (0, 1)')


@dataclasses.dataclass(frozen=True)
class Prompts:
    """train: [(name, prompts, weight)]; held_out: prompts that are only evaluated on; rows: about
    each source, for the report."""
    train: list
    held_out: list
    rows: list
    fingerprint: str


def sources(config):
    """(DialogueSpecs of prompts, SourceSpecs of replayed text) of config.data."""
    data = config.data
    if not data.prompts:
        raise InputError('config.data.prompts is empty; add a source with a path')
    world = corpus.check_world({**data.prompts, **data.replay}, config)
    return [section(DialogueSpec, {**spec.to_dict(), **corpus.own(name, spec, world)},
                    f'data.prompts.{name}') for name, spec in data.prompts.items()], [
        section(corpus.SourceSpec, {**spec, **corpus.own(name, spec, world)},
                f'data.replay.{name}') for name, spec in data.replay.items()]


def read(config, template, tokenizer, max_held_out, folder):
    """The Prompts of config.data; what cannot be used is in folder/rejects-<source>.jsonl.

    A held-out prompt is none that is trained on, in whatever source.

    Raises:
      InputError: more of a source than data.max_reject_share cannot be used, or none is held out.
    """
    data, specs = config.data, sources(config)[0]
    train, held_out, rows = [], {}, []
    for spec in specs:
        rejects = Rejects(folder / f'rejects-{spec.name}.jsonl' if jax.process_index() == 0 else '')
        parts = dataclasses.replace(spec, validation_split=''), dataclasses.replace(
            spec, split=spec.validation_split or spec.split, validation_split='')
        found, repeated = readers.read_prompts(parts[0], template, tokenizer,
                                               data.max_prompt_tokens, rejects)
        if spec.validation_split:
            apart, again = readers.read_prompts(parts[1], template, tokenizer,
                                                data.max_prompt_tokens, rejects)
            repeated += again
        else:
            apart = [prompt for prompt in found if _share(prompt) < data.holdout_share]
            found = [prompt for prompt in found if _share(prompt) >= data.holdout_share]
        rejects.check(data.max_reject_share)
        if not found:
            raise InputError(f'source {spec.name!r} has no prompt left to train on; lower '
                             'data.holdout_share')
        train.append((spec.name, found, spec.weight))
        held_out |= {prompt.ids: prompt for prompt in apart}
        rows.append({'source': spec.name, 'path': spec.path, 'license': spec.license,
                     'prompts': len(found), 'held_out': len(apart), 'repeated': repeated,
                     'weight': spec.weight, 'rejects': rejects.summary()[spec.name]})
    trained = {prompt.ids for _, found, _ in train for prompt in found}
    apart = spread([p for ids, p in held_out.items() if ids not in trained], max_held_out)
    if not apart:
        raise InputError('no prompt is held out to evaluate on; give a source with a validation '
                         'split, or more prompts')
    if jax.process_index() == 0:
        write_atomic(folder / 'prompts.json', json.dumps(rows, indent=1))
    ids = [(name, [p.ids for p in found], weight) for name, found, weight in train]
    digest = hashlib.sha256(repr((ids, [p.ids for p in apart])).encode()).hexdigest()
    return Prompts(train, apart, rows, digest[:32])


def _share(prompt):
    """A number in [0, 1) of a prompt: where it goes does not depend on the others."""
    text = json.dumps(prompt.messages, ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), 'big') / 2**32


class PromptOrder:
    """An endless mixture of prompts: element i, each source in another order in every epoch."""

    def __init__(self, train, seed):
        self._train = train
        self._mixture = grain.MapDataset.mix(
            [Indices(which, len(found)).shuffle(seed=component_seed(name, seed)).repeat()
             for which, (name, found, _) in enumerate(train)], [weight for *_, weight in train])

    def take(self, first, count):
        """Prompts first .. first + count - 1."""
        picked = (self._mixture[first + i] for i in range(count))
        return [self._train[int(which)][1][int(i) % len(self._train[int(which)][1])]
                for which, i in picked]


def replay(config, tokenizer, folder):
    """batches(step) of text for the pre-training loss, {PTX + name: array}; None without it."""
    if not config.ptx_coef:
        return None, ''
    specs = sources(config)[1]
    stores = corpus.make_stores(config.data, specs, tokenizer, folder)
    packed = PackedData([(spec.name, stores[spec.name].train, spec.weight) for spec in specs],
                        seq_len=config.data.replay_seq_len, batch_size=config.train.batch_size,
                        seed=config.seed, process_index=jax.process_index(),
                        process_count=jax.process_count())
    return lambda step: {PTX + name: x for name, x in packed(step).items()}, packed.fingerprint


def with_columns(objective, models, ptx_coef):
    """An objective with the pre-training loss of a batch's text beside its own ("PPO-ptx"), and
    with a batch's columns 'rollout/...' as metrics. Ref: Ouyang et al. 2022, equation 2."""
    text = lm(models.model, chunk_size=models.chunk_size)

    def both(trainable, frozen, batch, rng):
        own = {name: x for name, x in batch.items() if '/' not in name}
        sums = objective(trainable, frozen, own, rng)
        terms, metrics = dict(sums.terms), dict(sums.metrics)
        for name, x in batch.items():
            if name.startswith('rollout/'):
                metrics[name] = x.sum(), np.float32(x.shape[0])
        if ptx_coef:
            own_text = {name.removeprefix(PTX): x for name, x in batch.items()
                        if name.startswith(PTX)}
            ptx = text(models.policy(trainable, frozen), frozen, own_text, rng)
            terms['ptx'] = Term(ptx.terms['lm'].sum, ptx.terms['lm'].weight, ptx_coef)
            metrics['ptx_nll'] = ptx.metrics['nll']
        return LossSums(terms, metrics)
    return both


def records(asked, samples, arrays, scores, group_size):
    """Lines of rollouts/NNNNNN.jsonl and answers/NNNNNN.jsonl, one of each completion.

    Args:
      asked: prompts, each with `group_size` neighbours of samples. arrays: with log-probs and
        rewards_B. scores: {name: [N]}.
    """
    log_ratio_BT = rollout.logprobs(arrays) - arrays['ref_logprobs_BT']
    kl_B = np.sum(log_ratio_BT * arrays['mask_BT'], axis=1)
    return [record(
        asked[row // group_size], text, reward=round(float(arrays['rewards_B'][row]), 5),
        scores={name: round(float(score[row]), 5) for name, score in scores.items()},
        kl=round(float(kl_B[row]), 4), tokens=len(samples.tokens[row]),
        finished=bool(samples.finished[row])) for row, text in enumerate(samples.texts)]


def record(prompt, text: str, **about: Any):
    """A line of rollouts/NNNNNN.jsonl."""
    return {'id': prompt.id, 'prompt': prompt.text, 'response': text, **about}
