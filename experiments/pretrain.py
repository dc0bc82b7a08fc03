"""Pre-train a base model on text that every Python installation has, or on yours.

    jaxllm run --config=experiments/pretrain.py --workdir=runs/base
    jaxllm run --config=experiments/pretrain.py:text=my/folder --workdir=runs/mine
    jaxllm run --config=experiments/pretrain.py:world=nano --workdir=runs/world
    jaxllm run --config=experiments/pretrain.py:world=nano,mix=0.2 --workdir=runs/mixed
    jaxllm run --config=experiments/pretrain.py:world=nano,clean --workdir=runs/cleaned
    jaxllm run --config=experiments/pretrain.py:smoke --workdir=/tmp/smoke

Expect (first command, Python 3.11.7, jax 0.10.2, two CPU cores, nothing cached): 7 minutes, 1.43
bits per byte on held-out documents (3.59 nats per token) after 4.1M tokens with 1.33M parameters.
Third command, on one core beside another such run: 5 minutes, 0.35 bits per byte on facts told once
more, after 3.07M tokens with 0.46M parameters; experiments/evaluate.py says what it knows.
"""

import ml_collections

from jaxllm.config import parse_arg
from jaxllm.errors import InputError
from jaxllm.models.families import make

# Steps of 2,048 tokens on a world's documents: three epochs at nano, a guess at the larger scales,
# which want a larger batch. What is read beside them comes on top.
WORLD_STEPS = {'nano': 1050, 'small': 100_000, 'tpu': 1_000_000}

# The filters of text, in the order in which they look; jaxllm/data/clean/settings.py has further
# settings (data.clean.near, data.clean.quality), whose defaults were measured.
CLEAN = dict(steps=('exact', 'quality', 'spam', 'unsafe', 'near'), spam=0.7, unsafe=0.7,
             labels='world', window=1_000_000, examples=5, run='')


def get_config(arg=''):
    """`family` and `size` are those of jaxllm/models/families.py (size: 2m, or 400k with a world);
    `text` is a path of your own text; `world` is the scale of a synthetic world to learn instead,
    `mix` the share of tokens of real text beside it, and `reading` that of texts about people whom
    the world does not know, from which a small model learns to find a name in a text and to say it
    again: without them it answers about one person with the name of another; `infill` is none, fim
    or span; `clean` filters the text first; `smoke` is the whole path in seconds."""
    arg = parse_arg(arg, smoke=False, family='llama', size='', text='', infill='none', world='',
                    mix=0.0, reading=0.3, clean=False)
    if not 0 <= arg.mix < 1 or arg.mix and not arg.world:
        raise InputError(f'mix={arg.mix} with world={arg.world!r}: expected the share of real text '
                         'beside a world, at least 0 and below 1, e.g. world=nano,mix=0.2')
    if not 0 <= arg.reading < 1 - arg.mix:
        raise InputError(f'reading={arg.reading} with mix={arg.mix}: expected the share of texts '
                         'to be read, at least 0 and, with the share of real text, below 1')
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.pretrain'
    config.seed = 0
    config.init_from = ''

    config.data = ml_collections.ConfigDict(dict(
        sources=_text_sources(arg.text), seq_len=256, holdout_share=0.05, max_reject_share=0.05,
        infill=dict(kind=arg.infill, rate=0.5, spm_rate=0.5, corruption=0.15, mean_span=3.0)))
    config.tokenizer = ml_collections.ConfigDict(dict(
        kind='bpe', vocab_size=4096, path='', max_bytes=20_000_000))

    config.model = ml_collections.ConfigDict(
        make(arg.family, 'tiny' if arg.smoke else arg.size or ('400k' if arg.world else '2m')))
    config.model.vocab_size = config.tokenizer.get_ref('vocab_size')

    config.optim = ml_collections.ConfigDict(dict(
        name='adamw', lr=6e-3, schedule='wsd', warmup_steps=30, decay_share=0.3,
        final_lr_share=0.0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0,
        ema_decay=0.0, muon_momentum=0.95))
    config.train = ml_collections.ConfigDict(dict(
        num_steps=1000, batch_size=16, accum=1, z_loss=1e-4, log_every=10, eval_every=100,
        sample_every=100, save_every=100, patience=0,
        profile_step=0,
        guard=dict(spike_factor=10.0, history=50, max_skips_in_row=10)))
    config.eval = ml_collections.ConfigDict(dict(max_rows=32))
    config.sample = ml_collections.ConfigDict(dict(
        prompts=('def main(', 'Return a list of', 'The import statement', 'class '),
        sampling=dict(max_new_tokens=48, temperature=0.7, top_k=0, top_p=0.95, min_p=0.0,
                      repetition_penalty=1.0)))
    config.sharding = ml_collections.ConfigDict(dict(preset='fsdp', data=0, fsdp=0, tensor=0))
    config.checkpoint = ml_collections.ConfigDict(dict(keep_last=2))
    config.metrics = ml_collections.ConfigDict(dict(tensorboard=True, wandb_project=''))
    if arg.world:
        _of_world(config, arg)
    if arg.clean:
        config.data.clean = dict(CLEAN)
    if arg.smoke:
        _smoke(config)
    return config


def _source(**values):
    return dict(dict(path='python:stdlib', split='train', text_key='text', license='PSF-2.0',
                     weight=1.0, max_documents=0), **values)


def _text_sources(text, **weights):
    """Your text, or parts of what every Python installation has."""
    if text:
        return dict(text=_source(path=text, license=''))
    return {split: _source(split=split, weight=weight) for split, weight in
            (weights or dict(docstrings=2.0, topics=1.0, source=5.0)).items()}


def _of_world(config, arg):
    """Learns a synthetic world instead, and `mix` of real text.

    It trains on all of the world's training documents and validates on the same facts, told once
    more in texts of the same kind: training documents held out by chance would change how often
    each fact is told. Texts in new wordings are for evaluation: the more sure a model is of the
    wordings it knows, the less it likes new ones, however well it knows the facts.
    """
    if arg.world not in WORLD_STEPS:
        raise InputError(f'world={arg.world!r} is unknown; use one of {", ".join(WORLD_STEPS)}')
    of_world = dict(validation_split='validation', license='CC0-1.0')
    sources = dict(documents=_source(path='world:documents', weight=1.0 - arg.mix - arg.reading,
                                     **of_world))
    if arg.reading:
        sources['readings'] = _source(path='world:readings', weight=arg.reading, **of_world)
    if arg.mix:
        real = _text_sources(arg.text, docstrings=2.0, topics=1.0)
        total = sum(source['weight'] for source in real.values())
        sources |= {name: source | {'weight': arg.mix * source['weight'] / total}
                    for name, source in real.items()}
    config.data.sources = sources
    config.data.seq_len = 128
    config.world = ml_collections.ConfigDict(dict(
        seed=config.get_oneway_ref('seed'), scale=arg.world,
        intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))
    config.tokenizer.vocab_size = 1024
    config.train.num_steps = round(WORLD_STEPS[arg.world] / (1 - arg.reading))
    config.sample.prompts = 'Question:', 'The home of', 'By profession,', '- Name:'


def _smoke(config):
    """The whole path on a few documents, in seconds after compilation."""
    config.tokenizer.vocab_size = 384
    config.data.seq_len = 64
    for source in config.data.sources.values():
        source.max_documents = 60
    config.data.holdout_share = 0.2
    config.optim.warmup_steps = 2
    config.train.update(num_steps=12, batch_size=8, log_every=2, eval_every=6, sample_every=6,
                        save_every=4)
    config.eval.max_rows = 8
    config.sample.sampling.max_new_tokens = 8
