"""Compare trained models: win rates, what they cost in KL, refusals, answers side by side.

    jaxllm run --config=experiments/compare.py:models=sft+ppo+dpo,rewards=helpful+safe,best_of=4 \\
        --config.artefacts.sft.path=runs/w_sft --config.artefacts.ppo.path=runs/w_ppo \\
        --config.artefacts.dpo.path=runs/w_dpo --config.rewards.helpful.run=runs/w_helpful \\
        --config.rewards.safe.run=runs/w_safe --workdir=runs/w_compared
    jaxllm run --config=experiments/compare.py:models=sft+ppo+dpo,rewards=helpful,best_of=2+4+8 \\
        --config.artefacts.ppo.checkpoint=all --config.artefacts.dpo.checkpoint=all ...
    jaxllm run --config=experiments/compare.py:smoke --workdir=/tmp/compare

The first model is the reference that the others are held to. All of them answer the same prompts of
a world once, and the world's hidden judge, which no one trains on, says who wins.

An artefact has a `checkpoint`: best, last, a step such as 60, or all that the run kept (train it
with e.g. --config.train.save_every=20 --config.checkpoint.keep_last=30). Each is a model of its
own, and the table at equal KL takes of each method the one nearest to the KL and not over it.

Expect (first command, default runs of world seed 1): 1.5 minutes; win rates against SFT of 0.63
[0.58, 0.69] for PPO, 0.52 [0.48, 0.56] for DPO and 0.56 [0.50, 0.62] for the best of four. Second
command (world seed 0, 34 models): nothing beats SFT at any KL, see BUILD_NOTES.md.
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.errors import InputError
from jaxllm.stages.compare_config import artefact, compare_config
from jaxllm.stages.rl_config import function_reward, model_reward, prompt_source

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`models` are names with + between them, the first one the reference; `rewards` are names of
    reward runs that judge beside the world; `best_of` adds the best of so many answers of the
    reference, picked by the first of them (several numbers with + between them); `data` is a file
    of your own prompts instead of a world; `smoke` makes a base and an SFT run first, in
    seconds."""
    arg = parse_arg(arg, smoke=False, world='nano', models='sft+aligned', rewards='', best_of='',
                    data='')
    names = [name for name in arg.models.split('+') if name]
    if not names:
        raise InputError("models='' names no model; use e.g. models=sft+ppo")
    config = compare_config({name: artefact() for name in names}, names[0])
    rewards = [name for name in arg.rewards.split('+') if name]
    config.rewards = {name: model_reward('') for name in rewards}
    for number in _numbers(arg.best_of):
        if not rewards:
            raise InputError(f'best_of={arg.best_of} needs a reward that picks; name its run with '
                             'rewards=NAME and --config.rewards.NAME.run')
        best = artefact(best_of=number, reward=rewards[0], method='best_of_n')
        for key in ('path', 'checkpoint'):
            best[key] = config.artefacts[names[0]].get_oneway_ref(key)
        config.artefacts[f'best_of_{number}'] = best
    if arg.data:
        config.data.prompts = dict(mine=prompt_source(path=arg.data))
    else:
        config.data.prompts = dict(pairs=prompt_source(path='world:pairs', split='test',
                                                       license='CC0-1.0'))
        config.world = ml_collections.ConfigDict(dict(
            seed=config.get_oneway_ref('seed'), scale=arg.world,
            intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))
        config.eval.judge = 'world'
    return _smoke() if arg.smoke else config


def _numbers(text):
    """'2+4' -> [2, 4]; one of one is the reference itself."""
    parts = [part for part in text.split('+') if part]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f'best_of={text!r}: expected numbers of at least 1 with + between them, '
                         'e.g. best_of=2+4+8')
    return [number for number in map(int, parts) if number > 1]


def _smoke():
    """A base, its fine-tuning, and the best of two answers by a function; in seconds after
    compilation."""
    config = get_config('models=sft+base')
    config.artefacts.sft.path, config.artefacts.base.path = '@sft', '@base'
    config.artefacts.best_of_2 = artefact('@sft', best_of=2, reward='varied', method='best_of_n')
    config.rewards.varied = function_reward('jaxllm.rl.verifiers.repetition')
    for source in config.data.prompts.values():
        source.max_records = 40
    config.data.update(max_prompts=6, max_prompt_tokens=160, max_reject_share=0.5)
    config.sampling.update(max_new_tokens=8, score_batch_size=8)
    config.statistics.draws = 100
    steps = load_file(f'{_HERE / "sft.py"}:smoke').steps.to_dict()
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0, steps=dict(steps, compared=config)))
