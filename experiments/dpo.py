"""Align an instruct model directly on pairs of answers: DPO, IPO, KTO, ORPO or SimPO.

    jaxllm run --config=experiments/dpo.py --config.init_from=runs/w_sft --workdir=runs/w_dpo
    jaxllm run --config=experiments/dpo.py:loss=kto --config.init_from=runs/w_sft \\
        --workdir=runs/w_kto
    jaxllm run --config=experiments/dpo.py:feedback=runs/w_feedback --config.init_from=runs/w_sft \\
        --workdir=runs/w_own
    jaxllm run --config=experiments/dpo.py:data=my.jsonl,lora --config.init_from=smollm2.gguf \\
        --workdir=runs/mine
    jaxllm run --config=experiments/dpo.py:smoke --workdir=/tmp/dpo

The first three need the SFT run of a world, from experiments/sft.py, and the third what raters say
of its own answers (experiments/feedback.py). For single answers that are good or bad:
:loss=kto,labelled=my.jsonl.

Expect (third command, SFT and feedback of experiments/lifecycle.py, world seeds 0, 1, 2; 2 minutes
on one CPU core): win rates against SFT by the hidden judge on 256 test prompts of 0.61 [0.56,
0.65], 0.56 [0.50, 0.60] and 0.67 [0.62, 0.72], at 1.3, 1.3 and 1.9 nats (BUILD_NOTES.md). The
world's pairs, whose answers others wrote, gain nothing: on an SFT run of seed 0 dpo 0.49 [0.46,
0.53], kto 0.47 [0.42, 0.51], ipo 0.47 [0.43, 0.51], at 0.24, 0.59 and 0.65 nats, though 0.62, 0.61
and 0.59 of the held-out pairs are ordered rightly (0.50 before, by definition); orpo and simpo go
20 and 30 nats away and lose. Own answers, seed 0: kto 0.61, ipo 0.56, simpo 0.56, orpo 0.50.
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.errors import InputError
from jaxllm.stages.preference_config import OBJECTIVES, preference_config
from jaxllm.stages.reward_config import comparison_source
from jaxllm.stages.sft_config import dialogue_source
from jaxllm.world.oracle import CRITERIA

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`loss` is one of dpo, ipo, kto, orpo, simpo; `data` is a file of your own comparisons in
    place of the world's pairs, all judged by an expert; `feedback` is a run of
    experiments/feedback.py, of whose rankings by `criterion` the best and the worst make a pair;
    `labelled` is a file of single answers that are good or bad, for kto; `lora` trains an adapter;
    `smoke` makes a base and an SFT run first, in seconds."""
    arg = parse_arg(arg, smoke=False, loss='dpo', world='nano', data='', labelled='',
                    feedback='', criterion='helpful', lora=False)
    if arg.loss not in OBJECTIVES:
        raise InputError(f'loss={arg.loss!r} is unknown; use one of {", ".join(OBJECTIVES)}')
    if arg.criterion not in CRITERIA:
        raise InputError(f'criterion={arg.criterion!r} is unknown; use one of '
                         f'{", ".join(CRITERIA)}')
    if sum(map(bool, (arg.data, arg.labelled, arg.feedback))) > 1:
        raise InputError('data, labelled and feedback each say where comparisons come from; use '
                         'one of them')
    config = preference_config(arg.loss)
    if arg.lora:
        config.lora.rank = 16
        config.optim.lr = 1e-3
    if arg.data:
        config.data.comparisons = dict(mine=comparison_source(path=arg.data))
    elif arg.feedback:
        config.data.comparisons = dict(own=comparison_source(
            path=f'{arg.feedback}/{arg.criterion}.jsonl', license='CC0-1.0'))
        config.data.seq_len = 128
    elif arg.labelled:
        config.data.labelled = dict(mine=dialogue_source(path=arg.labelled))
    else:
        config.data.comparisons = dict(pairs=comparison_source(
            path='world:pairs', rater='expert', criterion='overall', validation_split='validation',
            license='CC0-1.0'))
        config.data.seq_len = 128
        config.world = ml_collections.ConfigDict(dict(
            seed=config.get_oneway_ref('seed'), scale=arg.world,
            intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))
    return _smoke(config) if arg.smoke else config


def _smoke(config):
    """A base of a world, its fine-tuning and its alignment, in seconds after compilation."""
    config.init_from = '@sft'
    for source in config.data.comparisons.values():
        source.max_records = 40
    config.data.seq_len = 160  # the smoke base has few merges
    config.data.max_reject_share = 0.5
    config.optim.warmup_steps = 2
    config.train.update(num_steps=8, batch_size=8, log_every=2, eval_every=4, save_every=4,
                        patience=0)
    config.eval.max_comparisons = 16
    config.sample.sampling.max_new_tokens = 8
    before = load_file(f'{_HERE / "sft.py"}:smoke').steps
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0, steps=dict(before.to_dict(), aligned=config)))
