"""Evaluation during reinforcement learning: held-out prompts answered and scored."""

import dataclasses
import json

import jax
import numpy as np

from jaxllm import rng
from jaxllm.config import write_atomic
from jaxllm.errors import InputError
from jaxllm.rl import combine, rollout
from jaxllm.stages import rl_data


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    max_prompts: int    # held-out prompts, one answer each; 0 = all
    kl_weight: float    # checkpoints are ranked by reward - kl_weight * KL
    judge: str          # '' or 'world': its hidden judge, which no reward has seen

    def __post_init__(self):
        if self.max_prompts < 0 or self.kl_weight < 0:
            raise InputError(f'eval.max_prompts={self.max_prompts} and eval.kl_weight='
                             f'{self.kl_weight} must not be negative')


def answer(setup, params, prompts, seed):
    """(Samples, arrays) of one answer to each prompt, sampled as in a rollout."""
    settings = dataclasses.replace(setup.rollout, samples=1)
    samples = rollout.sample(params, setup.model, [p.ids for p in prompts], settings,
                             setup.tokenizer, setup.stop_ids,
                             jax.random.fold_in(rng.key(seed, rng.SAMPLE), 0))
    return samples, rollout.to_arrays([p.ids for p in prompts], samples, 1, setup.prompt_room,
                                      settings.max_new_tokens, setup.tokenizer.pad_id)


def make_evaluate(setup, prompts, frozen, forward, seed, folder):
    """evaluate(state) -> {'val/loss', 'val/reward', 'val/<reward>', 'val/kl', 'val/length', ...}.

    Every evaluation draws with the same keys, so that two of the same policy are equal. 'val/loss'
    is what ranks checkpoints: -(reward - kl_weight * KL per sequence). With a judge there are
    'val/gold', its mean score, and 'val/gold_win_rate' against the reference's answers to
    the same prompts. The answers are kept in folder/<step>.jsonl.
    """
    ref_gold = None

    def evaluate(state):
        nonlocal ref_gold
        params = setup.networks.models.policy(state.trainable, frozen)
        samples, arrays = answer(setup, params, prompts, seed)
        arrays |= forward(state.trainable, frozen, batch=arrays)
        scores = setup.scorer.scores(prompts, samples, arrays, 1)
        rewards = setup.scorer.combined(scores, prompts, 1, absolute=True)
        rewards = rollout.judged_by_end(setup.rollout, rewards, samples.finished)
        arrays |= {'rewards_B': rewards}
        values = rollout.summary(arrays, scores, 1)
        values = {f'val/{name}': x for name, x in values.items() if name != 'equal_groups'}
        values['val/loss'] = setup.eval.kl_weight * values['val/kl'] - values['val/reward']
        if setup.judge:
            if ref_gold is None:
                theirs, _ = answer(setup, setup.networks.reference(frozen), prompts, seed)
                ref_gold = setup.judge(prompts, theirs.texts)
            gold = setup.judge(prompts, samples.texts)
            values['val/gold'] = float(np.mean(gold))
            near = np.abs(gold - ref_gold) < 1e-9
            values['val/gold_win_rate'] = float(np.mean(np.where(near, 0.5, gold > ref_gold)))
            scores = scores | {'gold': gold}
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            write_atomic(folder / f'{int(state.step):06d}.jsonl', ''.join(
                json.dumps(row, ensure_ascii=False) + '\n' for row in rl_data.records(
                    prompts, samples, arrays, scores, 1)))
        return values

    return evaluate


def standardiser(setup, prompts, frozen, seed, workdir):
    """The scale on which rewards are combined: mean 0 and variance 1 over the reference's answers
    to held-out prompts. Fitted once, and kept in the run."""
    file = workdir / 'rewards' / 'scale.json'
    if not file.exists():
        samples, arrays = answer(setup, setup.networks.reference(frozen), prompts, seed)
        fitted = combine.Standardiser.fit(setup.scorer.scores(prompts, samples, arrays, 1))
        if jax.process_count() > 1:  # the same numbers whether it was fitted or read
            return fitted
        fitted.save(file)
    return combine.Standardiser.load(file)
