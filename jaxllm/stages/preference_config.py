"""The config of direct preference training with its common settings; experiments fill it in."""

import ml_collections

from jaxllm.stages.sft_config import sft_config

# objectives/<name>.py: every leaf of its Settings.
OBJECTIVES = {
    'dpo': dict(beta=0.1, label_smoothing=0.0, robust=False),
    'ipo': dict(beta=0.1, per_token=True),
    'kto': dict(beta=0.1, good_weight=1.0, bad_weight=1.0),
    'orpo': dict(lam=0.1),
    'simpo': dict(beta=2.5, gamma=1.375),
}


def preference_config(method):
    """Every leaf of a run; without comparisons and without a policy. `method`: of OBJECTIVES."""
    sft = sft_config()
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.preference'
    config.seed = 0
    config.init_from = ''  # the SFT run; it is the reference, too
    config.method = f'jaxllm.objectives.{method}'
    config.objective = ml_collections.ConfigDict(OBJECTIVES[method])
    config.data = ml_collections.ConfigDict(dict(
        comparisons={}, seq_len=512, holdout_share=0.1, max_reject_share=0.05, pairs='best_worst',
        labelled={}))
    config.lora, config.compute, config.optim = sft.lora, sft.compute, sft.optim
    config.optim.update(lr=1e-4, schedule='linear', warmup_steps=10, decay_share=1.0)
    config.train = sft.train
    config.train.update(num_steps=150, batch_size=32, eval_every=30, save_every=30, sample_every=0,
                        patience=3)
    config.eval = ml_collections.ConfigDict(dict(max_comparisons=256))
    config.sample = sft.sample
    config.sharding, config.checkpoint, config.metrics = sft.sharding, sft.checkpoint, sft.metrics
    return config
