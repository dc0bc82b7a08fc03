"""Let simulated raters rank what a model says: comparisons for reward models to learn from.

    jaxllm run --config=experiments/feedback.py --config.run=runs/w_sft --workdir=runs/w_feedback
    jaxllm run --config=experiments/reward.py:criterion=helpful,feedback=runs/w_feedback \\
        --config.init_from=runs/w_sft --workdir=runs/w_helpful
    jaxllm run --config=experiments/feedback.py:smoke --workdir=/tmp/feedback

The first needs the SFT run of a world (experiments/sft.py). People rank answers in `jaxllm label`.
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.stages.rl_config import prompt_source

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`world` is the scale of the world that the model has learned, `rater` who judges; `smoke`
    makes a base and an SFT run first, in seconds."""
    arg = parse_arg(arg, smoke=False, world='nano', rater='expert')
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.feedback'
    config.seed = 0
    config.run = ''  # the run whose model answers
    config.checkpoint = 'best'
    config.data = ml_collections.ConfigDict(dict(
        prompts={name: prompt_source(path=f'world:{name}', license='CC0-1.0')
                 for name in ('pairs', 'rankings')},
        max_prompts=3000, max_prompt_tokens=128, max_reject_share=0.0))
    config.sampling = ml_collections.ConfigDict(dict(
        samples=8, temperature=1.0, max_new_tokens=48, batch_size=2048, refill=True))
    config.raters = ml_collections.ConfigDict(dict(kind=arg.rater, criteria=('helpful', 'safe')))
    config.world = ml_collections.ConfigDict(dict(
        seed=config.get_oneway_ref('seed'), scale=arg.world,
        intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))
    if not arg.smoke:
        return config
    config.run = '@sft'
    config.data.update(max_prompts=24, max_prompt_tokens=160, max_reject_share=0.5)
    config.sampling.max_new_tokens = 12
    steps = load_file(f'{_HERE / "sft.py"}:smoke').steps.to_dict()
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0, steps=dict(steps, feedback=config)))
