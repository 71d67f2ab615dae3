"""From a checkpoint to an agent."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import instantiate_module

from rl_lightning.core.errors import ConfigurationError, RunError
from rl_lightning.core.names import public_path
from rl_lightning.core.signatures import signature_of
from rl_lightning.core.trust import loading_stranger
from rl_lightning.envs.failures import told
from rl_lightning.hyperparameters import check_described, check_hyperparameters, stored_class


def build_agent(
    cls: Any,
    checkpoint: Mapping[str, Any],
    strict: bool | None,
    trusted: Sequence[str],
    kwargs: Mapping[str, Any],
) -> Any:
    """An agent with the arguments and weights of a checkpoint.

    Args:
        cls: What it must be.
        checkpoint: As `read_checkpoint` returns it.
        strict: See `torch.nn.Module.load_state_dict`; None: the agent's `strict_loading`.
        trusted: Packages whose classes the checkpoint may name.
        kwargs: Arguments in the place of the checkpoint's.

    Raises:
        ConfigurationError: If the checkpoint holds another kind of agent, names what it may not, or
            if its weights do not fit.
    """
    hyper = checkpoint.get("hyper_parameters") or {}
    if "_class_path" not in hyper and cls.__name__ in ("Agent", "ReplayAgent"):
        raise ConfigurationError("the checkpoint does not say what agent it holds: name its class")
    with loading_stranger(trusted):
        made = stored_class(hyper, cls)
        given = {k: v for k, v in check_hyperparameters(hyper).items() if k not in kwargs}
        check_described(given)
        known = signature_of(made).parameters
        if unknown := [k for k in kwargs if k not in known]:
            raise ConfigurationError(
                f"{made.__name__} has no argument {unknown[0]!r}; it has "
                f"{', '.join(k for k in known if k != 'self')}"
            )
        try:
            agent: Any = instantiate_module(
                made, {"_class_path": public_path(made), **given, **kwargs}
            )
        except Exception as error:  # jsonargparse's, or that of whatever was to be built
            for reason in _behind(error):
                if isinstance(reason, ConfigurationError | RunError):
                    raise type(reason)(str(reason)) from error
            raise ConfigurationError(
                f"the checkpoint's arguments make no {made.__name__}: {told(error)}"
            ) from error
    agent.on_load_checkpoint(checkpoint)
    load_weights(agent, checkpoint["state_dict"], strict)
    device = next((t.device for t in checkpoint["state_dict"].values() if torch.is_tensor(t)), None)
    return agent if device is None else agent.to(device)


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came of, each once."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def check_kind(agent: L.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another algorithm, whose weights may fit by chance.

    A class derived from the agent's, or that it is derived from, is the same; so is one of the same
    name, which has moved to another module.

    Raises:
        ConfigurationError: That names both.
    """
    path = str((checkpoint.get("hyper_parameters") or {}).get("_class_path") or "")
    module, _, name = path.rpartition(".")
    if not name or name in (cls.__name__ for cls in type(agent).__mro__):
        return
    stored = getattr(sys.modules.get(module), name, None)
    if isinstance(stored, type) and issubclass(stored, type(agent)):
        return
    raise ConfigurationError(
        f"the checkpoint holds a {name}, and this agent is {type(agent).__name__}: give that "
        "model, or another checkpoint"
    )


def load_weights(agent: L.LightningModule, weights: Mapping[str, Any], strict: bool | None) -> None:
    """Load a state_dict.

    Raises:
        ConfigurationError: If it is one of another network.
    """
    try:
        agent.load_state_dict(weights, strict=agent.strict_loading if strict is None else strict)
    except RuntimeError as error:
        raise ConfigurationError(
            f"the checkpoint's weights do not fit this {type(agent).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
