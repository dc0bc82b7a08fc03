"""What scores completions in a run: learned rewards and functions, combined; and a world's judge."""

import dataclasses
from typing import Any

import numpy as np

from jaxllm.config import section
from jaxllm.errors import InputError
from jaxllm.models import heads
from jaxllm.rl import combine, rewards
from jaxllm.rl.rollout import InChunks
from jaxllm.stages import reward_model
from jaxllm.stages.world import world_spec
from jaxllm.world import atlas, oracle
from jaxllm.world.features import Asked, Reader


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores completions of prompts by every reward, and combines the scores.

    specs: {name: RewardSpec}. learned: {name: RewardModel}. functions: {name: FunctionReward}.
    rule: combine.CombineConfig.
    """
    specs: dict
    learned: dict
    functions: dict
    rule: Any
    weights: Any = None

    def loaded(self, mesh, rows):
        """The same with the weights of learned rewards in memory, for `rows` rows at once."""
        weights = {}
        for name, model in self.learned.items():
            score = lambda params, batch, model=model: heads.scores(
                params, model.model, batch['tokens_BL'], batch['lengths_B'])
            weights[name] = model.load(mesh), InChunks(score, rows, mesh)
        return dataclasses.replace(self, weights=weights)

    def __call__(self, prompts, samples, arrays, group_size):
        """({name: float32 [N]}, combined float32 [N]) of the completions of `prompts`."""
        asked = [prompt for prompt in prompts for _ in range(group_size)]
        answered = [rewards.Answered(prompt.messages, text, len(tokens), bool(end), prompt.fields)
                    for prompt, text, tokens, end in zip(
                        asked, samples.texts, samples.tokens, samples.finished, strict=True)]
        scores = rewards.score_all(self.functions, answered)
        batch = {name: arrays[name] for name in ('tokens_BL', 'lengths_B')}
        for name, model in self.learned.items():
            params, run = self.weights[name]
            scores[name] = model.normalised(run(params, batch=batch))
        scores = {name: np.asarray(scores[name], np.float32) for name in self.specs}
        weights = {name: spec.weight for name, spec in self.specs.items()}
        return scores, combine.combine(self.rule, scores, weights,
                                       [prompt.fields for prompt in asked])


def make_scorer(config, policy, folder):
    """The Scorer of a config, learned rewards without their weights.

    Args:
      policy: the Base that answers; a learned reward must read its tokens.
      folder: where functions write down what they failed on.

    Raises:
      InputError: no reward, one that does not exist or does not fit, or a rule that does not.
    """
    specs = {name: section(rewards.RewardSpec, spec, f'rewards.{name}')
             for name, spec in config.rewards.items()}
    if not specs:
        raise InputError('config.rewards is empty; add a learned reward or a function, e.g. '
                         "config.rewards.helpful = model_reward('runs/reward_helpful')")
    rule = section(combine.CombineConfig, config.combine, 'combine')
    combine.check(rule, specs)
    learned = {name: reward_model.open_reward(spec.run, policy) for name, spec in specs.items()
               if spec.kind == 'model'}
    functions = {name: rewards.FunctionReward(name, spec, folder) for name, spec in specs.items()
                 if spec.kind == 'function'}
    return Scorer(specs, learned, functions, rule)


def make_judge(config):
    """judge(prompts, texts) -> float [N], the hidden judge of the world; None without one.

    It labels no data and is no reward: it is there to be looked at.
    """
    if config.eval.judge == '':
        return None
    if config.eval.judge != 'world' or 'world' not in config:
        raise InputError(f"config.eval.judge={config.eval.judge!r}: expected '' or, in a run with "
                         "config.world, 'world'")
    spec = world_spec(config.world)
    judge = oracle.Judge(Reader.of(atlas.atlas(spec.seed, spec.scale, spec.intervention)))
    return lambda prompts, texts: judge.scores([Asked.of(p.fields) for p in prompts], texts)
