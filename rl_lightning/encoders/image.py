"""Images: uint8 in storage, `[0, 1]` floats only inside the network."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.nn.conv import impala_trunk, minatar_trunk, nature_trunk


class ImageEncoder(Encoder):
    """What the image encoders share: layout, uint8 storage, scaling.

    Reads uint8 Boxes laid out as `[H, W, C]`, `[C, H, W]`, `[H, W]`, and stacks of frames of any of
    those, such as `[S, H, W, C]`: the smaller of an image's outer axes is taken for the channels,
    and a stack's frames become channels.

    Raises:
        ConfigurationError: If the observation space is no uint8 image.
    """

    trunk: nn.Module

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        space = spec.observation_space
        name = type(self).__name__
        if not (
            isinstance(space, gym.spaces.Box)
            and space.dtype == np.uint8
            and len(space.shape) in (2, 3, 4)
        ):
            raise ConfigurationError(
                f"{name} cannot read {shortened(space)}: it needs a uint8 Box of 2 to 4 axes; use "
                "MLPEncoder for vectors, or an image wrapper (AtariPreprocessing, "
                "ResizeObservation)"
            )
        shape = list(space.shape)
        stack = shape.pop(0) if len(shape) == 4 else 1
        self.channels_last = len(shape) == 3 and shape[2] < shape[0]
        if self.channels_last:
            height, width, channels = shape
        else:
            channels, height, width = [1, *shape][-3:]
        self.image_shape = (stack * channels, height, width)

    def preprocess(self, obs: Any) -> Tensor:
        """uint8 array `[B, ...]` → uint8 `[B, C, H, W]`."""
        x = torch.as_tensor(obs)
        if self.channels_last:
            x = x.movedim(-1, -3)
        return x.reshape(x.shape[0], *self.image_shape)

    def forward(self, x: Tensor) -> Tensor:
        # Pixel by pixel in memory, convolutions take two thirds to four fifths of a CPU's time.
        pixels = x.to(torch.float32, memory_format=torch.channels_last)
        return self.trunk(pixels * (1.0 / 255.0))


class NatureCNN(ImageEncoder):
    """The DQN network (Mnih et al. 2015); images of at least 36×36.

    Args:
        spec: Its observation space is a uint8 image.
        features: `out_dim`.
    """

    def __init__(self, spec: EnvSpec, features: int = 512) -> None:
        super().__init__(spec)
        self.trunk = nature_trunk(self.image_shape, features)
        self.out_dim = features


class ImpalaCNN(ImageEncoder):
    """The residual network of IMPALA (Espeholt et al. 2018); any image size.

    Args:
        spec: Its observation space is a uint8 image.
        features: `out_dim`.
        channels: Channels of each residual stage.
    """

    def __init__(
        self, spec: EnvSpec, features: int = 256, channels: Sequence[int] = (16, 32, 32)
    ) -> None:
        super().__init__(spec)
        self.trunk = impala_trunk(self.image_shape, features, channels)
        self.out_dim = features


class MinAtarCNN(ImageEncoder):
    """The network of MinAtar (Young & Tian 2019) for tiny images, of at least 3×3.

    Args:
        spec: Its observation space is a uint8 image; `BinaryImage` makes MinAtar's one.
        features: `out_dim`.
        channels: Channels of the convolution.
    """

    def __init__(self, spec: EnvSpec, features: int = 128, channels: int = 16) -> None:
        super().__init__(spec)
        self.trunk = minatar_trunk(self.image_shape, features, channels)
        self.out_dim = features
