"""Rewards, returns and advantages of completions: pure functions of tensors.

N completions of T tokens each, padded on the right. `mask`, bool `[N, T]`, marks a completion's own
tokens. What an environment wrote in between is skipped: what follows an own token is the next own
token. Results are zero outside the mask, in float32 at least.

`group` says which completions answer one prompt: their number G, if they lie next to each other, or
the index of each completion's group, int64 `[N]`.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, check_one_of, check_range, whole
from rl_lightning.maths.returns import backward_sum
from rl_lightning.maths.token_losses import KLEstimator, exact, kl_estimate, own, wide

Scale = Literal["group", "batch", "none"]


def group_advantages(
    reward: Tensor, group: Tensor | int, scale: Scale = "group", eps: float = 1e-4
) -> Tensor:
    """(r − mean of its group) / (std + ε), with the unbiased std (GRPO, Shao et al. 2024, §4.1.2).

    Args:
        reward: r of each completion, `[N]`.
        group: See above.
        scale: Whose std: that of the "group", of the "batch", or "none" at all, which is Dr. GRPO
            (Liu et al. 2025).
        eps: Keeps a group without spread finite.

    Returns:
        `[N]`.

    Raises:
        ConfigurationError: If a group has a single completion, or `scale` is unknown.
    """
    check_one_of("scale", scale, get_args(Scale))
    dtype = wide(reward).dtype
    reward, index, size = _compared(reward, group)
    centred = reward - _group_mean(reward, index, size)
    if scale == "batch":
        centred = centred / (reward.std() + eps)
    elif scale == "group":
        variance = centred.new_zeros(len(size)).index_add(0, index, centred.square()) / (size - 1)
        centred = centred / (variance.sqrt()[index] + eps)
    return centred.to(dtype)


def rloo_advantages(reward: Tensor, group: Tensor | int) -> Tensor:
    """r minus the mean of the others in its group (RLOO, Kool et al. 2019; Ahmadian et al. 2024).

    A KL penalty belongs to the reward, see `token_rewards`, whose sums over tokens this takes.

    Args:
        reward: r of each completion, `[N]`.
        group: See above.

    Returns:
        `[N]`.

    Raises:
        ConfigurationError: If a group has a single completion.
    """
    dtype = wide(reward).dtype
    reward, index, size = _compared(reward, group)
    centred = reward - _group_mean(reward, index, size)
    return (centred * (size / (size - 1))[index]).to(dtype)


def reinforce_pp_advantages(reward: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Reward-to-go of each token, whitened over all own tokens (REINFORCE++, Hu et al. 2025).

    Args:
        reward: Of each token, see `token_rewards`, `[N, T]`.
        mask: Own tokens, bool `[N, T]`.
        gamma: Discount γ per own token.

    Returns:
        `[N, T]`.
    """
    return whiten(returns_to_go(reward, mask, gamma), mask)


def reinforce_pp_baseline_advantages(reward: Tensor, mask: Tensor, group: Tensor | int) -> Tensor:
    """r minus the mean of its group, whitened over all own tokens (REINFORCE++-baseline).

    Without the std of the group, which weighs prompts by how sure their outcome is. A completion
    counts in the statistics with as many tokens as it has, as in verl.

    Args:
        reward: r of each completion, `[N]`.
        mask: Own tokens, bool `[N, T]`.
        group: See above.

    Returns:
        `[N, T]`.

    Raises:
        ConfigurationError: If a group has a single completion.
    """
    return whiten(group_advantages(reward, group, "none")[:, None].expand(mask.shape), mask)


def groups_without_spread(reward: Tensor, group: Tensor | int) -> Tensor:
    """Which groups have equal rewards throughout, and so nothing to learn from.

    Args:
        reward: r of each completion, `[N]`.
        group: See above.

    Returns:
        bool `[K]`, one of each group, by ascending index.
    """
    index, size = group_index(reward, group)
    low, high = (
        reward.new_zeros(len(size)).scatter_reduce(0, index, reward, how, include_self=False)
        for how in ("amin", "amax")
    )
    return low == high


def token_rewards(
    score: Tensor,
    mask: Tensor,
    log_prob: Tensor | None = None,
    reference_log_prob: Tensor | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k1",
) -> Tensor:
    """rₜ = −β KLₜ, and the score on top of it at the last own token (Ouyang et al. 2022, eq. 2).

    Args:
        score: Of each completion, `[N]`; a completion without own tokens loses it. Or of each
            token, `[N, T]`, where turns are paid for one by one.
        mask: Own tokens, bool `[N, T]`.
        log_prob: log π of the policy that sampled, `[N, T]`; needed if β is not 0.
        reference_log_prob: log π_ref, `[N, T]`; needed if β is not 0.
        kl_coef: β, in units of score per nat.
        kl_estimator: See `kl_estimate`.

    Returns:
        `[N, T]`.

    Raises:
        ConfigurationError: If β is not 0 and log-probabilities are missing.
    """
    if score.dim() == 2:
        reward = own(score, mask)
    else:
        last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        reward = own(score[:, None], last)
    if kl_coef == 0.0:
        return reward
    if log_prob is None or reference_log_prob is None:
        raise ConfigurationError(
            f"log_prob and reference_log_prob must be given with kl_coef={kl_coef}, or kl_coef be 0"
        )
    kl = kl_estimate(own(log_prob, mask), own(reference_log_prob, mask), kl_estimator)
    return reward - kl_coef * kl


