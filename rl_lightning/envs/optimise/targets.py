"""Small networks to be trained, pruned, quantised and tuned: built by name, trained once."""

import contextlib
import hashlib
import inspect
import json
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.core.cache_folder import cache_folder
from rl_lightning.core.errors import ConfigurationError, check_range, whole, whole_seed
from rl_lightning.envs.optimise.data import Splits, load_data
from rl_lightning.envs.optimise.own_network import named_network, own_network
from rl_lightning.envs.optimise.sentences import SentenceReader, sentence_reader

MODELS = ("mlp", "cnn", "minilm")
LOSS_LIMIT = 10.0
VERSION = 1  # of what `train` does; another one has cached networks trained again

_ONE_ROW = (
    "BatchNorm cannot be trained on one row at a time: give two training rows and a batch_size of "
    "2 or more, or use LayerNorm or GroupNorm in its place ({})"
)


@dataclass(frozen=True)
class Recipe:
    """How a target is trained.

    Attributes:
        epochs: Passes over the training part.
        batch_size: Rows of an update; None is all of them.
        lr: Adam's learning rate, decayed to 0 by a cosine.
        weight_decay: Decoupled, as in AdamW.
    """

    epochs: int = 30
    batch_size: int | None = 64
    lr: float = 3e-3
    weight_decay: float = 1e-4


@contextlib.contextmanager
def by_itself() -> Iterator[None]:
    """Compute with gradients, without autocast and on one thread, whatever the caller has set.

    Environments are stepped without gradients and under the trainer's precision, in processes with
    more threads or fewer, and sums over threads differ in their last bits; what happens in them
    must not depend on any of that. Networks as small as these are no faster on several threads.
    """
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)


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


def accuracy_of(logits: Tensor, y: Tensor) -> float:
    """Share of rows whose largest logit is their class; 0 for logits that are not finite."""
    right = (logits.argmax(1) == y) & logits.isfinite().all(1)
    return right.sum().item() / len(y)


@torch.no_grad()
def accuracy_and_loss(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """`accuracy`, and `loss`: cross-entropy, at most `LOSS_LIMIT`, which is also that of no number.

    A pruned or quantised network may be wrong with any confidence.
    """
    logits = network(x)
    loss = F.cross_entropy(logits, y).item()
    told = min(loss, LOSS_LIMIT) if math.isfinite(loss) else LOSS_LIMIT
    return {"accuracy": accuracy_of(logits, y), "loss": told}


def train(
    network: nn.Module, x: Tensor, y: Tensor, recipe: Recipe | None = None, seed: int = 0
) -> float:
    """Train a network in place by AdamW with a cosine schedule.

    Torch's global generator is afterwards as before.

    Args:
        network: Logits of inputs.
        x: `[N, ...]`. With BatchNorm, a last batch of one row joins the batch before it.
        y: Classes `[N]`.
        recipe: How; None is `Recipe()`.
        seed: Of the order of rows.

    Returns:
        The mean loss of the last pass.

    Raises:
        ConfigurationError: If the recipe is impossible, or there is one row only for BatchNorm.
    """
    recipe = checked(recipe or Recipe())
    size = min(recipe.batch_size or len(x), len(x))
    generator = torch.Generator().manual_seed(whole_seed("seed", seed))
    joined = _normalises_batches(network)
    updates = recipe.epochs * len(batches(torch.arange(len(x)), size, joined))
    losses: list[float] = []
    with by_itself(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for dropout in a network of the user's own
        network.train()
        learner, scale = network, None
        if isinstance(network, SentenceReader) and network.frozen:
            learner, (x, *scale) = network.head, network.stretched(x)
        parameters = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay)
        done = 0
        for _ in range(recipe.epochs):
            losses = []
            order = torch.randperm(len(x), generator=generator)
            for rows in batches(order, size, joined):
                cosine = 0.5 * (1 + math.cos(math.pi * done / updates))
                optimizer.param_groups[0]["lr"] = recipe.lr * cosine
                try:
                    logits = learner(x[rows])
                except ValueError as error:
                    if joined and len(rows) == 1:
                        raise ConfigurationError(_ONE_ROW.format(error)) from error
                    raise
                loss = F.cross_entropy(logits, y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                done += 1
        if scale is not None and isinstance(network, SentenceReader):
            network.absorb(*scale)
        network.eval()
    return sum(losses) / len(losses)


def batches(order: Tensor, size: int, joined: bool) -> list[Tensor]:
    """Rows `[N]` in batches of one size, the last of which may be smaller.

    Args:
        order: The rows.
        size: Of a batch.
        joined: Whether a last row that would be left alone joins the batch before it, as
            statistics of a batch need two.
    """
    parts = list(order.split(size))
    if joined and len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _normalises_batches(network: nn.Module) -> bool:
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    return any(isinstance(layer, kinds) for layer in network.modules())


def checked(recipe: Recipe) -> Recipe:
    """A recipe whose numbers are possible.

    Raises:
        ConfigurationError: That names the one that is not.
    """
    check_range("lr", recipe.lr, 0.0)
    check_range("weight_decay", recipe.weight_decay, 0.0)
    size = None if recipe.batch_size is None else whole("batch_size", recipe.batch_size, 1)
    return replace(recipe, epochs=whole("epochs", recipe.epochs, 1), batch_size=size)


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
