"""What an optimizer is given: parameters in groups of one learning rate each."""

from typing import Any

from torch import nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.encoders.encoder import Encoder


def group_parameters(
    agent: nn.Module, encoder: nn.Module, encoder_lr: float | None
) -> list[dict[str, Any]]:
    """All that is trained in one group, or what lies in encoders in a second one.

    Args:
        agent: Whose parameters.
        encoder: The actor's; a critic or a target may have an encoder of its own.
        encoder_lr: Learning rate of the encoders' parameters; None: the optimizer's.

    Raises:
        ConfigurationError: For an `encoder_lr` where nothing in encoders is trained.
    """
    trained = [p for p in agent.parameters() if p.requires_grad]
    if encoder_lr is None:
        return [{"params": trained}]
    encoders = [encoder, *(m for m in agent.modules() if isinstance(m, Encoder))]
    inside = {id(p) for encoder in encoders for p in encoder.parameters()}
    own = [p for p in trained if id(p) in inside]
    rest = [p for p in trained if id(p) not in inside]
    if not own:
        raise ConfigurationError(
            f"model.encoder_lr: {encoder_lr} means nothing, because nothing in "
            f"{type(encoder).__name__} is trained; leave it out"
        )
    return [{"params": rest}, {"params": own, "lr": encoder_lr}]
