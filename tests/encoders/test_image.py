"""Image encoders: layouts, scaling, sizes."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from rl_lightning import ImpalaCNN, NatureCNN
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders import MinAtarCNN

KINDS = [NatureCNN, ImpalaCNN, MinAtarCNN]


def build(kind, shape, **kwargs):
    space = gym.spaces.Box(0, 255, shape, np.uint8)
    return kind(EnvSpec(space, gym.spaces.Discrete(2)), **kwargs)


def image(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, *shape), np.uint8)


# Shape of one observation → what the network sees of observation 1 at the last frame's channel c,
# row i, column j.
LAYOUTS = {
    (40, 50, 3): ((3, 40, 50), lambda o, c, i, j: o[i, j, c]),
    (3, 40, 50): ((3, 40, 50), lambda o, c, i, j: o[c, i, j]),
    (40, 50): ((1, 40, 50), lambda o, c, i, j: o[i, j]),
    (4, 40, 50): ((4, 40, 50), lambda o, c, i, j: o[c, i, j]),
    (40, 50, 1): ((1, 40, 50), lambda o, c, i, j: o[i, j, 0]),
    (2, 40, 50, 3): ((6, 40, 50), lambda o, c, i, j: o[c // 3, i, j, c % 3]),
    (2, 3, 40, 50): ((6, 40, 50), lambda o, c, i, j: o[c // 3, c % 3, i, j]),
    (4, 40, 50, 1): ((4, 40, 50), lambda o, c, i, j: o[c, i, j, 0]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", LAYOUTS)
def test_layouts(kind, shape):
    expected, pixel = LAYOUTS[shape]
    encoder = build(kind, shape, features=8)
    obs = image(shape)
    x = encoder.preprocess(obs)
    assert x.dtype == torch.uint8
    assert x.shape == (2, *expected)
    for c, i, j in [(0, 0, 0), (expected[0] - 1, 39, 49), (0, 7, 31)]:
        assert x[1, c, i, j] == pixel(obs[1], c, i, j)
    assert encoder(x).shape == (2, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_sees_pixels_between_zero_and_one(kind):
    encoder = build(kind, (40, 40, 3))
    seen = []
    encoder.trunk.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(encoder.preprocess(np.full((1, 40, 40, 3), 255, np.uint8)))
    encoder(encoder.preprocess(np.full((1, 40, 40, 3), 51, np.uint8)))
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], torch.ones(1, 3, 40, 40))
    torch.testing.assert_close(seen[1], torch.full((1, 3, 40, 40), 0.2))


@pytest.mark.parametrize(
    ("kind", "default"), [(NatureCNN, 512), (ImpalaCNN, 256), (MinAtarCNN, 128)]
)
def test_features(kind, default):
    assert build(kind, (40, 40, 1)).out_dim == default
    encoder = build(kind, (40, 40, 1), features=7)
    assert encoder.out_dim == encoder(encoder.preprocess(image((40, 40, 1)))).shape[1] == 7


@pytest.mark.parametrize("channels", [(4,), (4, 6, 8, 10)])
def test_channels_are_the_widths_of_the_residual_stages(channels):
    encoder = build(ImpalaCNN, (8, 8, 3), channels=channels)
    first = [m for m in encoder.trunk if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in first] == list(channels)


def test_nature_has_the_convolutions_of_the_paper():
    convolutions = [m for m in build(NatureCNN, (84, 84, 4)).trunk if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in convolutions] == [
        (32, 8, 4),
        (64, 4, 2),
        (64, 3, 1),
    ]


def test_minatar_has_the_layers_of_the_paper():
    trunk = build(MinAtarCNN, (10, 10, 4)).trunk
    assert [type(m) for m in trunk] == [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear, nn.ReLU]
    convolution, linear = trunk[0], trunk[3]
    assert (convolution.in_channels, convolution.out_channels) == (4, 16)
    assert (convolution.kernel_size, convolution.stride) == ((3, 3), (1, 1))
    assert (linear.in_features, linear.out_features) == (16 * 8 * 8, 128)
    assert build(MinAtarCNN, (10, 10, 4), channels=5).trunk[0].out_channels == 5


@pytest.mark.parametrize("shape", [(1, 9), (9, 2)])
def test_minatar_needs_three_pixels_either_way(shape):
    size = rf"at least 3×3 pixels, not {shape[0]}×{shape[1]}"
    with pytest.raises(ValueError, match=f"{size}.*ImpalaCNN"):
        build(MinAtarCNN, shape)
    encoder = build(MinAtarCNN, (3, 3))
    assert encoder(encoder.preprocess(image((3, 3)))).shape == (2, 128)


@pytest.mark.parametrize("size", [1, 5, 35])
def test_nature_needs_36_pixels_and_impala_does_not(size):
    with pytest.raises(ValueError, match=rf"at least 36×36 pixels, not {size}×{size}.*ImpalaCNN"):
        build(NatureCNN, (size, size))
    build(NatureCNN, (36, 36))
    encoder = build(ImpalaCNN, (size, size))
    assert encoder(encoder.preprocess(image((size, size)))).shape == (2, 256)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(0, 1, (40, 40, 3), np.float32),
        gym.spaces.Box(0, 255, (40,), np.uint8),
        gym.spaces.Box(0, 255, (2, 2, 40, 40, 3), np.uint8),
        gym.spaces.Discrete(3),
    ],
)
def test_what_is_no_uint8_image_is_refused(kind, space):
    with pytest.raises(ValueError, match=rf"{kind.__name__} cannot read .* uint8 Box of 2 to 4"):
        kind(EnvSpec(space, gym.spaces.Discrete(2)))
