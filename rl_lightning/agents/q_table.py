"""Tabular temporal-difference control: Q-learning, SARSA, expected SARSA, double Q-learning."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents.agent import Agent
from rl_lightning.core.errors import ConfigurationError, check_finite, check_range
from rl_lightning.core.loss import Loss
from rl_lightning.core.schedules import Schedule, factor
from rl_lightning.core.types import EnvSpec, Rollout, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.table import TableEncoder
from rl_lightning.exploration import EpsilonGreedy, ValueExploration, greedy_action
from rl_lightning.maths.returns import next_values
from rl_lightning.policies.q_network import pick
from rl_lightning.policies.table import Table
from rl_lightning.trainer import count_update

METHODS = ("q_learning", "sarsa", "expected_sarsa", "double_q")


class QTable(Agent):
    """A table of action values, moved towards one-step targets.

        Q(s, a) ← Q(s, a) + α [r + γ q′ − Q(s, a)]

    where, with b(· | s) the exploring policy, q′ is

        q_learning      maxₐ Q(s′, a)                 Watkins 1989; Sutton & Barto 2018, eq. 6.8
        sarsa           Q(s′, a′), a′ ~ b(· | s′)     eq. 6.7
        expected_sarsa  Σₐ b(a | s′) Q(s′, a)         eq. 6.9
        double_q        Q₂(s′, argmaxₐ Q₁(s′, a))     van Hasselt 2010; eq. 6.10, for Q₁; a coin
                                                      says which table is Q₁; acts by their mean

    It learns from fresh rollouts, step by step in the order in which they were played, or, unless
    it is SARSA, from replay. A cell that several rows of one step (of parallel environments, or of
    one replay batch) fall into moves once, towards the mean of their targets. SARSA's a′ is the
    action that was taken next; after a rollout's last step and where an episode was truncated it is
    drawn, from the same policy.

    Every batch counts as one step of an optimizer; there is none.

    Args:
        spec: The environment's spaces; actions are Discrete.
        encoder: Builds what numbers observations.
        method: q_learning, sarsa, expected_sarsa or double_q.
        alpha: Step size α in [0, 1].
        alpha_schedule: Schedule of α over training progress: constant, linear or cosine.
        alpha_decay: ω in [0, 1]: the n-th update of a cell moves it by α n^−ω. With α = 1 and
            ω = 1 a cell is the mean of its targets; in between, Q-learning converges faster,
            because its first targets are wrong (Even-Dar & Mansour 2003).
        initial_value: Q before anything is learned; above all returns it makes even a greedy policy
            try everything.
        gamma: Discount γ.
        exploration: Builds what chooses actions while training.
    """

    learns_from = ("rollouts", "replay")
    learns_by_gradient = False

    def __init__(
        self,
        spec: EnvSpec,
        encoder: Callable[[EnvSpec], Encoder] = TableEncoder,
        method: Literal["q_learning", "sarsa", "expected_sarsa", "double_q"] = "q_learning",
        alpha: float = 0.1,
        alpha_schedule: Schedule = "constant",
        alpha_decay: float = 0.0,
        initial_value: float = 0.0,
        gamma: float = 0.99,
        exploration: Callable[[], ValueExploration] = EpsilonGreedy,
    ) -> None:
        super().__init__(spec, gamma=gamma)
        if method not in METHODS:
            raise ConfigurationError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
        check_range("alpha", alpha, 0.0, 1.0)
        check_range("alpha_decay", alpha_decay, 0.0, 1.0)
        check_finite("initial_value", initial_value)
        factor(alpha_schedule, 0.0)
        self.policy = Table(spec, encoder, 2 if method == "double_q" else 1, initial_value)
        self.start = int(spec.action_space.start)  # type: ignore[attr-defined]
        self.method = method
        self.alpha = alpha
        self.alpha_schedule: Schedule = alpha_schedule
        self.alpha_decay = alpha_decay
        self.exploration = exploration()
        self.automatic_optimization = False
        if method == "sarsa":
            self.learns_from = ("rollouts",)  # replay knows no next action

    # --- acting -------------------------------------------------------------------------------

    def act(
        self,
        x: Stored,
        explore: bool = True,
        state: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        values = self.policy(x)
        if explore:
            action = self.exploration(values, self.progress, mask)
        else:
            action = greedy_action(values, mask)
        return {"action": action + self.start if self.start else action}

    def inspect(
        self, x: Stored, state: Tensor | None = None, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Q(s, ·), `values` `[B, A]`."""
        return {"values": self.policy(x)}

    # --- learning -----------------------------------------------------------------------------

    def prepare(self, rollout: Rollout) -> TensorDict:
        """Transitions `[T, B]`, as replay has them, with the `time` t and SARSA's `next_action`."""
        steps, final = rollout.steps, rollout.final_index
        last_obs: Any = rollout.last_obs
        final_obs: Any = rollout.final_obs
        last_mask, final_mask = rollout.last_mask, rollout.final_mask
        batch = {key: steps[key] for key in ("obs", "action", "reward")}
        batch["discount"] = self.gamma * (~steps["terminated"]).float()
        batch["next_obs"] = next_values(steps["obs"], last_obs, final, final_obs)
        time = torch.arange(len(steps), device=self.device)
        batch["time"] = time[:, None].expand(steps.batch_size)
        valid, mask = steps.get("valid", None), steps.get("action_mask", None)
        if valid is not None:
            batch["valid"] = valid
        if mask is not None:
            assert last_mask is not None
            batch["next_action_mask"] = next_values(mask, last_mask, final, final_mask)
        if self.method == "sarsa":
            last = self.act(last_obs, mask=last_mask)["action"]
            cut = None if final is None else self.act(final_obs, mask=final_mask)["action"]
            batch["next_action"] = next_values(steps["action"], last, final, cut)
        return TensorDict(batch, batch_size=steps.batch_size)

    def make_update(self, batch: TensorDict, more: bool = False) -> Loss:
        rows: dict[str, Any] = dict(batch.items())
        time = rows.pop("time", None)
        size = len(batch) // (1 if time is None else int(time[-1]) + 1)
        errors = []
        for begin in range(0, len(batch), size):
            errors.append(self.learn({k: v[begin : begin + size] for k, v in rows.items()}))
        count_update(self.trainer)
        self.updates += 1
        error = torch.cat(errors)
        loss = Loss(
            error.square().mean(),
            lambda: {
                "value/td_error": error.abs().mean(),
                "value/q": self.policy(rows["obs"]).max(-1).values.mean(),
            },
        )
        self.note(loss, more)
        return loss

    def gauges(self) -> dict[str, Any]:
        return {
            "table/cells": float(self.policy.updates.count_nonzero()),
            f"explore/{self.exploration.name}": self.exploration.strength(self.progress),
        }

    @torch.no_grad()
    def learn(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Move the table towards the targets of some transitions, all found before it moves.

        Args:
            rows: `obs`, `action`, `reward`, `discount`, `next_obs`, and where there are any `valid`
                (others are left out), `next_action_mask` and `next_action`, `[N]` each.

        Returns:
            The errors δ = r + γ q′ − Q(s, a) of the valid rows, `[N]`.
        """
        if "valid" in rows:
            rows = {key: value[rows["valid"]] for key, value in rows.items()}
        table, next_value = self._next_value(rows)
        q, updates = self.policy.q.view(-1), self.policy.updates.view(-1)
        _, states, actions = self.policy.q.shape
        cell = (table * states + rows["obs"]) * actions + rows["action"] - self.start
        error = rows["reward"] + rows["discount"] * next_value - q[cell]
        cell, where, count = cell.unique(return_inverse=True, return_counts=True)
        mean = torch.zeros_like(cell, dtype=error.dtype).index_add_(0, where, error) / count
        updates[cell] += 1
        q[cell] += self.step_size(updates[cell]) * mean
        return error

    def step_size(self, n: Tensor) -> Tensor:
        """α n^−ω of the n-th update of a cell, times the schedule."""
        alpha = self.alpha * factor(self.alpha_schedule, self.progress)
        return alpha * n.to(self.policy.q.dtype) ** -self.alpha_decay

    def _next_value(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Which table each row moves, int64 `[N]`, and q′ of its next observation, `[N]`."""
        x, mask = rows["next_obs"], rows.get("next_action_mask")
        table = torch.zeros_like(x)
        if self.method == "double_q":
            table = torch.randint_like(x, 2)
            return table, pick(self.policy.q[1 - table, x], self._best(table, x, mask))
        values = self.policy.q[0, x]
        if self.method == "q_learning":
            return table, pick(values, self._best(table, x, mask))
        if self.method == "sarsa":
            return table, pick(values, rows["next_action"] - self.start)
        policy = self.exploration.probabilities(values, self.progress, mask)
        return table, (policy * values).sum(-1)

    def _best(self, table: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        return greedy_action(self.policy.q[table, x], mask)

    # --- Lightning ----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.trainer.world_size > 1:
            raise ConfigurationError(
                f"QTable: {self.trainer.world_size} ranks would each fill a table of their own; "
                "set trainer.devices: 1 and raise data.num_envs"
            )

    def learned(self) -> Iterable[tuple[str, Tensor]]:
        return [("the table", self.policy.q)]

    def configure_optimizers(self) -> Any:
        return []
