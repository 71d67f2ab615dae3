"""The vocabulary every layer shares.

Shape legend, used in every docstring and trailing comment:

    T  steps of a rollout          B  parallel environments
    N  rows of a batch             D  features of an encoder
    A  action dimensions / logits  L  tokens, or steps of a recurrent sequence
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.core.charset import PRINTABLE

# What `Encoder.preprocess` returns and storage holds: a tensor, or a nested mapping of tensors.
Stored = Tensor | Mapping[str, Any]


SPACES = ("observation_space", "action_space")


class EnvSpec:
    """What an agent must know of its environment: the two *single* (unbatched) spaces and its id.

    A plain class on purpose: jsonargparse re-parses dataclasses, and
    `torch.load(weights_only=True)` restores a plain class whose state is plain data. Spaces travel
    as plain data (`space_to_data`), so that a checkpoint never unpickles a third-party space.

    Args:
        observation_space: Space of one observation of one environment.
        action_space: Space of one action of one environment.
        id: Gymnasium id, for messages only.
        action_names: What its discrete actions are called in words, for language models that choose
            among them; None where nobody says.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        id: str = "environment",
        action_names: Sequence[str] | None = None,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.id = id
        self.action_names = None if action_names is None else tuple(action_names)
        self._described: tuple[gym.Space, gym.Space, dict[str, Any]] | None = None

    def with_observation_space(self, space: gym.Space) -> "EnvSpec":
        """The same environment seen through `space`, e.g. one entry of a `Dict`."""
        return EnvSpec(space, self.action_space, self.id, self.action_names)

    def __getstate__(self) -> dict[str, Any]:
        # Kept: on the way to another process, tensors must live until that has started.
        spaces, known = (self.observation_space, self.action_space), self._described
        if known is None or known[0] is not spaces[0] or known[1] is not spaces[1]:
            known = self._described = (
                *spaces,
                {name: space_to_data(getattr(self, name)) for name in SPACES},
            )
        named = {} if self.action_names is None else {"action_names": list(self.action_names)}
        return {**known[2], "id": self.id, **named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.observation_space = space_from_data(state["observation_space"])
        self.action_space = space_from_data(state["action_space"])
        self.id = state["id"]
        names = state.get("action_names")  # of a newer version
        self.action_names = None if names is None else tuple(map(str, names))
        self._described = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EnvSpec) and all(
            # Of each what a checkpoint keeps: an agent's spec is the same before and after.
            space_from_data(space_to_data(own)) == space_from_data(space_to_data(others))
            for own, others in (
                (self.observation_space, other.observation_space),
                (self.action_space, other.action_space),
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"EnvSpec({self.id!r}, {self.observation_space}, {self.action_space})"


EnvSpec.__module__ = "rl_lightning"  # as checkpoints name it, wherever it is defined
torch.serialization.add_safe_globals([EnvSpec, (EnvSpec, "rl_lightning.types.EnvSpec")])


@dataclass
class Rollout:
    """One on-policy rollout, as the collector hands it to `Agent.prepare`.

    Attributes:
        steps: TensorDict `[T, B]` with `obs`, `reward` (float32), `terminated`, `truncated` (bool)
            and every key the agent's `act` returned; `action_mask` and `valid` only where the
            environment has them. `valid` is False on steps that a NEXT_STEP vector env spent on
            a reset.
        last_obs: Preprocessed observation after the last step, `[B, ...]`.
        last_mask: Action mask that belongs to `last_obs`, bool `[B, A]`, or None.
        last_state: Recurrent state that belongs to `last_obs`, `[B, H]`, or None.
        final_obs: Preprocessed final observations of the truncated episodes, `[F, ...]`, or None.
        final_index: Their `(t, b)` positions, two int64 tensors `[F]`.
        final_mask: Action masks that belong to `final_obs`, bool `[F, A]`, or None.
        final_state: Recurrent state that belongs to `final_obs`, `[F, H]`, or None.
    """

    steps: TensorDict
    last_obs: Stored
    last_state: Tensor | None = None
    final_obs: Stored | None = None
    final_index: tuple[Tensor, Tensor] | None = None
    final_state: Tensor | None = None
    last_mask: Tensor | None = None
    final_mask: Tensor | None = None


class OpaqueSpace(gym.Space):
    """Stands in a checkpoint for a space of a third party's class, which plain data cannot rebuild.

    It has no elements. An encoder that ignores such an entry loads and acts as before; one that
    reads it is given the environment's own space with `load_from_checkpoint(path, spec=...)`.

    Args:
        name: Name of its class.
        text: What it says of itself.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(None, None)
        self.name = name
        self.text = text

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        raise NotImplementedError(f"{self} is known by its name only, so it has no samples")

    def contains(self, x: Any) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpaqueSpace) and (self.name, self.text) == (other.name, other.text)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return self.text


def space_to_data(space: gym.Space) -> dict[str, Any]:
    """Describe a Gymnasium space by plain data and tensors (the inverse of `space_from_data`).

    What is no space of Gymnasium's comes back as an `OpaqueSpace`.
    """
    s = gym.spaces
    if isinstance(space, s.Box):
        return {
            "kind": "Box",
            "low": torch.from_numpy(space.low.copy()),
            "high": torch.from_numpy(space.high.copy()),
            "dtype": np.dtype(space.dtype).name,
        }
    if isinstance(space, s.Discrete):
        return {
            "kind": "Discrete",
            "n": int(space.n),
            "start": int(space.start),
            "dtype": np.dtype(space.dtype).name,
        }
    if isinstance(space, s.MultiDiscrete):
        return {
            "kind": "MultiDiscrete",
            "nvec": torch.from_numpy(np.asarray(space.nvec, dtype=np.int64)),
            "start": torch.from_numpy(np.asarray(space.start, dtype=np.int64)),
            "dtype": np.dtype(space.dtype).name,
        }
    if isinstance(space, s.MultiBinary):
        return {"kind": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, s.Text):
        return {
            "kind": "Text",
            "min_length": int(space.min_length),
            "max_length": int(space.max_length),
            "charset": "".join(space.character_list),
        }
    if isinstance(space, s.Dict):
        return {"kind": "Dict", "spaces": {k: space_to_data(v) for k, v in space.items()}}
    if isinstance(space, s.Tuple):
        return {"kind": "Tuple", "spaces": [space_to_data(v) for v in space]}
    if type(space).__name__ == "MissionSpace":  # minigrid's instructions: text by another name
        return {"kind": "Text", "min_length": 0, "max_length": 1024, "charset": PRINTABLE}
    if isinstance(space, s.Sequence):
        inner = space_to_data(space.feature_space)
        return {"kind": "Sequence", "space": inner, "stack": bool(space.stack)}
    if isinstance(space, s.Graph):
        edges = None if space.edge_space is None else space_to_data(space.edge_space)
        return {"kind": "Graph", "nodes": space_to_data(space.node_space), "edges": edges}
    if isinstance(space, s.OneOf):
        return {"kind": "OneOf", "spaces": [space_to_data(v) for v in space]}
    if isinstance(space, OpaqueSpace):
        return {"kind": "Opaque", "name": space.name, "text": space.text}
    name = type(space).__name__
    silent = type(space).__repr__ is object.__repr__  # it would say where it lies in memory
    return {"kind": "Opaque", "name": name, "text": f"{name}()" if silent else repr(space)}


def space_from_data(data: Mapping[str, Any]) -> gym.Space:
    """Rebuild the Gymnasium space that `space_to_data` described."""
    s = gym.spaces
    match data["kind"]:
        case "Box":
            low, high = data["low"].numpy(), data["high"].numpy()
            return s.Box(low, high, dtype=np.dtype(data["dtype"]).type)
        case "Discrete":
            dtype = np.dtype(data.get("dtype", "int64"))
            return s.Discrete(data["n"], start=data["start"], dtype=dtype)
        case "MultiDiscrete":
            dtype = np.dtype(data.get("dtype", "int64"))
            nvec, start = data["nvec"].numpy().astype(dtype), data["start"].numpy().astype(dtype)
            return s.MultiDiscrete(nvec, dtype=dtype.type, start=start)
        case "MultiBinary":
            return s.MultiBinary(data["shape"])
        case "Text":
            return s.Text(
                data["max_length"], min_length=data["min_length"], charset=data["charset"]
            )
        case "Dict":
            return s.Dict({k: space_from_data(v) for k, v in data["spaces"].items()})
        case "Tuple":
            return s.Tuple([space_from_data(v) for v in data["spaces"]])
        case "Sequence":
            return s.Sequence(space_from_data(data["space"]), stack=data["stack"])
        case "Graph":
            edges: Any = None if data["edges"] is None else space_from_data(data["edges"])
            nodes: Any = space_from_data(data["nodes"])
            return s.Graph(nodes, edges)
        case "OneOf":
            return s.OneOf([space_from_data(v) for v in data["spaces"]])
        case "Opaque":
            return OpaqueSpace(data["name"], data["text"])
        case kind:
            raise ValueError(f"unknown kind of space: {kind!r}")
