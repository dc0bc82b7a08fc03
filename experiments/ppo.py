"""Align an instruct model with people's preferences: PPO on two learned rewards.

    jaxllm run --config=experiments/ppo.py --config.init_from=runs/w_sft \\
        --config.rewards.helpful.run=runs/w_helpful --config.rewards.safe.run=runs/w_safe \\
        --workdir=runs/w_ppo
    jaxllm run --config=experiments/ppo.py:data=my.jsonl,lora --config.init_from=smollm2.gguf \\
        --config.rewards.mine.run=runs/mine_reward --workdir=runs/mine
    jaxllm run --config=experiments/ppo.py:smoke --workdir=/tmp/ppo

The first needs the SFT run of a world (experiments/sft.py) and two reward runs that were trained
from it (experiments/reward.py, criterion=helpful and criterion=safe). The second needs a reward run
on comparisons of your own from the same model; any file with a `prompt` on each line has prompts,
the one of the comparisons too.
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.errors import InputError
from jaxllm.stages.rl_config import OBJECTIVES, model_reward, prompt_source, rl_config

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`world` is the scale of the synthetic world that the policy has learned; `data` is a file of
    your own prompts instead, with one learned reward, `mine`, unless a gate needs two; `rule`
    combines the two rewards, sum or gate (Llama 2: safety first); `lora` trains adapters of the
    policy and of its value network; `ptx` is the weight of a pre-training loss on the world's
    documents; `smoke` makes a base, an SFT run and two reward models first, in seconds."""
    arg = parse_arg(arg, smoke=False, world='nano', data='', rule='sum', lora=False, ptx=0.0)
    if arg.data and (arg.ptx or arg.smoke):
        raise InputError(f'data={arg.data} is of no world, and ptx replays documents of one and '
                         'smoke makes models of one; use data without them')
    config = rl_config('jaxllm.objectives.ppo', OBJECTIVES['ppo'])
    names = ('mine',) if arg.data and arg.rule == 'sum' else ('helpful', 'safe')
    config.rewards = {name: model_reward('') for name in names}
    config.combine.rule = arg.rule
    if arg.rule == 'gate':
        config.combine.update(helpful='helpful', safe='safe')
    if arg.lora:
        config.lora.rank = 16
    if arg.data:
        config.data.prompts = dict(mine=prompt_source(path=arg.data))
        config.data.max_prompt_tokens = 256
    else:
        of_world(config, arg.world)
    if arg.ptx:
        config.ptx_coef = arg.ptx
        config.data.replay = dict(documents=dict(
            path='world:documents', split='train', validation_split='validation', text_key='text',
            max_documents=0, license='CC0-1.0', weight=1.0))
    return _smoke(config) if arg.smoke else config


def of_world(config, scale):
    """Prompts, and the hidden judge that looks at answers and rewards nothing."""
    config.data.prompts = dict(pairs=prompt_source(
        path='world:pairs', validation_split='validation', license='CC0-1.0'))
    config.world = ml_collections.ConfigDict(dict(
        seed=config.get_oneway_ref('seed'), scale=scale,
        intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))
    config.eval.judge = 'world'


def small(config):
    """A few rollouts of a few short answers."""
    for source in config.data.prompts.values():
        source.max_records = 60
    config.data.update(max_prompt_tokens=160, max_reject_share=0.5)  # a smoke base has few merges
    config.rollout.update(prompts=8, samples=2, max_new_tokens=12, score_batch_size=16)
    config.train.update(num_steps=4, batch_size=8, log_every=2, eval_every=2, save_every=2)
    config.eval.max_prompts = 8


def _smoke(config):
    small(config)
    config.init_from = '@sft'
    steps = load_file(f'{_HERE / "reward.py"}:smoke').steps.to_dict()
    steps['helpful'] = steps.pop('reward')
    steps['safe'] = load_file(f'{_HERE / "reward.py"}:smoke,criterion=safe').steps.reward.to_dict()
    config.rewards.helpful.run, config.rewards.safe.run = '@helpful', '@safe'
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0, steps=dict(steps, aligned=config)))
