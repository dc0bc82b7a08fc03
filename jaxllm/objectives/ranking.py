"""Losses of orders: what a person's ranking says about the rewards of several responses.

S responses per prompt; ranks from 1 (the best), equal ranks are ties, 0 is an absent response. All
functions give one number per comparison, [B] float32, which does not change when a constant is
added to all rewards of a prompt.
"""

import jax
import jax.numpy as jnp

from jaxllm.errors import InputError

_ABSENT = -1e30  # below every reward, and finite: no NaN in gradients


def pairs(ranks_BS):
    """bool [B, S, S]: response i is present and ranked before j."""
    first, second = ranks_BS[:, :, None], ranks_BS[:, None, :]
    return (first > 0) & (second > 0) & (first < second)


def decisions(ranks_BS):
    """How many responses of each comparison have one ranked below them, [B] float32."""
    return jnp.any(pairs(ranks_BS), axis=2).sum(axis=1).astype(jnp.float32)


def bradley_terry(rewards_BS, ranks_BS, margins_B):
    """-log sigmoid(r_w - r_l - margin) of pairs; 0 where the two are tied.

    Raises:
      InputError: more than two responses.

    Ref: Bradley & Terry 1952; the margin: Touvron et al. 2023 (Llama 2), equation 2.
    """
    if ranks_BS.shape[1] != 2:
        raise InputError(f'Bradley-Terry compares two responses, got {ranks_BS.shape[1]} per '
                         'prompt; use the loss plackett_luce or all_pairs')
    first_B = ranks_BS[:, 0] < ranks_BS[:, 1]
    difference_B = jnp.where(first_B, 1.0, -1.0) * (rewards_BS[:, 0] - rewards_BS[:, 1])
    return jnp.where(decisions(ranks_BS) > 0, jax.nn.softplus(margins_B - difference_B), 0.0)


def plackett_luce(rewards_BS, ranks_BS):
    """-sum_k [r_k - logsumexp of r_k and all that is ranked strictly lower].

    The best is taken first with probability softmax(r), then the best of the rest, and so on.
    Members of a tie do not compete with each other. For strict rankings exp(-loss) sums to 1 over
    all orders, and S = 2 is Bradley-Terry.

    Ref: Plackett 1975; Luce 1959. Ties are not theirs.
    """
    keys_BS = jnp.where(ranks_BS > 0, ranks_BS, jnp.iinfo(jnp.int32).max)
    order_BS = jnp.argsort(keys_BS, axis=1)
    keys_BS = jnp.take_along_axis(keys_BS, order_BS, axis=1)
    present_BS = keys_BS < jnp.iinfo(jnp.int32).max
    sorted_BS = jnp.where(present_BS, jnp.take_along_axis(rewards_BS, order_BS, axis=1), _ABSENT)
    # logsumexp of this and everything behind it, and of nothing at the end.
    behind_BS = jnp.pad(jax.lax.cumlogsumexp(sorted_BS, axis=1, reverse=True), ((0, 0), (0, 1)),
                        constant_values=_ABSENT)
    # Where what is strictly lower begins: behind all that is at least as good.
    next_BS = jnp.sum(keys_BS[:, None, :] <= keys_BS[:, :, None], axis=2)
    lower_BS = jnp.take_along_axis(behind_BS, next_BS, axis=1)
    each_BS = jnp.logaddexp(sorted_BS, lower_BS) - sorted_BS
    return jnp.where(present_BS, each_BS, 0.0).sum(axis=1)


def all_pairs(rewards_BS, ranks_BS):
    """Mean of -log sigmoid(r_i - r_j) over the pairs of a prompt in which i is ranked before j.

    All pairs of a prompt are in one batch element and count as one, lest prompts with many
    responses be learned by heart.

    Ref: Ouyang et al. 2022 (InstructGPT, arXiv 2203.02155), equation 1.
    """
    better_BSS = pairs(ranks_BS)
    difference_BSS = rewards_BS[:, :, None] - rewards_BS[:, None, :]
    total_B = jnp.where(better_BSS, jax.nn.softplus(-difference_BSS), 0.0).sum(axis=(1, 2))
    return total_B / jnp.maximum(better_BSS.sum(axis=(1, 2)), 1)


def centering(rewards_BS, ranks_BS):
    """(2 mean(r))^2 over the present responses: (r_w + r_l)^2 for pairs. Holds rewards around 0,
    which the losses above leave open.

    Ref: Eisenstein et al. 2023 (arXiv 2312.09244), section on regularisation.
    """
    present_BS = ranks_BS > 0
    mean_B = (jnp.where(present_BS, rewards_BS, 0.0).sum(axis=1)
              / jnp.maximum(present_BS.sum(axis=1), 1))
    return (2 * mean_B) ** 2


def correct_pairs(rewards_BS, ranks_BS):
    """(right, all): of the ordered pairs, how many the rewards order alike; equal ones half."""
    better_BSS = pairs(ranks_BS)
    difference_BSS = rewards_BS[:, :, None] - rewards_BS[:, None, :]
    right_BSS = jnp.where(difference_BSS == 0, 0.5, (difference_BSS > 0).astype(jnp.float32))
    return (jnp.where(better_BSS, right_BSS, 0.0).sum(),
            better_BSS.sum().astype(jnp.float32))
