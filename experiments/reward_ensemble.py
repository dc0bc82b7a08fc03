"""Measure reward models of several seeds together: the mean, the spread, and what is unusual.

    jaxllm run --config=experiments/reward.py --config.init_from=runs/w_sft --workdir=runs/a
    jaxllm run --config=experiments/reward.py --config.init_from=runs/w_sft --config.seed=1 \\
        --config.world.seed=0 --workdir=runs/b
    jaxllm run --config=experiments/reward_ensemble.py:runs=runs/a+runs/b --workdir=runs/both
    jaxllm run --config=experiments/reward_ensemble.py:smoke --workdir=/tmp/ensemble

Expect (three members, seeds 0, 1, 2, on the life of world seed 0; 2 minutes on two cores): members
order 0.590, 0.591 and 0.577 of 1,427 held-out pairs rightly, their mean 0.585 [0.555, 0.616], no
more than one alone. Of ordinary answers 0.067 [0.048, 0.086] are flagged as unusual (the thresholds
aim at 0.05), of random tokens 0.865 [0.815, 0.910], of English prose 0.570 [0.505, 0.635], of
answers to other prompts 0.050 [0.020, 0.080]. Nearly all of that is the distance of hidden states
from those of training; the spread over members tells little.
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
