"""Fine-tune a model on your own data: prepare, choose, method, run, evaluate; one report.

    jaxllm data fetch smollm2                                    # prints the path of a small model
    jaxllm run --config=experiments/finetune.py:data=my.jsonl,model=smollm2.gguf --workdir=runs/mine
    jaxllm finetune --data=my.jsonl --model=smollm2.gguf --workdir=runs/mine       # the same
    jaxllm run --config=experiments/finetune.py:smoke --workdir=/tmp/finetune

finetune_example.jsonl beside this file shows the format: one record per line, a prompt and a
response; conversations and preferences are read too (jaxllm/data/conversations.py).
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.stages.finetune_config import finetune_config

_HERE = pathlib.Path(__file__).parent
_EXAMPLE = str(_HERE / 'finetune_example.jsonl')


def get_config(arg=''):
    """`data` is your file, `model` a run, a FILE.gguf or a folder of weights; `smoke` makes a tiny
    base first, in seconds."""
    arg = parse_arg(arg, smoke=False, data=_EXAMPLE, model='', method='lora')
    config = finetune_config()
    config.data, config.method = arg.data, arg.method
    config.models = (arg.model,) if arg.model else ()
    return _smoke(config) if arg.smoke else config


def _smoke(config):
    """On the smallest base and a few questions, in seconds after compilation."""
    config.models = ('@base',)
    config.settings.update(epochs=1.0, rank=4)
    config.evaluate.update(max_new_tokens=8, max_prompts=4, max_probes=3, seeds=2, seed_prompts=2)
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0,
        steps=dict(base=load_file(f'{_HERE / "pretrain.py"}:smoke'), finetune=config)))
