"""Teach a model what people prefer: a reward model from comparisons, started from an SFT run.

    jaxllm run --config=experiments/reward.py:criterion=helpful --config.init_from=runs/w_sft \\
        --workdir=runs/w_helpful
    jaxllm run --config=experiments/reward.py:criterion=safe --config.init_from=runs/w_sft \\
        --workdir=runs/w_safe
    jaxllm run --config=experiments/reward.py:criterion=helpful,feedback=runs/w_feedback \\
        --config.init_from=runs/w_sft --workdir=runs/w_own
    jaxllm run --config=experiments/reward.py:data=my.jsonl --config.init_from=runs/sft \\
        --workdir=runs/mine
    jaxllm run --config=experiments/reward.py:data=chitchat --config.init_from=runs/sft \\
        --workdir=runs/talks
    jaxllm run --config=experiments/reward.py:smoke --workdir=/tmp/reward

The first two need the SFT run of a world, from experiments/sft.py, and the same seed (or
--config.world.seed of it: then other seeds give the members of an ensemble).

Expect (SFT runs of experiments/lifecycle.py, 0.46M parameters, two CPU cores; held-out pairs that
are ordered rightly): helpful 0.61 [0.58, 0.64] on world seed 0, where the rater's own utility gets
0.80 and every feature but correctness 0.58 to 0.60: the model has learned what a good answer looks
like and not which one is true. Safe, 1.5 minutes: 0.53 [0.50, 0.57], 0.50 [0.47, 0.54], 0.55 [0.52,
0.59] (seeds 0, 1, 2), most of which are a coin to the rater, too (0.60). Own answers, 2 minutes:
0.55 [0.52, 0.58], 0.53 [0.51, 0.56], 0.51 [0.49, 0.54]. Chitchat, 8 minutes: 0.49 [0.45, 0.54], a
coin, and from SmolLM2-135M 0.50 [0.45, 0.56]: these ratings are hardly in the text
(BUILD_NOTES.md).
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.data import fetch
from jaxllm.errors import InputError
from jaxllm.stages.reward_config import comparison_source, reward_config
from jaxllm.world.oracle import CRITERIA, RATERS

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`criterion` is what the world's rater judges by (helpful, safe or overall) and `rater` who;
    `world` is the scale of the synthetic world that the SFT run has learned; `feedback` is a run of
    experiments/feedback.py: rankings of the SFT model's own answers; `data` is a file of
    your own comparisons instead, or chitchat: human ratings of conversations (fetched); `loss`
    is plackett_luce, bradley_terry (pairs alone) or all_pairs; `margin` (of bradley_terry) is none,
    small, large or own; `lora` trains an adapter; `smoke` makes a base and an SFT run first."""
    arg = parse_arg(arg, smoke=False, criterion='helpful', rater='expert', world='nano', data='',
                    feedback='', loss='plackett_luce', margin='none', lora=False)
    for name, known in (('criterion', CRITERIA), ('rater', RATERS)):
        if arg[name] not in known:
            raise InputError(f'{name}={arg[name]!r} is unknown; use one of {", ".join(known)}')
    if arg.data and arg.feedback:
        raise InputError(f'data={arg.data} and feedback={arg.feedback} each say where comparisons '
                         'come from; use one of them')
    config = reward_config()
    config.loss.update(kind=arg.loss, margin=arg.margin)
    if arg.lora:
        config.lora.rank = 16
        config.optim.lr = 5e-3
    if arg.data == 'chitchat':
        config.data.comparisons = dict(talks=comparison_source(
            path=str(fetch.fetch('chitchat_ratings')), license='MIT'))
        config.data.holdout_share = 0.2
        config.reference.prompts = 0  # an excerpt of two people is nothing that the parent writes
    elif arg.feedback:
        config.data.comparisons = dict(own=comparison_source(
            path=f'{arg.feedback}/{arg.criterion}.jsonl', license='CC0-1.0'))
        config.data.seq_len = 128
        config.train.update(num_steps=200, batch_size=16)  # rankings of up to eight
    elif arg.data:
        config.data.comparisons = dict(mine=comparison_source(path=arg.data))
    else:
        _of_world(config, arg)
    return _smoke(config) if arg.smoke else config


def _of_world(config, arg):
    """Every comparison of the world, all judged by one rater and one criterion: the published
    datasets mix seven kinds of raters and three criteria, so that an expert's helpful ones are a
    seventh of them."""
    own = dict(rater=arg.rater, criterion=arg.criterion, validation_split='validation',
               license='CC0-1.0')
    config.data.comparisons = dict(pairs=comparison_source(path='world:pairs', weight=0.6, **own))
    if arg.loss != 'bradley_terry':
        config.data.comparisons.rankings = comparison_source(path='world:rankings', weight=0.4,
                                                             **own)
    config.data.seq_len = 128
    config.world = ml_collections.ConfigDict(dict(
        seed=config.get_oneway_ref('seed'), scale=arg.world,
        intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))


def _smoke(config):
    """A base of a world, its fine-tuning and its reward model, in seconds after compilation."""
    config.init_from = '@sft'
    for source in config.data.comparisons.values():
        source.max_records = 40
    config.data.seq_len = 160  # the smoke base has few merges
    config.data.max_reject_share = 0.5
    config.optim.warmup_steps = 2
    config.train.update(num_steps=8, batch_size=8, log_every=2, eval_every=4, save_every=4,
                        patience=0)
    config.reference.update(prompts=8, max_new_tokens=8)
    before = load_file(f'{_HERE / "sft.py"}:smoke').steps
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0, steps=dict(before.to_dict(), reward=config)))
