"""The whole life of a model: raw text, tokenizer, base, instruct model, what people think of its
answers, two reward models, aligned model, and all of them compared.

    jaxllm run --config=experiments/lifecycle.py --workdir=runs/life
    jaxllm run --config=experiments/lifecycle.py:seed=1 --workdir=runs/life1
    jaxllm run --config=experiments/lifecycle.py:smoke --workdir=/tmp/life
    jaxllm chat --workdir=runs/life
    jaxllm sweep --config=experiments/lifecycle.py --workdir=runs/lives     # three seeds, a verdict

The steps are runs/life/{tokenizer,base,sft,control,feedback,reward_helpful,reward_safe,aligned,
eval}, ordinary run directories, and runs/life/report.html tells the whole; stopped anywhere, the
same command goes on. Copies, spam, and unsafe and broken texts are taken out of the documents of a
synthetic world and of Python's docstrings; what stays makes the tokenizer and the base. `control`
is the fine-tuning of random weights: what it knows, fine-tuning has taught. `feedback` has answers
of the instruct model, ranked by simulated raters. `eval` asks control, base, instruct and aligned
model the same questions and prompts, and the world's hidden judge says who wins. In `chat`, /model
changes the model, /compare asks all of them.

Expect (world seeds 0, 1, 2): 15 to 20 minutes on two CPU cores with nothing cached, and 2.1 GiB.
Facts picked among 24 values: base 0.28, 0.25, 0.25; SFT 0.33, 0.28, 0.27; control 0.05, 0.05, 0.03.
Answers in the form that was asked for: base 0.09 to 0.10, SFT 0.55, 0.58, 0.62. PPO wins against
SFT by the hidden judge on 0.56, 0.57, 0.59 of 256 prompts, each interval above 0.5, mostly by
saying that it does not know, also instead of a refusal; it does no harm (BUILD_NOTES.md).
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg
from jaxllm.evals import effects
from jaxllm.evals.verdict import Rule

CLAIM = ('Knowledge comes from pre-training, answering and stopping from fine-tuning, and what '
         'people prefer from reinforcement learning.')
SEEDS = 0, 1, 2
REWARDS = 'helpful', 'safe'
MODELS = 'sft', 'control', 'base', 'aligned'  # the first is the one that answers are held to
SUITES = 'recall', 'answers', 'instructions', 'safety'
MIX = 0.1       # of the tokens of pre-training: real text
READING = 0.3   # and texts about people whom the world does not know
REPLAY = 0.4    # of fine-tuning: documents; without them half of the facts are forgotten
_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`seed` is that of the world and of all training; `smoke` is the path in seconds per step."""
    arg = parse_arg(arg, smoke=False, seed=0)
    base, sft = _load('pretrain', f'world=nano,clean,mix={MIX},reading={READING}', arg.smoke), {}
    for name, own in (('sft', f'replay={REPLAY}'), ('control', '')):
        sft[name] = _load('sft', own, arg.smoke)
        sft[name].init_from = '@base'
    sft['control'].fresh_weights = True
    if not arg.smoke:  # as many epochs of documents and of conversations as without the rest
        base.train.num_steps = round(1050 / (1 - MIX - READING))
        sft['sft'].train.num_steps = 900
        base.train.sample_every = 350  # this and the next for time
        for config in sft.values():
            config.train.eval_every = config.train.save_every = 100
    steps = dict(tokenizer=_tokenizer(base), base=base, **sft)
    steps['feedback'] = _load('feedback', '', arg.smoke)
    steps['feedback'].run = '@sft'
    # The helpful reward learns from the instruct model's own answers, as it will be asked about
    # them; the safe one from the world's, since few of one's own are about what is unsafe.
    for criterion, own in zip(REWARDS, (',feedback=@feedback', ''), strict=True):
        reward = _load('reward', f'criterion={criterion}{own}', arg.smoke)
        reward.init_from = '@sft'
        steps[f'reward_{criterion}'] = reward
    aligned = steps['aligned'] = _load('ppo', '', arg.smoke, step='aligned')
    aligned.init_from = '@sft'
    for criterion in REWARDS:
        aligned.rewards[criterion].run = f'@reward_{criterion}'
    steps['eval'] = _evaluation(arg.smoke)
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.chain'
    config.seed = arg.seed
    for step in steps.values():
        step.seed = config.get_ref('seed')
        if 'world' in step:
            step.world.seed = config.get_ref('seed')
    config.steps = steps
    if not arg.smoke:  # on two CPU cores, for the time that is left
        config.expected_s = dict(tokenizer=39, base=223, control=86, sft=123, feedback=40,
                                 reward_helpful=122, reward_safe=85, aligned=108, eval=94)
    return config


