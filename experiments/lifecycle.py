"""The whole life of a model: base, instruct, two reward models, aligned, and all of them compared.

    jaxllm run --config=experiments/lifecycle.py --workdir=runs/life
    jaxllm run --config=experiments/lifecycle.py:seed=1 --workdir=runs/life1
    jaxllm run --config=experiments/lifecycle.py:smoke --workdir=/tmp/life
    jaxllm chat --workdir=runs/life

The steps are runs/life/{base,sft,reward_helpful,reward_safe,aligned,eval}, ordinary run directories
with a report each; stopped anywhere, the same command goes on. The base learns the documents of a
synthetic world, after copies, spam, and unsafe and bad text have been taken out; `eval` asks base,
instruct and aligned model the same prompts, and the world's hidden judge says who wins. In `chat`,
/model changes the model and /compare asks all of them.
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg

_HERE = pathlib.Path(__file__).parent
REWARDS = 'helpful', 'safe'


def get_config(arg=''):
    """`seed` is that of the world and of all training; `smoke` is the path in seconds per step."""
    arg = parse_arg(arg, smoke=False, seed=0)
    steps = _smoke_steps() if arg.smoke else _steps()
    for step in steps.values():
        step.seed = arg.seed
    return ml_collections.ConfigDict(dict(stage='jaxllm.stages.chain', seed=arg.seed, steps=steps))


def _load(file, arg=''):
    return load_file(f'{_HERE / file}:{arg}' if arg else str(_HERE / file))


def _steps():
    steps = dict(base=_load('pretrain.py', 'world=nano,clean'), sft=_load('sft.py'))
    steps['sft'].init_from = '@base'
    for criterion in REWARDS:
        reward = steps[f'reward_{criterion}'] = _load('reward.py', f'criterion={criterion}')
        reward.init_from = '@sft'
    aligned = steps['aligned'] = _load('ppo.py')
    aligned.init_from = '@sft'
    for criterion in REWARDS:
        aligned.rewards[criterion].run = f'@reward_{criterion}'
    steps['eval'] = _evaluation()
    return steps


def _evaluation():
    config = _load('compare.py', f'models=sft+base+aligned,rewards={"+".join(REWARDS)}')
    for name, artefact in config.artefacts.items():
        artefact.path = f'@{name}'
    for criterion in REWARDS:
        config.rewards[criterion].run = f'@reward_{criterion}'
    return config


def _smoke_steps():
    steps = dict(_load('ppo.py', 'smoke').steps.items())
    evaluation = steps['eval'] = _evaluation()
    small = _load('compare.py', 'smoke').steps.compared
    for section in ('data', 'sampling', 'statistics'):
        evaluation[section] = small[section]
    return steps
