"""Reinforcement learning from a verifier, without a reward model: GRPO on answers in a set form.

    jaxllm run --config=experiments/grpo.py --config.init_from=runs/w_sft --workdir=runs/w_grpo
    jaxllm run --config=experiments/grpo.py:method=rloo --config.init_from=runs/w_sft \\
        --workdir=runs/w_rloo
    jaxllm run --config=experiments/grpo.py:data=sums.jsonl,lora --config.init_from=smollm2.gguf \\
        --workdir=runs/sums
    jaxllm run --config=experiments/grpo.py:smoke --workdir=/tmp/grpo

The first two need the SFT run of a world, from experiments/sft.py. A file of your own has a
`prompt` and an `answer` on each line; to say that answer is rewarded.

Expect (first command on the SFT runs of experiments/lifecycle.py, world seeds 0, 1, 2; 3 minutes on
one CPU core): of 128 held-out requests the share answered in the form asked for goes from 0.38,
0.64, 0.44 to 0.55, 0.82, 0.73. On seed 0: dapo 0.68, online_dpo 0.58, rloo 0.56, dr_grpo 0.56,
rejection 0.54, reinforce 0.50; on each seed each method's interval of the gain is above 0
(BUILD_NOTES.md).
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.errors import InputError
from jaxllm.stages.rl_config import OBJECTIVES, function_reward, prompt_source, rl_config

_HERE = pathlib.Path(__file__).parent
# Names of relatives that are settings of another module.
_MODULES = {'dr_grpo': 'grpo', 'dapo': 'grpo'}
# Who learns from one pair or one answer of each prompt, so that a rollout is a step.
_ONE_OF_EACH = 'online_dpo', 'rejection'


def get_config(arg=''):
    """`method` is one of grpo, dr_grpo, dapo, rloo, reinforce, online_dpo, rejection; `world` is
    the scale of the world whose instructions are followed; `data` is a file of your own prompts
    with answers instead; `lora` trains an adapter; `smoke` makes a base and an SFT run first, in
    seconds."""
    arg = parse_arg(arg, smoke=False, method='grpo', world='nano', data='', lora=False)
    if arg.method not in OBJECTIVES or arg.method == 'ppo':
        known = ', '.join(name for name in OBJECTIVES if name != 'ppo')
        raise InputError(f'method={arg.method!r} is unknown; use one of {known}')
    module = _MODULES.get(arg.method, arg.method)
    config = rl_config(f'jaxllm.objectives.{module}', OBJECTIVES[arg.method])
    config.rollout.update(prompts=32, samples=8, unfinished='reward')
    if arg.method in _ONE_OF_EACH:
        config.train.update(num_steps=100, batch_size=32)
    if arg.lora:
        config.lora.rank = 16
        config.optim.lr = 1e-3
    if arg.data:
        config.data.prompts = dict(mine=prompt_source(path=arg.data))
        config.data.max_prompt_tokens = 256
        config.rewards = dict(right=function_reward('jaxllm.rl.verifiers.exact_match'))
    else:
        _of_world(config, arg.world)
    return _smoke(config) if arg.smoke else config


def _of_world(config, scale):
    """Requests for one word, a sentence, a list, a translation: the form alone is rewarded."""
    config.data.prompts = dict(instructions=prompt_source(
        path='world:instructions', where=dict(quality='gold'), validation_split='validation',
        license='CC0-1.0'))
    config.data.max_prompt_tokens = 96
    config.rewards = dict(form=function_reward('jaxllm.rl.verifiers.follows_format',
                                               world_scale=scale))
    config.rewards.form.settings.world_seed = config.get_oneway_ref('seed')
    config.world = ml_collections.ConfigDict(dict(
        seed=config.get_oneway_ref('seed'), scale=scale,
        intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))


def _smoke(config):
    """A base of a world, its fine-tuning and a few rollouts, in seconds after compilation."""
    config.init_from = '@sft'
    for source in config.data.prompts.values():
        source.max_records = 60
    config.data.update(max_prompt_tokens=160, max_reject_share=0.5)  # a smoke base has few merges
    config.rollout.update(prompts=4, samples=4, max_new_tokens=12, score_batch_size=16)
    config.train.update(num_steps=4, batch_size=8, log_every=2, eval_every=2, save_every=2)
    if config.algorithm.endswith(('online_dpo', 'rejection')):
        config.train.batch_size = 2
    config.eval.max_prompts = 8
    before = load_file(f'{_HERE / "sft.py"}:smoke').steps
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0, steps=dict(before.to_dict(), aligned=config)))
