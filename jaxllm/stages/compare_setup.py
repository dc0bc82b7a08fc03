"""What a comparison needs, checked and opened before anything is sampled."""

import dataclasses
from typing import Any

from jaxllm.config import check_keys, section
from jaxllm.data.dialogues import DialogueSpec
from jaxllm.errors import InputError
from jaxllm.rl import rewards
from jaxllm.stages import compare_samples as samples
from jaxllm.stages import compare_suites as suites
from jaxllm.stages import corpus, reward_model, rl_rewards
from jaxllm.stages.compare_checkpoints import open_entries
from jaxllm.stages.world import check_learned, world_spec

_SECTIONS = ('stage', 'seed', 'artefacts', 'reference', 'data', 'sampling', 'rewards', 'eval',
             'suites', 'settings', 'statistics')
WORLD = 'world'  # the hidden judge


@dataclasses.dataclass(frozen=True)
class DataConfig:
    prompts: object          # {name: DialogueSpec}
    max_prompts: int         # evenly from all; 0 = all
    max_prompt_tokens: int   # rendered for the reference; longer prompts are rejected and counted
    max_reject_share: float


@dataclasses.dataclass(frozen=True)
class Statistics:
    draws: int        # of the bootstrap
    equal_kl: float   # nats at which methods are compared; 0 = the most that all of them reach

    def __post_init__(self):
        if self.draws < 1 or self.equal_kl < 0:
            raise InputError(f'statistics: got {self}; expected draws >= 1 and equal_kl >= 0')


@dataclasses.dataclass(frozen=True)
class Setup:
    """A config, checked and opened. entries, opened: by name; specs: of rewards; evaluations:
    configs by name."""
    entries: dict
    opened: dict
    data: DataConfig
    sources: list
    sampling: Any
    statistics: Statistics
    specs: dict
    learned: dict
    judge: Any
    evaluations: dict


def prepare(config):
    """Checks all that needs no data. Returns the Setup."""
    check_keys(config, (*_SECTIONS, 'world') if 'world' in config else _SECTIONS)
    names = sorted(config.artefacts, key=lambda name: name != config.reference)  # it comes first
    entries = {name: section(samples.Entry, config.artefacts[name], f'artefacts.{name}')
               for name in names}
    if config.reference not in entries:
        raise InputError(f'config.reference={config.reference!r} is none of config.artefacts '
                         f'({", ".join(entries) or "which is empty"})')
    if entries[config.reference].best_of > 1:
        raise InputError(f'the reference {config.reference!r} is a best of several, which has no '
                         'log-probs; compare with a model as it is')
    specs = {name: section(rewards.RewardSpec, spec, f'rewards.{name}')
             for name, spec in config.rewards.items()}
    _check(config, entries, specs)
    entries, opened = open_entries(entries, config.reference)
    template_of(opened, config.reference)
    if 'world' in config:
        asked = world_spec(config.world)
        for name, base in opened.items():
            check_learned(f'config.artefacts.{name}', base.path, asked)
    learned = {name: reward_model.open_reward(spec.run) for name, spec in specs.items()
               if spec.kind == 'model'}
    return Setup(entries, opened, section(DataConfig, config.data, 'data'), _sources(config),
                 section(samples.SamplingSettings, config.sampling, 'sampling'),
                 section(Statistics, config.statistics, 'statistics'), specs, learned,
                 rl_rewards.make_judge(config), suites.configs_of(config, entries))


def _check(config, entries, specs):
    if not specs and not config.eval.judge:
        raise InputError("no judge: give config.eval.judge='world' in a world, or a reward in "
                         'config.rewards')
    if WORLD in specs:
        raise InputError(f'config.rewards.{WORLD}: this name is the hidden judge\'s; use another')
    for name, entry in entries.items():
        if not all(c.isalnum() or c in '-_.' for c in name) or name.startswith('.'):
            raise InputError(f'config.artefacts has {name!r}, which names a file of samples; use '
                             'letters, digits, - and _')
        if entry.reward and entry.reward not in specs:
            raise InputError(f'config.artefacts.{name}.reward={entry.reward!r} is none of '
                             f'config.rewards ({", ".join(specs) or "which is empty"})')


def _sources(config):
    if not config.data.prompts:
        raise InputError('config.data.prompts is empty; add a source with a path')
    world = corpus.check_world(config.data.prompts, config)
    return [section(DialogueSpec, {**spec.to_dict(), **corpus.own(name, spec, world)},
                    f'data.prompts.{name}') for name, spec in config.data.prompts.items()]


def template_of(opened, reference):
    """(tokenizer, template) that prompts are read with: the reference's, or another model's."""
    for base in (opened[reference], *opened.values()):
        if template := base.template():
            return base.tokenizer(), template
    raise InputError('none of config.artefacts has a chat template; one at least must have learned '
                     'to answer, e.g. a run of experiments/sft.py')
