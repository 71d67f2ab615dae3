"""Returns and advantages: pure functions of time-major tensors, in float32.

Two kinds of ending are kept apart everywhere. `terminated` says the task is over: nothing follows,
the bootstrap is cut. `done = terminated | truncated` says the *recording* is over: what follows
belongs to another episode, so the trace is cut, but a truncated step still bootstraps from the
value of its own final observation.
"""

import torch
from torch import Tensor


def backward_sum(x: Tensor, weight: Tensor, last: Tensor | None = None) -> Tensor:
    """Solve yₜ = xₜ + wₜ yₜ₊₁ backwards, for t = T−1 … 0.

    Args:
        x: Terms, `[T, ...]`.
        weight: Weights of what follows, `[T, ...]`.
        last: y_T, `[...]`; zero if not given.

    Returns:
        y, `[T, ...]`.
    """
    y = torch.empty_like(x)
    follow = torch.zeros_like(x[0]) if last is None else last
    for x_t, w_t, y_t in zip(
        reversed(x.unbind()), reversed(weight.unbind()), reversed(y.unbind()), strict=True
    ):
        follow = torch.addcmul(x_t, w_t, follow, out=y_t)
    return y


def discounted_returns(
    reward: Tensor, done: Tensor, gamma: float, last: Tensor | None = None
) -> Tensor:
    """Monte-Carlo reward-to-go Gₜ = rₜ + γ (1 − doneₜ) Gₜ₊₁ (Sutton & Barto 2018, eq. 3.9).

    Args:
        reward: rₜ, `[T, B]`.
        done: Whether the episode ended with step t, in either way, bool `[T, B]`.
        gamma: Discount γ.
        last: G_T, what follows the last step, `[B]`; zero if not given.

    Returns:
        G, `[T, B]`.
    """
    return backward_sum(reward, gamma * (~done).to(reward.dtype), last)


def next_values(
    value: Tensor,
    last_value: Tensor,
    final_index: tuple[Tensor, Tensor] | None = None,
    final_value: Tensor | None = None,
) -> Tensor:
    """V(sₜ₊₁) for every step, where sₜ₊₁ is what step t really led to.

    Args:
        value: V(sₜ), `[T, B]`.
        last_value: V(s_T), `[B]`.
        final_index: `(t, b)` of the truncated steps, two int64 `[F]`.
        final_value: V of their final observations, `[F]`: the next row of `value` belongs to the
            first observation of another episode.

    Returns:
        `[T, B]`; at terminated steps the entry is meaningless and must be cut by the caller.
    """
    found = torch.cat([value[1:], last_value[None]])
    if final_index is not None and final_value is not None:
        found[final_index] = final_value.to(found.dtype)
    return found


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

        δₜ = rₜ + γ (1 − terminatedₜ) V(sₜ₊₁) − V(sₜ)
        Âₜ = δₜ + γ λ (1 − doneₜ) Âₜ₊₁

    λ = 0 is the one-step TD error; λ = 1 is the discounted return, bootstrapped where the recording
    stops, minus V(sₜ).

    Args:
        reward: rₜ, `[T, B]`.
        value: V(sₜ), `[T, B]`.
        next_value: V(sₜ₊₁), `[T, B]`, see `next_values`.
        terminated: bool `[T, B]`.
        done: `terminated | truncated`, bool `[T, B]`.
        gamma: Discount γ.
        gae_lambda: Trace decay λ.

    Returns:
        Â, `[T, B]`.
    """
    delta = reward + gamma * next_value * ~terminated - value
    return backward_sum(delta, gamma * gae_lambda * (~done).to(delta.dtype))


def ends_within(done: Tensor) -> Tensor:
    """Whether the episode that step t belongs to ends within the recording.

    Args:
        done: bool `[T, B]`.

    Returns:
        bool `[T, B]`; False on the unfinished tail of each column.
    """
    return done.flip(0).cummax(0).values.flip(0)


def n_step_return(
    reward: Tensor, present: Tensor, terminated: Tensor, truncated: Tensor, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Σₖ γᵏ rₖ over up to n steps, and the discount of what follows (Sutton & Barto 2018, eq. 7.1).

    Step k counts if it is present, and so are all before it, and none of those ended the episode.
    After m steps the return goes on with γᵐ V(sₘ), unless step m − 1 terminated.

    Args:
        reward: r₀ … rₙ₋₁, `[N, n]`.
        present: Whether the recording has the step, bool `[N, n]`; it has step 0.
        terminated: bool `[N, n]`.
        truncated: bool `[N, n]`.
        gamma: γ.

    Returns:
        The return `[N]`, its discount γᵐ or 0 `[N]`, and m, int64 `[N]`.
    """
    goes_on = present[:, 1:] & ~(terminated | truncated)[:, :-1]
    counts = torch.cat([torch.ones_like(present[:, :1]), goes_on], dim=1).cumprod(1)  # (N, n)
    steps = counts.sum(1)
    powers = gamma ** torch.arange(reward.shape[1] + 1, device=reward.device, dtype=reward.dtype)
    ended = terminated.gather(1, (steps - 1)[:, None]).squeeze(1)
    discount = powers[steps] * ~ended
    return (reward * counts * powers[:-1]).sum(1), discount, steps
