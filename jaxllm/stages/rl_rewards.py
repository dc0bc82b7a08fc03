"""What scores completions in a run: learned rewards and functions, combined; a world's judge."""

import dataclasses
import functools
from typing import Any

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

    specs: {name: RewardSpec}. learned: {name: RewardModel}. rule: combine.CombineConfig. functions:
    {name: FunctionReward} and weights: {name: (parameters, InChunks)}, once opened. standardise:
    scores to scores on one scale, as the rule combines them.
    """
    specs: dict
    learned: dict
    rule: Any
    functions: Any = None
    weights: Any = None
    standardise: Any = None

    def opened(self, mesh, rows, folder):
        """The same with functions in processes of their own, which write records that they fail on
        to `folder`, and weights of learned rewards in memory, for `rows` rows at once."""
        functions = {name: spec for name, spec in self.specs.items() if spec.kind == 'function'}
        functions = rewards.open_rewards(functions, folder) if functions else {}
        weights = {name: (model.load(mesh), InChunks(functools.partial(_raw_scores, model.model),
                                                     rows, mesh))
                   for name, model in self.learned.items()}
        return dataclasses.replace(self, functions=functions, weights=weights)

    def close(self):
        """Ends the processes of functions."""
        rewards.close_rewards(self.functions)

    def scores(self, prompts, samples, arrays, group_size):
        """{name: float32 [N]} of completions, `group_size` neighbours to each of `prompts`.

        Learned scores have mean 0 and variance 1 on the answers that their models were
        normalised on; those of functions are as the functions give them.
        """
        asked = [prompt for prompt in prompts for _ in range(group_size)]
        answered = [rewards.Answered(prompt.messages, text, len(tokens), bool(end), prompt.fields)
                    for prompt, text, tokens, end in zip(
                        asked, samples.texts, samples.tokens, samples.finished, strict=True)]
        found = rewards.score_all(self.functions, answered)
        batch = {name: arrays[name] for name in ('tokens_BL', 'lengths_B')}
        learned = {name: lambda answered, name=name: self.learned[name].normalise(
            self.weights[name][1](self.weights[name][0], batch=batch)) for name in self.learned}
        found |= rewards.score_all(learned, answered)
        return {name: found[name] for name in self.specs}

    def combined(self, scores, prompts, group_size, *, absolute=False):
        """One reward for each completion, float32 [N]. `absolute`: comparable between batches."""
        if self.standardise is not None:
            scores = self.standardise(scores)
        return combine.combine(
            self.rule, scores, {name: spec.weight for name, spec in self.specs.items()},
            [prompt.fields for prompt in prompts for _ in range(group_size)], group_size, absolute)


def _raw_scores(model, params, batch):
    return heads.scores(params, model, batch['tokens_BL'], batch['lengths_B'])


def make_scorer(config, tokenizer, template):
    """The Scorer of a config, not opened.

    Raises:
      InputError: no reward, one that does not exist or reads other tokens than the policy writes,
        or a rule that does not fit them.
    """
    specs = {name: section(rewards.RewardSpec, spec, f'rewards.{name}')
             for name, spec in config.rewards.items()}
    if not specs:
        raise InputError('config.rewards is empty; add a learned reward or a function, e.g. '
                         "config.rewards.helpful = model_reward('runs/reward_helpful')")
    rule = section(combine.CombineConfig, config.combine, 'combine')
    combine.check(rule, specs)
    return Scorer(specs, {name: reward_model.open_reward(spec.run, tokenizer, template)
                          for name, spec in specs.items() if spec.kind == 'model'}, rule)


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
