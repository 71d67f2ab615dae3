"""Networks as functions of one vector of all their parameters.

A vector is plain data: an environment that holds one can be saved in the middle of a training.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.envs.optimise.targets import build_target
from rl_lightning.envs.optimise.training import accuracy_of, by_itself


class FlatNetwork:
    """A module as a function of one vector of all its parameters.

    Args:
        network: It is taken over, and is in eval mode from now on.

    Attributes:
        vector: The parameters, one after the other, float32 `[P]`: change them in place.
        gradient: Of the last `backward`, `[P]`.
        sizes: Numbers of each parameter tensor, in that order.
        trained: Which numbers may change, bool `[P]`: not those of parameters without gradients.

    Raises:
        ConfigurationError: If it has buffers that a forward pass could change: they would be no
            part of the vector.
    """

    def __init__(self, network: nn.Module) -> None:
        buffers = [name for name, _ in network.named_buffers()]
        if buffers:
            raise ConfigurationError(
                f"a network that is trained inside an environment must have parameters only, and "
                f"this one has buffers ({shortened(', '.join(buffers))}): use LayerNorm or "
                "GroupNorm in the place of BatchNorm"
            )
        self.network = network.eval()
        parameters = list(network.parameters())
        self.sizes = [p.numel() for p in parameters]
        self.vector = torch.cat([p.detach().flatten() for p in parameters])
        self.gradient = torch.zeros_like(self.vector)
        self.trained = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in parameters])
        self._frozen = None if bool(self.trained.all()) else ~self.trained
        views = zip(self.vector.split(self.sizes), self.gradient.split(self.sizes), strict=True)
        for parameter, (values, gradient) in zip(parameters, views, strict=True):
            parameter.data = values.view(parameter.shape)
            parameter.grad = gradient.view(parameter.shape)

    def load(self, vector: np.ndarray) -> None:
        """Take over the parameters of a vector `[P]`."""
        self.vector.copy_(torch.from_numpy(vector))

    def update(self, velocity: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        """One update by SGD, after `backward`, of what may change.

        Args:
            velocity: Running sum of gradients `[P]`, changed in place.
            lr: Learning rate.
            momentum: What stays of the velocity.
            weight_decay: Added to the gradient, as a share of the parameters.
        """
        velocity.mul_(momentum).add_(self.gradient)
        velocity.add_(self.vector, alpha=weight_decay)
        if self._frozen is not None:
            velocity[self._frozen] = 0.0
        self.vector.sub_(velocity, alpha=lr)

    def backward(self, x: Tensor, y: Tensor) -> float:
        """Mean cross-entropy of a batch, and its gradient into `gradient`."""
        self.gradient.zero_()
        loss = F.cross_entropy(self.network(x), y)
        loss.backward()
        return loss.item()

    def judge(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy."""
        with torch.no_grad():
            logits = self.network(x)
            return F.cross_entropy(logits, y).item(), accuracy_of(logits, y)


@lru_cache(maxsize=64)
def flat_target(
    model: str, in_shape: tuple[int, ...], classes: int, width: int, depth: int
) -> FlatNetwork:
    """The workbench of all networks of one shape: whoever uses it loads its vector first."""
    with by_itself():
        return FlatNetwork(build_target(model, in_shape, classes, width, depth))


def initial_vector(
    model: str, in_shape: tuple[int, ...], classes: int, width: int, depth: int, seed: int
) -> np.ndarray:
    """Initial parameters of `build_target`, float32 `[P]`."""
    made = build_target(model, in_shape, classes, width, depth, seed)
    return torch.cat([p.detach().flatten() for p in made.parameters()]).numpy()
