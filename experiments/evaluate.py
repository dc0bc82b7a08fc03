"""Evaluate the model of a run: bits per byte, and what it knows of its world, suite by suite.

    jaxllm run --config=experiments/evaluate.py --config.run=runs/base --workdir=runs/base_eval
    jaxllm run --config=experiments/evaluate.py --config.run=runs/base --config.suites="('choice',)" \
        --config.items_file=my_items.jsonl --workdir=runs/base_choice
"""

import ml_collections

from jaxllm.config import parse_arg


def get_config(arg=''):
    """`run` is the run directory to evaluate; `smoke` asks little."""
    arg = parse_arg(arg, smoke=False, run='')
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.evaluate'
    config.seed = 0
    config.run = arg.run
    # 'all' = every suite that the run has something for; see jaxllm/evals/catalogue.py.
    config.suites = ('all',)
    config.items_file = ''  # JSONL of your own multiple-choice items
    config.text = ''   # your own text for bits per byte: a file or folder
    config.settings = ml_collections.ConfigDict(dict(
        split='test', max_items=0, max_requests=100, max_documents=200, max_passages=500,
        max_new_tokens=24, max_response_tokens=64, template='Question: {prompt}\nAnswer:',
        confident_at=0.5, seeds=4, temperature=0.7, prefix_tokens=8, next_tokens=12,
        score_batch=1024, generate_batch=256, draws=2000))
    if arg.smoke:
        config.settings.update(max_items=6, max_requests=4, max_documents=4, max_passages=16,
                               max_new_tokens=8, max_response_tokens=8, seeds=2,
                               score_batch=64, generate_batch=16, draws=200)
    return config
