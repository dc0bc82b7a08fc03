"""The config of the evaluation stage with its common settings."""

import ml_collections


def evaluate_config():
    """Every leaf of an evaluation; without a run."""
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
    return config
