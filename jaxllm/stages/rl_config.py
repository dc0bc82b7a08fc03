"""The config of reinforcement learning with its common settings; experiments fill it in."""

import ml_collections

# objectives/<name>.py: every leaf of its Settings.
OBJECTIVES = {
    'ppo': dict(kl_coef=0.05, kl_target=0.0, kl_horizon=10_000.0, gamma=1.0, lam=0.95, clip=0.2,
                value_clip=0.2, value_coef=0.1, entropy_coef=0.0, whiten_rewards=False),
    'grpo': dict(kl_coef=0.02, clip_low=0.2, clip_high=0.2, divide_by_std=True,
                 reduction='sequence', mask_unfinished=False),
    'dr_grpo': dict(kl_coef=0.0, clip_low=0.2, clip_high=0.2, divide_by_std=False,
                    reduction='constant', mask_unfinished=False),
    'dapo': dict(kl_coef=0.0, clip_low=0.2, clip_high=0.28, divide_by_std=True,
                 reduction='token', mask_unfinished=True),
    'rloo': dict(kl_coef=0.05, clip=0.2, whiten=False),
    'reinforce': dict(kl_coef=0.05, clip=0.2, group_baseline=False),
    'online_dpo': dict(beta=0.1),
    'rejection': dict(),
}


def rl_config(algorithm, objective):
    """Every leaf of a run; without a policy, prompts and rewards.

    Args:
      algorithm: path of a module, e.g. 'jaxllm.objectives.ppo'. objective: its settings.
    """
    config = ml_collections.ConfigDict()
    config.stage = 'jaxllm.stages.rl'
    config.seed = 0
    config.init_from = ''  # the policy: a run, an adapter, a FILE.gguf or a folder of weights
    config.parents = ml_collections.ConfigDict(dict(ref='', value=''))
    config.algorithm = algorithm
    config.objective = ml_collections.ConfigDict(objective)
    config.rewards = ml_collections.ConfigDict()
    config.combine = ml_collections.ConfigDict(dict(
        rule='sum', k=1.0, helpful='', safe='', threshold=0.15, tag_field='kind',
        tag_values=('unsafe',)))
    config.chat = ml_collections.ConfigDict(dict(template=''))
    config.data = ml_collections.ConfigDict(dict(
        prompts={}, replay={}, max_prompt_tokens=64, holdout_share=0.1, max_reject_share=0.0,
        replay_seq_len=128))
    config.rollout = ml_collections.ConfigDict(dict(
        prompts=64, samples=4, epochs=1, max_new_tokens=48, temperature=1.0, batch_size=0,
        refill=True, share_prompts=True, score_batch_size=128, unfinished='replace',
        unfinished_value=-2.0, standardise=False))
    config.ptx_coef = 0.0  # of the pre-training loss on data.replay beside the RL loss
    config.alarms = ml_collections.ConfigDict(dict(
        kl_max=50.0, length_factor=3.0, repetition_max=0.5, entropy_share_min=0.05,
        reward_std_share_min=0.02, warmup=2, recent=2, stop=False))
    config.lora = ml_collections.ConfigDict(dict(
        rank=0, alpha=32.0, targets=('*',), rslora=False, dora=False, train_embeddings=False,
        base='float32'))
    config.compute = ml_collections.ConfigDict(dict(
        dtype='float32', remat='none', impl='auto', chunk_size=0))
    config.optim = ml_collections.ConfigDict(dict(
        name='adamw', lr=3e-4, schedule='linear', warmup_steps=0, decay_share=1.0,
        final_lr_share=0.1, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.0, clip_norm=1.0,
        ema_decay=0.0, muon_momentum=0.95))
    config.train = ml_collections.ConfigDict(dict(
        num_steps=200, batch_size=64, accum=1, z_loss=0.0, log_every=4, eval_every=40,
        sample_every=0, save_every=40, patience=0, profile_step=0,
        guard=dict(spike_factor=0.0, history=50, max_skips_in_row=5)))
    config.eval = ml_collections.ConfigDict(dict(max_prompts=128, kl_weight=0.05, judge=''))
    config.sharding = ml_collections.ConfigDict(dict(preset='fsdp', data=0, fsdp=0, tensor=0))
    config.checkpoint = ml_collections.ConfigDict(dict(keep_last=2))
    config.metrics = ml_collections.ConfigDict(dict(tensorboard=True, wandb_project=''))
    return config


def function_reward(path, weight=1.0, **settings):
    """Every leaf of a reward that is a Python function."""
    return dict(kind='function', path=path, settings=settings, run='', weight=weight,
                timeout_s=60.0, on_error='stop', check_repeat=True)


def model_reward(run, weight=1.0):
    """Every leaf of a learned reward."""
    return dict(kind='model', path='', settings={}, run=run, weight=weight, timeout_s=60.0,
                on_error='stop', check_repeat=False)


def prompt_source(**values):
    """Every leaf of a source of prompts; any file of conversations or comparisons will do."""
    return dict(dict(path='', split='train', validation_split='', where={}, max_records=0,
                     license='', weight=1.0), **values)
