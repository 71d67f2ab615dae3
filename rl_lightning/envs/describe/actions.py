"""What discrete actions of known environments are called in words."""

from collections.abc import Sequence

import gymnasium as gym

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs.wrappers import SelectActions

_NAMES: dict[str, tuple[str, ...]] = {
    "TextMaze-": ("north", "east", "south", "west"),
    "CartPole-": ("push left", "push right"),
    "MountainCar-": ("push left", "do nothing", "push right"),
    "Acrobot-": ("push left", "do nothing", "push right"),
    "LunarLander-": ("do nothing", "fire left", "fire up", "fire right"),
    "FrozenLake": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "Taxi-": ("south", "north", "east", "west", "pick up", "drop off"),
    "Blackjack-": ("stick", "hit"),
    "MiniGrid-": ("turn left", "turn right", "go forward", "pick up", "drop", "toggle", "done"),
    "BabyAI-": ("turn left", "turn right", "go forward", "pick up", "drop", "toggle", "done"),
}


def register_action_names(id_or_prefix: str, names: Sequence[str]) -> None:
    """Let language models know what an environment's discrete actions are called.

    Args:
        id_or_prefix: Gymnasium id, or how ids begin. The longest match wins.
        names: One for each action, in the order of the actions.

    Raises:
        ConfigurationError: If there is nothing in one of the two.
    """
    if not isinstance(id_or_prefix, str) or not id_or_prefix:
        raise ConfigurationError(
            f"id_or_prefix={id_or_prefix!r}: expected an environment id or its start"
        )
    texts = tuple(names) if not isinstance(names, str) else ()
    if not texts or not all(isinstance(name, str) and name.strip() for name in texts):
        raise ConfigurationError(f"names={names!r}: expected a text for each action")
    _NAMES[id_or_prefix] = texts


def action_names(env_id: str, count: int) -> tuple[str, ...] | None:
    """What the `count` actions of an environment are called; None if nobody said."""
    name = env_id.rpartition(":")[2]
    known = [key for key in _NAMES if name.startswith(key)]
    found = _NAMES[max(known, key=len)] if known else None
    return found if found is not None and len(found) == count else None


def names_of(env: gym.Env, env_id: str | None = None) -> tuple[str, ...] | None:
    """What the actions of an environment with its wrappers are called; None if nobody said.

    Names are of the environment's own actions, of which `SelectActions` offers some; or else of as
    many as there are outside.

    Args:
        env: With its wrappers.
        env_id: Its id; None: as its specification says.
    """
    env_id = env_id or (env.spec.id if env.spec is not None else None)
    if env_id is None:
        return None
    layers = []
    while isinstance(env, gym.Wrapper):
        layers.append(env)
        env = env.env
    names = action_names(env_id, _count(env))
    for layer in reversed(layers):
        if isinstance(layer, SelectActions) and names is not None:
            names = tuple(names[place] for place in layer.places)
    outside = _count(layers[0] if layers else env)
    fits = names is not None and len(names) == outside
    return names if fits else action_names(env_id, outside)


def _count(env: gym.Env) -> int:
    space = env.action_space
    return int(space.n) if isinstance(space, gym.spaces.Discrete) else 0
