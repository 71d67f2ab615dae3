"""Small networks to be trained, pruned, quantised and tuned: built by name, trained once."""

import contextlib
import hashlib
import inspect
import json
import math
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import nn

from rl_lightning.core.cache_folder import cache_folder
from rl_lightning.core.errors import ConfigurationError, whole, whole_seed
from rl_lightning.envs.optimise.data import Splits, load_data
from rl_lightning.envs.optimise.own_network import named_network, own_network
from rl_lightning.envs.optimise.sentences import SentenceReader, sentence_reader
from rl_lightning.envs.optimise.training import Recipe, by_itself, checked, train, train_head

MODELS = ("mlp", "cnn", "minilm")
VERSION = 2  # of what `train` does; another one has cached networks trained again


def build_target(
    model: str,
    in_shape: Sequence[int],
    classes: int,
    width: int = 32,
    depth: int = 2,
    seed: int = 0,
) -> nn.Module:
    """A network from inputs `[N, *in_shape]` to logits `[N, classes]`, float32.

    `mlp` has `depth` hidden layers of `width` units; `cnn` has `depth` 3×3 convolutions of `width`
    channels, every second followed by 2×2 max-pooling as long as images are 4 pixels wide, then the
    mean over pixels and a linear layer. Activations are ReLU. Hidden weights are drawn from U(−b,
    b) with b = √(6 / fan_in) (He et al. 2015, equation 10), so that deep networks train, those of
    the last layer with b = 1 / √fan_in; biases are 0. The generator is their own. `minilm` is the
    pretrained sentence model with `depth` of its six layers, and `width` hidden units that answer
    for it, see `SentenceReader`.

    Anything with a dot is an import path of the user's own: a function or class that is called as
    `(in_shape, classes, width, depth)` and returns a module. It is made under a seeded copy of
    torch's global generator, which is as before afterwards.

    Args:
        model: One of `MODELS`, or an import path.
        in_shape: Shape of one input; `cnn` needs `[C, H, W]`.
        classes: Number of classes.
        width: Units or channels of a hidden layer.
        depth: Hidden layers.
        seed: Of the initial parameters.

    Raises:
        ConfigurationError: If there is no such model, or it does not fit the data.
    """
    width, depth = whole("width", width, 1), whole("depth", depth, 0)
    seed = whole_seed("seed", seed)
    in_shape = tuple(in_shape)
    with by_itself():
        if model == "minilm":
            return sentence_reader(in_shape, classes, width, depth, seed)
        if model in MODELS:
            with torch.device("meta"):  # PyTorch's own drawing would move the global generator
                build = _mlp if model == "mlp" else _cnn
                made = build(in_shape, classes, width, depth)
            made = made.to(torch.float32).to_empty(device="cpu")
            _draw(made, torch.Generator().manual_seed(seed))
            return made
        if not isinstance(model, str) or "." not in model:
            raise ConfigurationError(
                f"model={model!r}: use one of {', '.join(MODELS)}, or the import path of your own, "
                "package.module.name"
            )
        return own_network(model, in_shape, classes, width, depth, seed)


def _mlp(in_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()] if len(in_shape) > 1 else []
    size = math.prod(in_shape)
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, classes))


def _cnn(in_shape: tuple[int, ...], classes: int, width: int, depth: int) -> nn.Module:
    if len(in_shape) != 3:
        raise ConfigurationError(
            f"model='cnn' needs images [C, H, W], not inputs of the shape {list(in_shape)}; use "
            "data='digits-images', or model='mlp'"
        )
    layers: list[nn.Module] = []
    channels, side = in_shape[0], min(in_shape[1:])
    for i in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        if i % 2 and side >= 4:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


@torch.no_grad()
def _draw(network: nn.Module, generator: torch.Generator) -> None:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer in layers:
        gain = 1.0 if layer is layers[-1] else 6.0
        bound = math.sqrt(gain / layer.weight[0].numel())
        for parameter in layer.parameters():
            if parameter.dim() > 1:
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()


def trained_target(
    model: str,
    data: str,
    width: int = 32,
    depth: int = 2,
    split: int = 0,
    seed: int = 0,
    recipe: Recipe | None = None,
) -> tuple[nn.Module, Splits]:
    """A trained network and the data it was trained on.

    The first call trains it (a second or two on digits); later ones, in other processes too, read
    its weights from `cache_folder("targets")`, from a safetensors file named by the digest of all
    that decides them: data, network, initial parameters, recipe, source of the user's own model,
    version of torch.

    Args:
        model: See `build_target`.
        data: See `load_data`.
        width: Units or channels of a hidden layer.
        depth: Hidden layers.
        split: Seed of the division of the data.
        seed: Of initial parameters and order of rows.
        recipe: How it is trained; None is `Recipe()`.

    Returns:
        A module of the caller's own, in eval mode, and the data.

    Raises:
        ConfigurationError: See `build_target`, `load_data` and `train`.
    """
    from safetensors.torch import load_file, save_file

    recipe = checked(recipe or Recipe())
    splits = load_data(data, split)
    network = build_target(model, splits.in_shape, splits.classes, width, depth, seed)
    name = _digest(model, network, splits, recipe, seed)
    path = cache_folder("targets") / f"{name}.safetensors"
    # Not there, or damaged: then it is trained again.
    with contextlib.suppress(OSError, ValueError, RuntimeError, KeyError, _safetensor_error()):
        network.load_state_dict(load_file(path))
        return network.eval(), splits
    if isinstance(network, SentenceReader):
        train_head(network, splits.x_train, splits.y_train, recipe, seed)
    else:
        train(network, splits.x_train, splits.y_train, recipe, seed)
    with contextlib.suppress(OSError):  # no room: then it is trained again another time
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{name}.{uuid.uuid4().hex}.part")
        # Copies, since the file format refuses tensors that share their memory.
        state = network.state_dict().items()
        save_file({k: v.clone(memory_format=torch.contiguous_format) for k, v in state}, part)
        os.replace(part, path)
    return network, splits


def _digest(model: str, network: nn.Module, splits: Splits, recipe: Recipe, seed: int) -> str:
    found = hashlib.sha256(json.dumps([VERSION, torch.__version__, seed, asdict(recipe)]).encode())
    found.update(f"{model} {network} {splits.digest()}".encode())
    for name, value in network.state_dict().items():
        found.update(name.encode() + value.contiguous().numpy().tobytes())
    if model not in MODELS:
        made = named_network(model)
        with contextlib.suppress(OSError, TypeError):  # without a source nothing tells them apart
            found.update(inspect.getsource(inspect.getmodule(type(network)) or made).encode())
            found.update(inspect.getsource(made).encode())
    return found.hexdigest()[:32]


def _safetensor_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError
