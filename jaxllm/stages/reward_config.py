"""The config of the reward stage with its common settings; experiments fill it in."""

import ml_collections

from jaxllm.stages.sft_config import sft_config


def reward_config():
    """Every leaf of a reward run; without comparisons and without a base."""
    sft = sft_config()
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.reward'
    config.seed = 0
    config.init_from = ''  # the SFT run
    config.data = ml_collections.ConfigDict(dict(
        comparisons={}, seq_len=512, holdout_share=0.1, max_reject_share=0.05))
    config.loss = ml_collections.ConfigDict(dict(
        kind='plackett_luce', margin='none', centering=0.01))
    config.lora, config.compute = sft.lora, sft.compute
    config.optim = sft.optim
    config.optim.update(lr=1e-3, eps=1e-5, warmup_steps=10)
    config.train = sft.train
    config.train.update(num_steps=120, batch_size=32, eval_every=40, save_every=40, sample_every=0,
                        patience=4)
    config.eval = ml_collections.ConfigDict(dict(max_comparisons=256))
    # Rewards are shifted and scaled to mean 0 and standard deviation 1 on answers that the parent
    # samples for held-out prompts.
    config.reference = ml_collections.ConfigDict(dict(
        prompts=256, max_new_tokens=64, temperature=1.0))
    config.sharding, config.checkpoint, config.metrics = sft.sharding, sft.checkpoint, sft.metrics
    return config


def comparison_source(**values):
    """Every leaf of a source of comparisons."""
    return dict(dict(path='', split='train', validation_split='', where={}, max_records=0,
                     license='', weight=1.0, rater='', criterion=''), **values)
