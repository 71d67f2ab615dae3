"""Whether an exported policy does what the agent does."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rl_lightning.core.errors import RunError
from rl_lightning.core.spaces import action_writer, as_batch, is_text
from rl_lightning.export.decisions import decider, reading
from rl_lightning.export.inputs import Part, assembled
from rl_lightning.export.run_exported import ExportedPolicy
from rl_lightning.export.samples import sample_masks, sample_part
from rl_lightning.nn.modes import EvalMode

TOLERANCE = 1e-4
"""Largest relative error of scores."""
STEPS = 4
"""Of an episode of a recurrent policy: later ones stand on its memory."""
IMPOSSIBLE = -1e30
"""Scores below it are of actions that a mask forbids."""


@dataclass(frozen=True)
class Parity:
    """How well a file and an agent agree.

    Attributes:
        observations: That they were compared on.
        error: Largest relative error of a number: of scores, memory and continuous actions, each
            against the largest of its row, or of a middling row where that is larger.
        agreement: Share of equal greedy actions; of continuous ones, of those within the tolerance.
        wrong: Greedy actions that differ although the best is better by more than the tolerance.
    """

    observations: int
    error: float
    agreement: float
    wrong: int

    def check(self, kind: str) -> None:
        """Refuse what does not agree.

        Raises:
            RunError: That says by how much.
        """
        if self.wrong or not self.error <= TOLERANCE:
            raise RunError(
                f"the exported {kind} file does not act as the agent does: on {self.observations} "
                f"sampled observations its numbers are off by up to {self.error:.2g}, relatively "
                f"({TOLERANCE:g} is allowed), and {self.wrong} greedy actions differ beyond that; "
                "it was removed"
            )


def compare(
    agent: Any, parts: list[Part], exported: ExportedPolicy, count: int, seed: int = 0
) -> Parity:
    """Run both on sampled observations and masks; with memory, on several steps in turn.

    The agent reads raw observations and acts by its own `act`; what it says beside that comes of
    `decider`.

    Args:
        agent: On the CPU.
        parts: What it reads of an observation.
        exported: The file, as its user runs it.
        count: Observations, of each step.
        seed: Of what is sampled.
    """
    rng = np.random.default_rng(seed)
    memory, mask_dim = exported.spec["state"], agent.mask_dim
    state = agent.initial_state(count) if agent.policy.state_dim else None
    errors, equal, wrong = [0.0], [], 0
    exported.reset()
    for _ in range(STEPS if memory else 1):
        values = [sample_part(part, agent.encoder, count, rng) for part in parts]
        rows = [assembled(parts, row) for row in zip(*values, strict=True)]
        mask = sample_masks(_mask_widths(agent), count, rng) if mask_dim else None
        alone = None
        if len(equal) == 0:
            alone = exported.run(rows[:1], None if mask is None else mask[:1])
            exported.reset()
        found = exported.run(rows, mask)
        obs = assembled(parts, [_batch(part, own) for part, own in zip(parts, values, strict=True)])
        told = None if mask is None else torch.from_numpy(mask)
        with EvalMode(agent), torch.no_grad():
            acted = agent.act(agent.preprocess(obs), explore=False, state=state, mask=told)
            said = decider(agent)(reading(agent, obs), _own(state, memory), told)
        state = acted.get("next_state", state)
        scores = {name: value.numpy() for name, value in said.items() if name != "action"}
        errors += [relative_error(found[name], value) for name, value in scores.items()]
        if alone is not None:
            errors += [relative_error(alone[name], value[:1]) for name, value in scores.items()]
        action = action_writer(agent.spec.action_space)(acted["action"])
        same, beyond = compare_actions(found["action"], action, scores)
        equal.append(same)
        wrong += beyond
        if found["action"].dtype != action.dtype or found["action"].shape != action.shape:
            wrong += count
        elif action.dtype.kind == "f":
            errors.append(relative_error(found["action"], action))
    agreement = float(np.concatenate(equal).mean())
    return Parity(count * len(equal), max(errors), agreement, wrong)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest |found − wanted| against the largest |wanted| of its row, `[N, ...]`.

    Where that is small it is taken against the largest of a middling row (the median): a number
    near 0 is the difference of larger ones. What a mask forbids must be forbidden in both. Infinity
    where one is not finite, or of another shape.
    """
    if found.shape != wanted.shape or not (np.isfinite(found) & np.isfinite(wanted)).all():
        return float("inf")
    found, wanted = (a.reshape(len(a), -1).astype(np.float64) for a in (found, wanted))
    forbidden = wanted <= IMPOSSIBLE
    if ((found <= IMPOSSIBLE) != forbidden).any():
        return float("inf")
    found, wanted = np.where(forbidden, 0.0, found), np.where(forbidden, 0.0, wanted)
    largest = np.abs(wanted).max(1, keepdims=True)
    scale = np.maximum(np.maximum(largest, np.median(largest)), 1e-12)
    return float((np.abs(found - wanted) / scale).max())


def compare_actions(
    found: np.ndarray, wanted: np.ndarray, scores: dict[str, np.ndarray]
) -> tuple[np.ndarray, int]:
    """Which actions are equal, bool `[N]`, and how many others had no excuse."""
    if found.shape != wanted.shape:
        return np.zeros(len(wanted), bool), len(wanted)
    if wanted.dtype.kind == "f":
        close = np.isclose(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        return np.all(np.reshape(close, (len(found), -1)), axis=1), 0  # their error says the rest
    same = np.all(np.reshape(found == wanted, (len(wanted), -1)), axis=1)
    near = np.zeros(len(wanted), bool)
    for name, score in scores.items():
        if not name.startswith(("logits", "q_values")):
            continue
        score = score.astype(np.float64)
        allowed = np.where(score <= IMPOSSIBLE, np.nan, score)
        tolerated = 2 * TOLERANCE * np.nanmax(np.abs(allowed), axis=1, initial=1e-12)
        if wanted.ndim == 2 and name == "logits":  # bits, each for itself
            gap = np.nanmin(np.abs(allowed), axis=1)
        else:
            best = np.sort(score, axis=1)[:, -2:]
            gap = best[:, -1] - best[:, 0] if best.shape[1] > 1 else np.full(len(best), np.inf)
        near |= gap <= tolerated
    return same, int((~same & ~near).sum())


def _mask_widths(agent: Any) -> list[int]:
    space = agent.spec.action_space
    if isinstance(space, gym.spaces.MultiDiscrete):
        return [int(n) for n in space.nvec]
    return [agent.mask_dim]


def _batch(part: Part, values: list[Any]) -> Any:
    if is_text(part.space):
        return tuple(values)
    return as_batch(part.space, np.stack([np.asarray(v, part.space.dtype) for v in values]))[0]


def _own(state: torch.Tensor | None, memory: Any) -> torch.Tensor | None:
    """The actor's part of an agent's memory, which comes first."""
    return None if state is None or memory is None else state[:, : memory["width"]]
