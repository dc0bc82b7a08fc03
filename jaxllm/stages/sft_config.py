"""The config of the SFT stage with its common settings; experiments and `finetune` fill it in."""

import ml_collections


def sft_config():
    """Every leaf of an SFT run; without sources and without a base."""
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.sft'
    config.seed = 0
    config.init_from = ''  # a run, a FILE.gguf or a folder of Hugging Face weights
    config.fresh_weights = False  # the base's model and tokenizer with random weights: a control
    config.chat = ml_collections.ConfigDict(dict(template='', stop_prompts=32))
    config.data = ml_collections.ConfigDict(dict(
        conversations={}, replay={}, seq_len=512, holdout_share=0.1, max_reject_share=0.0))
    config.lora = ml_collections.ConfigDict(dict(
        rank=0, alpha=32.0, targets=('*',), rslora=False, dora=False, train_embeddings=False,
        base='float32'))
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
    return config


def dialogue_source(**values):
    """Every leaf of a source of conversations."""
    return dict(dict(path='', split='train', validation_split='', where={}, max_records=0,
                     license='', weight=1.0), **values)


def text_source(**values):
    """Every leaf of a source of text to replay; default: what every Python installation has."""
    return dict(dict(path='python:stdlib', split='docstrings', validation_split='',
                     text_key='text', max_documents=0, license='PSF-2.0', weight=1.0), **values)
