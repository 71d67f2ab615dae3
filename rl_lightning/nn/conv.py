"""Convolutional trunks for images in `[0, 1]`, channels first."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.nn.mlp import orthogonal_


def nature_trunk(shape: tuple[int, int, int], out_dim: int) -> nn.Sequential:
    """The network of Mnih et al. (2015): three convolutions and one linear layer.

    Args:
        shape: C, H, W; H and W at least 36.
        out_dim: Features.

    Raises:
        ConfigurationError: If the image is too small for its strides.
    """
    channels, height, width = shape
    if min(height, width) < 36:
        raise ConfigurationError(
            f"NatureCNN needs images of at least 36×36 pixels, not {height}×{width}; "
            "use ImpalaCNN or MLPEncoder for small images"
        )
    convolutions = nn.Sequential(
        orthogonal_(nn.Conv2d(channels, 32, 8, stride=4)),
        nn.ReLU(),
        orthogonal_(nn.Conv2d(32, 64, 4, stride=2)),
        nn.ReLU(),
        orthogonal_(nn.Conv2d(64, 64, 3, stride=1)),
        nn.ReLU(),
        nn.Flatten(),
    )
    return nn.Sequential(
        *convolutions, orthogonal_(nn.Linear(_flat_size(convolutions, shape), out_dim)), nn.ReLU()
    )


def impala_trunk(
    shape: tuple[int, int, int], out_dim: int, channels: Sequence[int] = (16, 32, 32)
) -> nn.Sequential:
    """The residual network of Espeholt et al. (2018, figure 3, right): any image size.

    Args:
        shape: C, H, W.
        out_dim: Features.
        channels: Channels of each residual stage; every stage halves the image.
    """
    stages: list[nn.Module] = []
    in_channels = shape[0]
    for width in channels:
        stages += [
            nn.Conv2d(in_channels, width, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            _Residual(width),
            _Residual(width),
        ]
        in_channels = width
    trunk = nn.Sequential(*stages, nn.ReLU(), nn.Flatten())
    return nn.Sequential(
        *trunk, orthogonal_(nn.Linear(_flat_size(trunk, shape), out_dim)), nn.ReLU()
    )


def minatar_trunk(shape: tuple[int, int, int], out_dim: int, channels: int = 16) -> nn.Sequential:
    """The network of Young & Tian (2019): one 3×3 convolution and one linear layer.

    Args:
        shape: C, H, W; H and W at least 3.
        out_dim: Features.
        channels: Channels of the convolution.

    Raises:
        ConfigurationError: If the image is smaller than the convolution's kernel.
    """
    in_channels, height, width = shape
    if min(height, width) < 3:
        raise ConfigurationError(
            f"MinAtarCNN needs images of at least 3×3 pixels, not {height}×{width}; "
            "use ImpalaCNN or MLPEncoder for smaller ones"
        )
    flat = channels * (height - 2) * (width - 2)
    return nn.Sequential(
        orthogonal_(nn.Conv2d(in_channels, channels, 3)),
        nn.ReLU(),
        nn.Flatten(),
        orthogonal_(nn.Linear(flat, out_dim)),
        nn.ReLU(),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def _flat_size(trunk: nn.Module, shape: tuple[int, int, int]) -> int:
    with torch.no_grad():
        return int(trunk(torch.zeros(1, *shape)).shape[1])
