"""Teach a base model to answer: supervised fine-tuning on conversations.

    jaxllm run --config=experiments/sft.py --config.init_from=runs/w --workdir=runs/w_sft
    jaxllm run --config=experiments/sft.py:lora --config.init_from=runs/w --workdir=runs/w_lora
    jaxllm run --config=experiments/sft.py:data=my.jsonl,lora --config.init_from=smollm2.gguf \\
        --workdir=runs/mine
    jaxllm run --config=experiments/sft.py:smoke --workdir=/tmp/sft

The first two need a base of the same world, from experiments/pretrain.py:world=nano.

Expect (first command, world seeds 0, 1, 2, one CPU core each): 2 minutes, a validation loss of
1.13, 1.05 and 1.03 nats per token of an answer; all 32 greedy answers end by themselves.
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.errors import InputError
from jaxllm.stages.sft_config import dialogue_source, sft_config, text_source

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`world` is the scale of the synthetic world that the base has learned; `data` is a file of
    your own conversations instead; `lora` trains an adapter and not all weights; `replay` is the
    share of text beside the conversations, as in pre-training; `smoke` makes a base first, in
    seconds."""
    arg = parse_arg(arg, smoke=False, world='nano', data='', lora=False, replay=0.0)
    if not 0 <= arg.replay < 1:
        raise InputError(f'replay={arg.replay}: expected a share of at least 0 and below 1')
    config = sft_config()
    config.data.conversations = _conversations(arg)
    config.data.replay = _replay(arg)
    if arg.lora:
        config.lora.rank = 16
    if not arg.data:
        config.data.seq_len = 128
        config.train.update(num_steps=600, patience=4)
        config.world = ml_collections.ConfigDict(dict(
            seed=config.get_oneway_ref('seed'), scale=arg.world,
            intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))
    return _smoke(config) if arg.smoke else config


def _conversations(arg):
    """Your file, or of a world: requests with ideal answers, conversations of several turns, what
    must be refused, and texts to be read about people whom the world does not know."""
    share = 1.0 - arg.replay
    if arg.data:
        return dict(mine=dialogue_source(path=arg.data, weight=share))
    of_world = dict(validation_split='validation', license='CC0-1.0')
    return dict(
        instructions=dialogue_source(path='world:instructions', where=dict(quality='gold'),
                                     weight=0.45 * share, **of_world),
        conversations=dialogue_source(path='world:conversations', weight=0.22 * share, **of_world),
        readings=dialogue_source(path='world:readings', weight=0.25 * share, max_records=2500,
                                 **of_world),
        safety=dialogue_source(path='world:safety', weight=0.08 * share, **of_world))


def _replay(arg):
    """Documents as in pre-training, so that what they taught is not forgotten."""
    if not arg.replay:
        return {}
    if arg.data:
        return dict(docstrings=text_source(weight=arg.replay))
    return dict(documents=text_source(path='world:documents', split='train', weight=arg.replay,
                                      validation_split='validation', license='CC0-1.0'))


def _smoke(config):
    """A base of a world and its fine-tuning, in seconds after compilation."""
    config.init_from = '@base'
    for source in config.data.conversations.values():
        source.max_records = 60
    config.data.seq_len = 192  # the smoke base has few merges
    config.optim.warmup_steps = 2
    config.train.update(num_steps=12, batch_size=8, log_every=2, eval_every=4, sample_every=6,
                        save_every=4, patience=0)
    config.eval.max_rows = 8
    config.chat.stop_prompts = 4
    config.sample.sampling.max_new_tokens = 8
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0,
        steps=dict(base=load_file(f'{_HERE / "pretrain.py"}:smoke,world=nano'), sft=config)))
