"""Measure reward models of several seeds together: the mean, the spread, and what is unusual.

    jaxllm run --config=experiments/reward.py --config.init_from=runs/w_sft --workdir=runs/a
    jaxllm run --config=experiments/reward.py --config.init_from=runs/w_sft --config.seed=1 \\
        --config.world.seed=0 --workdir=runs/b
    jaxllm run --config=experiments/reward_ensemble.py:runs=runs/a+runs/b --workdir=runs/both
    jaxllm run --config=experiments/reward_ensemble.py:smoke --workdir=/tmp/ensemble
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`runs` are the members, joined by +; `smoke` trains two of them first, in seconds."""
    arg = parse_arg(arg, smoke=False, runs='')
    config = ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.reward_ensemble', seed=0,
        members={f'm{i}': path for i, path in enumerate(filter(None, arg.runs.split('+')))},
        foreign=dict(texts=200), sharding=dict(preset='fsdp', data=0, fsdp=0, tensor=0)))
    if not arg.smoke:
        return config
    steps = load_file(f'{_HERE / "reward.py"}:smoke').steps.to_dict()
    steps['other'] = dict(steps['reward'], seed=1)
    config.members = dict(m0='@reward', m1='@other')
    config.foreign.texts = 8
    return ml_collections.ConfigDict(dict(stage='jaxllm.stages.chain', seed=0,
                                          steps=dict(steps, both=config)))