def _load(file, arg, smoke, step=''):
    """The config of an experiment; of a smoke version, which is a chain, the step of that name."""
    text = ','.join(filter(None, ('smoke' if smoke else '', arg)))
    config = load_file(f'{_HERE / file}.py:{text}' if text else f'{_HERE / file}.py')
    return config.steps[step or file] if 'steps' in config else config


def _tokenizer(base):
    """Cleaning and tokenizer of a base as a step of their own, from which the base takes both."""
    own = base.copy_and_resolve_references()
    base.data.clean.run = '@tokenizer'
    base.tokenizer.update(kind='file', path='@tokenizer/tokenizer')
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.tokenizer', seed=0, tokenizer=own.tokenizer, world=own.world,
        data={name: own.data[name] for name in ('sources', 'clean', 'max_reject_share')}))


def _evaluation(smoke):
    config = _load('compare', f'models={"+".join(MODELS)},rewards={"+".join(REWARDS)}', False)
    for name, artefact in config.artefacts.items():
        artefact.path = f'@{name}'
    for criterion in REWARDS:
        config.rewards[criterion].run = f'@reward_{criterion}'
    config.suites = SUITES
    config.settings.update(max_items=1000, max_requests=60)
    if smoke:
        small = _load('compare', '', True, step='compared')
        for section in ('data', 'sampling', 'statistics'):
            config[section] = small[section]
        config.settings = _load('evaluate', '', True, step='evaluation').settings
    return config


def get_sweep():
    return [{'name': 'life', 'set': {}}]


def get_rules():
    """Stated before the sweep ran, after a look at an earlier version on seed 0. Facts are asked
    about people that fine-tuning never names."""
    told = dict(suite='recall', style='qa', kind='direct', answerable=True)
    knows = lambda model: effects.mean(artefact=model, **told)
    forms = lambda model: effects.mean(artefact=model, suite='instructions')
    ends = lambda model: effects.mean('ended', artefact=model, suite='ends')
    wins = effects.mean('won', artefact='aligned', suite='wins', judge='world')
    gap = lambda measure, model, other: effects.difference(
        'life', 'life', measure(model), measure(other))
    return [
        Rule('knowledge is pre-trained', 'Fine-tuned random weights pick the right value of a fact '
             'at least 20 points less often than the fine-tuned base.',
             gap(knows, 'sft', 'control'), delta=0.2, where=dict(suite='recall')),
        Rule('knowledge stays', 'Fine-tuning costs the base less than 5 points of it.',
             gap(knows, 'sft', 'base'), null=-0.05, where=dict(suite='recall')),
        Rule('SFT follows', 'Fine-tuning raises the share of answers in the form that was asked '
             'for by at least 20 points.', gap(forms, 'sft', 'base'), delta=0.2,
             where=dict(suite='instructions')),
        Rule('SFT stops', 'The instruct model ends more of its answers by itself than the base, by '
             'at least 10 points.', gap(ends, 'sft', 'base'), delta=0.1, where=dict(suite='ends')),
        Rule('PPO wins', 'The aligned model wins against the instruct model by the hidden judge, '
             'at least 53 times in 100.', effects.of('life', wins), null=0.5, delta=0.03,
             where=dict(suite='wins')),
    ]
