"""Acting outside of training: observations as environments give them, actions as they take them."""

from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.spaces import action_writer, as_batch
from rl_lightning.core.tree import is_finite
from rl_lightning.nn.modes import EvalMode

NOT_GIVEN: Any = object()


@overload
def predict(agent: Any, obs: Any, *, explore: bool = False, mask: Any = None) -> Any: ...
@overload
def predict(
    agent: Any, obs: Any, *, state: Tensor | None, explore: bool = False, mask: Any = None
) -> tuple[Any, Tensor | None]: ...
def predict(
    agent: Any,
    obs: Any,
    *,
    state: Tensor | None = NOT_GIVEN,
    explore: bool = False,
    mask: Any = None,
) -> Any:
    """Choose the action for one observation, or the actions for a batch.

    In eval mode and without gradient; neither the agent's mode nor its running statistics change.
    With memory:

        state = None                                      # at an episode's beginning
        action, state = agent.predict(obs, state=state)   # at every step

    Args:
        agent: What acts.
        obs: One observation as the environment returns it, or a batch as a vector environment
            does; the observation space decides which of the two it is.
        state: Memory of a recurrent policy, or of exploration noise that has one: None where an
            episode begins, otherwise what `predict` returned, `[B, H]`; a row of a batch whose
            episode is over is set to zero. Whoever names it, for an agent without memory too, gets
            it back.
        explore: Act as while training, with the global random numbers; otherwise greedily.
        mask: Allowed actions, as the environment's `info["action_mask"]`, `[A]` or `[B, A]`.

    Returns:
        An action of the action space, NumPy's, `[...]`, or `[B, ...]` for a batch; with `state=`
        the pair of it and the memory after this step.

    Raises:
        ConfigurationError: If `obs`, `mask` or `state` has another shape than it must have, if
            `obs` holds NaN or infinity where the policy looks, or if there is a memory and nobody
            keeps it.
    """
    batch, count = as_batch(agent.spec.observation_space, obs)
    rows = 1 if count is None else count
    with EvalMode(agent), torch.no_grad():
        before = _memory(agent, state, rows, explore)
        x = agent.preprocess(batch)
        if not is_finite(x):  # every comparison with NaN is false: an action would come of it
            raise ConfigurationError(
                f"obs: {shortened(obs, 80)} holds NaN or infinity, of which no action can come"
            )
        out = agent.act(
            x,
            explore=explore,
            state=before,
            mask=None if mask is None else _mask(agent, mask, count),
        )
    action: Any = action_writer(agent.spec.action_space)(out["action"])
    if count is None:
        action = action[0]
    return action if state is NOT_GIVEN else (action, out.get("next_state", before))


def _memory(agent: Any, state: Any, rows: int, explore: bool) -> Tensor | None:
    fresh = agent.initial_state(rows)
    if state is NOT_GIVEN:
        if fresh is not None and (explore or agent.policy.state_dim):
            raise ConfigurationError(
                f"state: this {type(agent).__name__} remembers earlier steps; at an episode's "
                "beginning call predict(obs, state=None), then with the state it returned"
            )
        return None
    if state is None:
        return fresh
    wanted = None if fresh is None else list(fresh.shape)
    if wanted is None or not isinstance(state, Tensor) or list(state.shape) != wanted:
        given = f"of shape {list(state.shape)}" if isinstance(state, Tensor) else repr(state)
        raise ConfigurationError(
            f"state: {given} does not fit these observations; it must be None"
            + ("" if wanted is None else f", or what predict returned, of shape {wanted}")
        )
    return state.to(agent.device)


def _mask(agent: Any, mask: Any, count: int | None) -> Tensor | None:
    rows = [mask] if count is None else list(mask)
    reported = np.empty(len(rows), object)  # row by row: a row may be a tuple of parts
    for i, row in enumerate(rows):
        reported[i] = row
    try:
        allowed = agent.read_mask({"action_mask": reported})
    except (ConfigurationError, ValueError):
        allowed = None
    if allowed is None or len(allowed) != (count or 1):
        width = agent.policy.mask_dim
        wanted = [width] if count is None else [count, width]
        raise ConfigurationError(
            f"mask: {mask!r:.80} is not what these observations need; "
            + (f"give a mask of shape {wanted}" if width else "this policy takes no masks")
        )
    return allowed
