"""Evaluate the model of a run: bits per byte, and what it knows of its world, suite by suite.

    jaxllm run --config=experiments/evaluate.py --config.run=runs/base --workdir=runs/base_eval
    jaxllm run --config=experiments/evaluate.py --config.run=runs/base \\
        --config.items_file=my_items.jsonl --config.suites="('choice',)" --workdir=runs/base_mine
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`smoke` trains the smallest model in a world first and asks it little."""
    arg = parse_arg(arg, smoke=False)
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.evaluate'
    config.seed = 0
    config.run = ''  # the run directory to evaluate
    config.checkpoint = 'last'  # or 'best', by validation loss
    # 'all' = every suite that the run has something for; see jaxllm/evals/catalogue.py.
    config.suites = ('all',)
    config.items_file = ''  # JSONL of your own multiple-choice items
    config.text = ''   # your own text for bits per byte: a file or folder
    config.settings = ml_collections.ConfigDict(dict(
        split='test', wordings='all', max_items=0, max_requests=100, max_documents=200,
        max_passages=500, max_new_tokens=24, max_response_tokens=64,
        template='Question: {prompt}\nAnswer:', confident_at=0.5, seeds=4,
        temperature=0.7, prefix_tokens=8, next_tokens=12,
        score_batch=1024, generate_batch=256, draws=2000))
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
