"""The config of the finetune stage: your data, bases, settings that choose themselves."""

import ml_collections


def finetune_config():
    """Every leaf; what is 0 or '' in `settings` is chosen by the size of model and data."""
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.finetune'
    config.seed = 0
    config.data = ''      # .jsonl, .jsonl.gz, .csv or .parquet: pairs, conversations, preferences
    config.held_out = ''  # a file of records to evaluate on; '' holds out a share of `data`
    config.models = ()    # runs, FILE.gguf or folders of weights; of several the best one is taken
    config.method = 'lora'  # or qlora (a frozen base of four bits), full
    config.template = ''  # chat template; '' = the model's own
    config.sweep = False  # also train with one setting changed at a time
    config.prepare = ml_collections.ConfigDict(dict(
        holdout_share=0.15, min_holdout=8, max_holdout=200, near_duplicate=0.8, outlier=6.0,
        language_share=0.1, label_share=0.9, max_labels=20, drop=(), mask_pii=False))
    config.settings = ml_collections.ConfigDict(dict(
        lr=0.0, rank=0, epochs=0.0, batch_size=0, seq_len=0, replay=0.0, neftune_alpha=0.0))
    config.evaluate = ml_collections.ConfigDict(dict(
        max_new_tokens=96, max_prompts=32, max_probes=0, seeds=3, seed_prompts=6, temperature=0.7,
        batch_size=16))
    return config
