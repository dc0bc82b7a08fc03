"""Evaluate the model of a run: bits per byte, and what it knows of its world, suite by suite.

    jaxllm run --config=experiments/evaluate.py --config.run=runs/base --workdir=runs/base_eval
    jaxllm run --config=experiments/evaluate.py --config.run=runs/base \\
        --config.items_file=my_items.jsonl --config.suites="('choice',)" --workdir=runs/base_mine
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.stages.evaluate_config import evaluate_config

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`smoke` trains the smallest model in a world first and asks it little."""
    arg = parse_arg(arg, smoke=False)
    config = evaluate_config()
    if not arg.smoke:
        return config
    config.run = '@base'
    config.settings.update(max_items=6, max_requests=4, max_documents=4, max_passages=16,
                           max_new_tokens=8, max_response_tokens=8, seeds=2, score_batch=64,
                           generate_batch=16, draws=200)
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0,
        steps=dict(base=load_file(f'{_HERE / "pretrain.py"}:smoke,world=nano'),
                   evaluation=config)))
