"""From rewards to advantages: GAE, groups, leave-one-out, returns; and whitening.

All arrays are float32. T counts the tokens of a completion: column t is the choice of its token t,
`mask` is 1 where there is one, and tokens are contiguous from column 0.
"""

import jax
import jax.numpy as jnp


def token_rewards(scores_B, kl_BT, mask_BT, kl_coef):
    """r_t = -kl_coef * kl_t, plus the score at the last token of the completion.

    The last token is where the mask ends, whatever its id: the end token, or where length ran out.

    Ref: Ouyang et al. 2022 (arXiv 2203.02155), equation 2.
    """
    T = mask_BT.shape[1]
    last_B = jnp.sum(mask_BT, axis=1).astype(jnp.int32) - 1
    at_end_BT = (jnp.arange(T)[None, :] == last_B[:, None]).astype(jnp.float32)
    return at_end_BT * scores_B.astype(jnp.float32)[:, None] - kl_coef * kl_BT * mask_BT


def gae(rewards_BT, values_BT, mask_BT, *, gamma, lam):
    """Generalised advantage estimation.

        delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t

    with V = A = 0 behind the end.

    Returns:
      advantages_BT, returns_BT, both 0 outside the mask.

    Ref: Schulman et al. 2016 (arXiv 1506.02438), equations 11 and 16.
    """
    values_BT = values_BT * mask_BT
    next_BT = jnp.pad(values_BT[:, 1:], ((0, 0), (0, 1)))
    deltas_BT = (rewards_BT + gamma * next_BT - values_BT) * mask_BT

    def back(after_B, delta_B):
        now_B = delta_B + gamma * lam * after_B
        return now_B, now_B

    zeros_B = jnp.zeros(values_BT.shape[0], jnp.float32)
    _, advantages_TB = jax.lax.scan(back, zeros_B, deltas_BT.T, reverse=True)
    advantages_BT = advantages_TB.T * mask_BT
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def returns(rewards_BT, mask_BT, *, gamma=1.0):
    """Discounted sums of what is still to come, sum_{k >= t} gamma^(k-t) r_k."""
    zeros_BT = jnp.zeros_like(rewards_BT)
    return gae(rewards_BT, zeros_BT, mask_BT, gamma=gamma, lam=1.0)[0]


def whiten(x, mask, *, shift_mean=True, eps=1e-8):
    """x scaled to variance 1 where mask = 1, and there to mean 0 unless the mean is to stay.

    The statistics are those of the whole array: give the global batch. Fewer than two entries are
    left as they are.
    """
    count = jnp.sum(mask)
    mean = jnp.sum(x * mask) / jnp.maximum(count, 1)
    variance = jnp.sum(jnp.square(x - mean) * mask) / jnp.maximum(count - 1, 1)
    scaled = (x - mean) * jax.lax.rsqrt(variance + eps)
    if not shift_mean:
        scaled += mean
    return jnp.where(count > 1, scaled, x) * mask


def group_relative(rewards_N, group_size, *, divide_by_std, eps=1e-4):
    """A_i = (r_i - mean of the group) [/ (std of the group + eps)]; N = prompts * group_size.

    Ref: Shao et al. 2024 (arXiv 2402.03300), 4.1.2; without the std: Liu et al. 2025 (Dr. GRPO,
    arXiv 2503.20783).
    """
    rewards_PS = rewards_N.astype(jnp.float32).reshape(-1, group_size)
    centred_PS = rewards_PS - rewards_PS.mean(axis=1, keepdims=True)
    if divide_by_std:
        centred_PS /= rewards_PS.std(axis=1, keepdims=True) + eps
    return centred_PS.reshape(-1)


def leave_one_out(rewards_N, group_size):
    """A_i = r_i - mean of the others of its group. Ref: Ahmadian et al. 2024 (arXiv 2402.14740)."""
    rewards_PS = rewards_N.astype(jnp.float32).reshape(-1, group_size)
    others_PS = (rewards_PS.sum(axis=1, keepdims=True) - rewards_PS) / (group_size - 1)
    return (rewards_PS - others_PS).reshape(-1)