def returns_to_go(reward: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Gₜ = rₜ + γ G of the next own token.

    Args:
        reward: Of each token; that of tokens outside the mask does not count, `[N, T]`.
        mask: Own tokens, bool `[N, T]`.
        gamma: Discount γ per own token.

    Returns:
        `[N, T]`.
    """
    return own(_backward(own(reward, mask), mask, gamma), mask)


def token_gae(
    reward: Tensor, value: Tensor, mask: Tensor, gamma: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the own tokens (Schulman et al. 2016, eq. 16).

        δₜ = rₜ + γ V′ − Vₜ,   Âₜ = δₜ + γ λ Â′,   Gₜ = Âₜ + Vₜ

    V′ and Â′ are those of the next own token, and zero after the last: completions are over where
    they end, also where their length was cut.

    Args:
        reward: rₜ of each token, see `token_rewards`, `[N, T]`.
        value: V of each token, before it is chosen, `[N, T]`.
        mask: Own tokens, bool `[N, T]`.
        gamma: Discount γ per own token.
        gae_lambda: Trace decay λ.

    Returns:
        Â, not whitened, and the returns G, `[N, T]` each.
    """
    reward, value = own(reward, mask), own(value, mask)
    carried = _backward(value, mask, 0.0)  # V of the next own token from here on
    next_value = torch.cat([carried[:, 1:], torch.zeros_like(carried[:, :1])], dim=1)
    delta = own(reward + gamma * next_value - value, mask)
    advantage = own(_backward(delta, mask, gamma * gae_lambda), mask)
    return advantage, advantage + value


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """(x − mean) / √(variance + 1e-8) over the own tokens, with the unbiased variance.

    ε is within the root, as in verl: next to the std it would blow up the rounding errors of a
    constant x to the size of advantages.

    Args:
        x: `[N, T]`.
        mask: Own tokens, bool `[N, T]`.
        shift_mean: Whether the mean becomes zero; otherwise it stays, as for rewards.

    Returns:
        `[N, T]`; zero for a token alone.
    """
    dtype, x, count = wide(x).dtype, exact(own(x, mask)), mask.sum()
    mean = x.sum() / count.clamp(min=1)
    centred = own(x - mean, mask)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    white = centred * (variance + 1e-8).rsqrt()
    return (white if shift_mean else own(white + mean, mask)).to(dtype)


def overlong_penalty(length: Tensor, max_length: int, cache: int) -> Tensor:
    """0 up to `max_length − cache` tokens, then down to −1 at `max_length` (DAPO, Yu et al. 2025,
    eq. 13).

    Args:
        length: Own tokens of each completion, `[N]`.
        max_length: L_max; beyond it the penalty stays −1.
        cache: L_cache, tokens over which it falls, in [1, `max_length`].

    Returns:
        A reward, float32 `[N]`.

    Raises:
        ConfigurationError: If `cache` is out of range.
    """
    check_range("cache", cache, 1, max_length)
    return ((max_length - cache - length.float()) / cache).clamp(-1.0, 0.0)


def pass_at_k(right: Tensor, samples: int, k: int) -> Tensor:
    """The chance that one of k completions is right, 1 − C(n − c, k) / C(n, k), without bias (Chen
    et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1).

    Args:
        right: c, how many of the samples of each prompt are right, int64 `[P]`.
        samples: n, in [k, …).
        k: How many are tried.

    Returns:
        Float32 `[P]`.

    Raises:
        ConfigurationError: If k is more than the samples.
    """
    check_range("k", k, 1, samples)
    i = torch.arange(k, device=right.device)
    # The product of (n − c − i) / (n − i), which is 0 once fewer than k are wrong.
    wrong = ((samples - right)[:, None] - i).clamp(min=0) / (samples - i)
    return 1.0 - wrong.prod(1)


def _backward(x: Tensor, mask: Tensor, weight: float) -> Tensor:
    """yₜ = xₜ + w y of the next own token; outside the mask, where x is zero, y of the next one."""
    return backward_sum(x.T, torch.where(mask, weight, 1.0).to(x.dtype).T).T


def group_index(reward: Tensor, group: Tensor | int, least: int = 1) -> tuple[Tensor, Tensor]:
    """Index of each completion's group in 0 … K − 1, int64 `[N]`, and the size of each, `[K]`.

    Args:
        reward: Of each completion, `[N]`.
        group: See above.
        least: Completions that a group must have.

    Raises:
        ConfigurationError: If one has fewer, or groups and completions do not fit.
    """
    if isinstance(group, Tensor):
        if group.shape != reward.shape:
            raise ConfigurationError(
                f"group must have one index a completion, {len(reward)}, not {list(group.shape)}"
            )
        index = group.unique(return_inverse=True)[1]
    else:
        size = whole("group", group, 1)
        if len(reward) % size:
            raise ConfigurationError(
                f"group must divide the number of completions, {len(reward)}, not be {size}"
            )
        index = torch.arange(len(reward), device=reward.device) // size
    size = index.bincount()
    if (size < least).any():
        raise ConfigurationError(
            f"group must have at least {least} completions of each prompt, not 1: alone, none is "
            "better or worse than the others; sample more of each, or whiten over the batch "
            "(REINFORCE++)"
        )
    return index, size


def _compared(reward: Tensor, group: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    """The rewards in float64, which their squares fit into, and `group_index`, of which none has a
    single member."""
    index, size = group_index(reward, group, 2)
    return exact(reward), index, size


def _group_mean(reward: Tensor, index: Tensor, size: Tensor) -> Tensor:
    """The mean of each completion's group, `[N]`."""
    return (reward.new_zeros(len(size)).index_add(0, index, reward) / size)[index]
