"""An agent's networks, built from its argument, and whether they are of the kind that it needs."""

from collections.abc import Callable, Sequence
from typing import Any

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec


def build(
    agent: str,
    network: Callable[..., Any],
    spec: EnvSpec,
    encoder: Callable[[EnvSpec], Any],
    *,
    needs: Sequence[str],
    instead: str,
    **switches: Any,
) -> Any:
    """Call `network(spec, encoder, **switches)`, and refuse what the agent can do nothing with.

    Args:
        agent: Whose name stands in messages.
        network: The argument; built by the command line or by `partial`, it takes further keywords.
        spec: The environment's spaces.
        encoder: Builds the encoder.
        needs: Attributes that the agent asks of it.
        instead: What to give instead, as the end of a sentence.
        **switches: What the agent decides about its networks.

    Raises:
        ConfigurationError: If it takes no such switch, or has no such attribute.
    """
    try:
        policy = network(spec, encoder, **switches)
    except TypeError as wrong:
        unknown = [name for name in switches if f"keyword argument '{name}'" in str(wrong)]
        if not unknown:
            raise
        raise ConfigurationError(
            f"model.network: {agent} makes its networks by `{unknown[0]}`, which this one does not "
            f"take: give {instead}"
        ) from None
    missing = [name for name in needs if not hasattr(policy, name)]
    if missing:
        raise ConfigurationError(
            f"model.network: {agent} needs {_listed(missing)}, and {type(policy).__name__} has "
            f"none: give {instead}"
        )
    return policy


def _listed(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)
