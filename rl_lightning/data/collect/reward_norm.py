"""Rescaling rewards for learning; the returns that are logged stay the environment's."""

from typing import Any

import torch
from torch import Tensor

from rl_lightning.core.errors import RunError
from rl_lightning.nn.norm import RunningMoments


class RewardNorm:
    """Divides rewards by the running standard deviation of the discounted return so far.

    Rₜ = γ Rₜ₋₁ + rₜ runs forward in each environment and starts anew with each episode
    (Engstrom et al. 2020, as in `gymnasium.wrappers.NormalizeReward`). The deviation is updated
    with a whole rollout, which is then scaled by one number. Ranks share one deviation.

    Args:
        num_envs: B.
        gamma: γ.
        clip: Largest magnitude of a scaled reward.
    """

    def __init__(self, num_envs: int, gamma: float, clip: float = 10.0) -> None:
        self.gamma = gamma
        self.clip = clip
        self.running = RunningMoments(1)
        self._carry = torch.zeros(num_envs)

    def __call__(self, reward: Tensor, done: Tensor, valid: Tensor | None = None) -> Tensor:
        """Scale a rollout's rewards.

        Args:
            reward: `[T, B]`.
            done: Whether an episode ended with the step, bool `[T, B]`.
            valid: Steps that were none of an episode's are False, bool `[T, B]`.

        Returns:
            `[T, B]`.

        Raises:
            RunError: If discounted sums of finite rewards are infinite.
        """
        if valid is not None:
            reward = reward.masked_fill(~valid, 0.0)
        returns = torch.empty_like(reward)
        carry = self._carry.to(reward.device)
        for r_t, done_t, out in zip(reward, done, returns, strict=True):
            carry = torch.add(r_t, carry, alpha=self.gamma, out=out) * ~done_t
        self._carry = carry
        self.running.to(reward.device).update(
            returns.reshape(-1, 1) if valid is None else returns[valid][:, None]
        )
        self.running.synchronize()
        if not bool(self.running.moments.isfinite().all()):
            raise RunError(
                "data.normalize_reward: discounted sums of rewards are beyond what float32 holds, "
                "so there is nothing to divide by; make rewards smaller, e.g. by the wrapper "
                "ClipReward (checkpoints written before are good)"
            )
        scale = (self.running.variance + 1e-8).rsqrt().to(reward.dtype)
        return (reward * scale).clamp(-self.clip, self.clip)

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.running.moments.clone(), "carry": self._carry.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.running.load_state_dict({"moments": state["moments"]})
        self._carry = state["carry"].clone()
