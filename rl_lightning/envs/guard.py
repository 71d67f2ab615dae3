"""What an environment in a process of its own is wrapped in."""

from typing import Any

import gymnasium as gym

from rl_lightning.core.errors import RunError
from rl_lightning.envs.conform import MisfitError, explained, five, flag, make_rows, number, two
from rl_lightning.envs.infos import kept


class Guard(gym.Wrapper):
    """Refuses what the space does not hold, and copies final observations.

    What `LeanSyncVectorEnv` does as it goes along: Gymnasium's worker would broadcast, would send a
    final observation after the reset that may have overwritten it, and would end without a word
    with `SystemExit`. For reading and setting attributes it is not there.

    Args:
        env: Environment.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._rows = make_rows(env.observation_space, 1)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        try:
            obs, info = two(self.env.reset(seed=seed, options=options))
            return self._rows.copy_of(obs), kept(info)
        except (MisfitError, SystemExit) as error:
            raise self._failed("reset", error) from None

    def step(self, action: Any) -> Any:
        self._steps += 1
        try:
            obs, reward, terminated, truncated, info = five(self.env.step(action))
            return (
                self._rows.copy_of(obs),
                number(reward),
                flag(terminated, "terminated"),
                flag(truncated, "truncated"),
                kept(info),
            )
        except (MisfitError, SystemExit) as error:
            raise self._failed(f"step {self._steps}", error) from None

    def get_wrapper_attr(self, name: str) -> Any:
        return self.env.get_wrapper_attr(name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        return self.env.set_wrapper_attr(name, value, force=force)

    def _failed(self, when: str, error: BaseException) -> RunError:
        name = repr(self.spec.id) if self.spec else "environment"
        return RunError(f"{name}, in a process of its own, at {when}: {explained(error)}")
