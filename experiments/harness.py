"""Evaluate a run with EleutherAI's lm-evaluation-harness. Needs: pip install -e '.[eval]'

    jaxllm run --config=experiments/harness.py --config.run=runs/base --workdir=runs/base-harness
    jaxllm run --config=experiments/harness.py --config.run=runs/base --config.tasks=my/tasks \\
        --workdir=runs/base-mine

`config.tasks` is a folder of task YAML (as experiments/tasks, which needs no network), YAML files,
or names of the harness's own tasks (arc_easy,hellaswag), whose data come from the Hugging Face hub.
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`smoke` trains the smallest model first and evaluates that."""
    arg = parse_arg(arg, smoke=False)
    config = ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.harness',
        seed=0,
        run='',                          # the run directory of a model
        checkpoint='last',               # or 'best', by validation loss
        tasks=str(_HERE / 'tasks'),
        limit=0,                         # items of each task, at most; 0 = all
        num_fewshot=-1,                  # worked examples before each item; -1 = as the task says
        batch_size=32,
        max_length=0))                   # tokens seen at once; 0 = as long as in training
    if not arg.smoke:
        return config
    config.update(run='@base', limit=4)
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0,
        steps=dict(base=load_file(f'{_HERE / "pretrain.py"}:smoke'), harness=config)))
