"""Teach a base model to answer: supervised fine-tuning on conversations.

    jaxllm run --config=experiments/sft.py --config.init_from=runs/w --workdir=runs/w_sft
    jaxllm run --config=experiments/sft.py:lora --config.init_from=runs/w --workdir=runs/w_lora
    jaxllm run --config=experiments/sft.py:data=my.jsonl,lora --config.init_from=smollm2.gguf \\
        --workdir=runs/mine
    jaxllm run --config=experiments/sft.py:smoke --workdir=/tmp/sft

The first two need a base of the same world, from experiments/pretrain.py:world=nano.
"""

import pathlib

import ml_collections

from jaxllm.config import load_file, parse_arg

_HERE = pathlib.Path(__file__).parent


def get_config(arg=''):
    """`world` is the scale of the synthetic world that the base has learned; `data` is a file of
    your own conversations instead; `lora` trains an adapter and not all weights; `replay` is the
    share of the world's documents beside the conversations; `smoke` makes a base first, in
    seconds."""
    arg = parse_arg(arg, smoke=False, world='nano', data='', lora=False, replay=0.0)
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.sft'
    config.seed = 0
    config.init_from = ''  # a run, a FILE.gguf or a folder of Hugging Face weights
    config.fresh_weights = False  # the base's model and tokenizer with random weights: a control
    config.chat = ml_collections.ConfigDict(dict(template='', stop_prompts=32))
    config.data = ml_collections.ConfigDict(dict(
        conversations=_conversations(arg), replay=_replay(arg), seq_len=512 if arg.data else 128, holdout_share=0.1,
        max_reject_share=0.0))
    config.lora = ml_collections.ConfigDict(dict(
        rank=16 if arg.lora else 0, alpha=32.0, targets=('*',), rslora=False, dora=False,
        train_embeddings=False, base='float32'))
    config.compute = ml_collections.ConfigDict(dict(
        dtype='float32', remat='none', impl='auto', chunk_size=0))
    config.neftune_alpha = 0.0
    config.optim = ml_collections.ConfigDict(dict(
        name='adamw', lr=1e-3, schedule='cosine', warmup_steps=20, decay_share=0.3,
        final_lr_share=0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=1.0,
        ema_decay=0.0, muon_momentum=0.95))
    config.train = ml_collections.ConfigDict(dict(
        num_steps=400, batch_size=16, accum=1, z_loss=0.0, log_every=10, eval_every=50,
        sample_every=200, save_every=50, patience=3, profile_step=0,
        guard=dict(spike_factor=10.0, history=50, max_skips_in_row=10)))
    config.eval = ml_collections.ConfigDict(dict(max_rows=64))
    config.sample = ml_collections.ConfigDict(dict(
        prompts=('Hello!',), sampling=dict(
            max_new_tokens=48, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
            repetition_penalty=1.0)))
    config.sharding = ml_collections.ConfigDict(dict(preset='fsdp', data=0, fsdp=0, tensor=0))
    config.checkpoint = ml_collections.ConfigDict(dict(keep_last=2))
    config.metrics = ml_collections.ConfigDict(dict(tensorboard=True, wandb_project=''))
    if not arg.data:
        config.world = ml_collections.ConfigDict(dict(
            seed=config.get_oneway_ref('seed'), scale=arg.world,
            intervention=dict(kind='none', target='', exposures=0, share=0.0, factor=1.0, how='')))
    return _smoke(config) if arg.smoke else config


def _conversations(arg):
    """Your file, or of a world: requests with ideal answers, conversations of several turns, and
    what must be refused."""
    source = dict(path='', split='train', validation_split='', where={}, max_records=0, license='')
    share = 1.0 - arg.replay
    if arg.data:
        return dict(mine=source | dict(path=arg.data, weight=share))
    source |= dict(validation_split='validation', license='CC0-1.0')
    return dict(
        instructions=source | dict(path='world:instructions', where=dict(quality='gold'),
                                   weight=0.6 * share),
        conversations=source | dict(path='world:conversations', weight=0.3 * share),
        safety=source | dict(path='world:safety', weight=0.1 * share))


def _replay(arg):
    """Documents as in pre-training, so that what they taught is not forgotten."""
    if not arg.replay:
        return {}
    source = dict(split='train', text_key='text', max_documents=0, weight=arg.replay)
    if arg.data:
        return dict(docstrings=source | dict(path='python:stdlib', split='docstrings',
                                             validation_split='', license='PSF-2.0'))
    return dict(documents=source | dict(path='world:documents', validation_split='validation',
                                        license='CC0-1.0'))


def _smoke(config):
    """A base of a world and its fine-tuning, in seconds after compilation."""
    config.init_from = '@base'
    for source in config.data.conversations.values():
        source.max_records = 60
    config.data.seq_len = 96
    config.optim.warmup_steps = 2
    config.train.update(num_steps=12, batch_size=8, log_every=2, eval_every=4, sample_every=6,
                        save_every=4, patience=0)
    config.eval.max_rows = 8
    config.chat.stop_prompts = 4
    config.sample.sampling.max_new_tokens = 8
    return ml_collections.ConfigDict(dict(
        stage='jaxllm.stages.chain', seed=0,
        steps=dict(base=load_file(f'{_HERE / "pretrain.py"}:smoke,world=nano'), sft=config)))
