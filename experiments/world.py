"""Publish a synthetic world: documents, questions, truth tables and more, each with a data card.

    jaxllm run --config=experiments/world.py --workdir=worlds/nano
    jaxllm run --config=experiments/world.py:scale=small,seed=1 --workdir=worlds/small
    jaxllm run --config=experiments/world.py --config.world.intervention.kind=dirt \\
        --config.world.intervention.target=all --config.world.intervention.factor=0 \\
        --workdir=worlds/clean
"""

import ml_collections

from jaxllm.config import parse_arg


def get_config(arg=''):
    """`scale` is nano, small or tpu; `smoke` publishes the truth tables alone."""
    arg = parse_arg(arg, smoke=False, scale='nano', seed=0)
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.world'
    config.seed = arg.seed
    config.world = ml_collections.ConfigDict(dict(
        seed=config.get_oneway_ref('seed'), scale=arg.scale,
        intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))
    config.publish = ml_collections.ConfigDict(dict(
        names=('people', 'brands', 'sources') if arg.smoke else ()))
    return config
