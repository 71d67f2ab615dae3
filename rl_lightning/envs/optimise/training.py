"""Training small networks by themselves, and judging them."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, check_range, whole, whole_seed
from rl_lightning.envs.optimise.sentences import SentenceReader

LOSS_LIMIT = 10.0
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

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


def accuracy_of(logits: Tensor, y: Tensor) -> float:
    """Share of rows whose largest logit is their class; 0 for logits that are not finite."""
    right = (logits.argmax(1) == y) & logits.isfinite().all(1)
    return right.sum().item() / len(y)


@torch.no_grad()
def accuracy_and_loss(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """`scores_of` a network's logits of rows `[N, ...]` and their classes `[N]`."""
    return scores_of(network(x), y)


def scores_of(logits: Tensor, y: Tensor) -> dict[str, float]:
    """`accuracy`, and `loss`: cross-entropy, `limited`.

    Args:
        logits: `[N, C]`.
        y: Classes `[N]`.
    """
    return {"accuracy": accuracy_of(logits, y), "loss": limited(F.cross_entropy(logits, y))}


def limited(nats: Tensor) -> float:
    """A loss or a divergence, at most `LOSS_LIMIT`, which is also that of no number: a pruned or
    quantised network may be wrong with any confidence."""
    return min(nats.item(), LOSS_LIMIT) if bool(nats.isfinite()) else LOSS_LIMIT


def train(
    network: nn.Module, x: Tensor, y: Tensor, recipe: Recipe | None = None, seed: int = 0
) -> float:
    """Train a network in place by AdamW with a cosine schedule: all of it that has `requires_grad`.

    Of a BatchNorm whose own parameters are frozen, statistics are frozen, too. Torch's global
    generator is afterwards as before.

    Args:
        network: Logits of inputs.
        x: `[N, ...]`. With BatchNorm, a last batch of one row joins the batch before it.
        y: Classes `[N]`.
        recipe: How; None is `Recipe()`.
        seed: Of the order of rows.

    Returns:
        The mean loss of the last pass.

    Raises:
        ConfigurationError: If the recipe is impossible, if there is one row only for BatchNorm, or
            if nothing that learns takes part in the logits.
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
        for layer in network.modules():
            own = list(layer.parameters(recurse=False))
            if isinstance(layer, _BATCH_NORMS) and own and not any(p.requires_grad for p in own):
                layer.eval()
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay)
        done = 0
        for _ in range(recipe.epochs):
            losses = []
            order = torch.randperm(len(x), generator=generator)
            for rows in batches(order, size, joined):
                cosine = 0.5 * (1 + math.cos(math.pi * done / updates))
                optimizer.param_groups[0]["lr"] = recipe.lr * cosine
                try:
                    logits = network(x[rows])
                except ValueError as error:
                    if joined and len(rows) == 1:
                        raise ConfigurationError(_ONE_ROW.format(error)) from error
                    raise
                loss = F.cross_entropy(logits, y[rows])
                if not loss.requires_grad:
                    raise ConfigurationError(
                        "the network cannot be trained: none of its parameters that learn takes "
                        "part in what it computes"
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                done += 1
        network.eval()
    return sum(losses) / len(losses)


def train_on(network: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> None:
    """Train what was trained before, see `train` and, of a sentence model, `train_head`."""
    if isinstance(network, SentenceReader):
        train_head(network, x, y, recipe, seed=0, learned=True)
    else:
        train(network, x, y, recipe)


def train_head(
    reader: SentenceReader, x: Tensor, y: Tensor, recipe: Recipe, seed: int, learned: bool = False
) -> None:
    """Train what answers for a sentence model, on what that makes of each row, read once.

    Args:
        reader: Its transformer stays as it is.
        x: `[N, L + 1]`.
        y: Classes `[N]`.
        recipe: How.
        seed: Of the order of rows.
        learned: Whether the head has learned before, and goes on from there.
    """
    with by_itself():
        features, mean, deviation = reader.stretched(x)
        if learned:
            reader.release(mean, deviation)
        train(reader.head, features, y, recipe, seed)
        reader.absorb(mean, deviation)


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
    return any(isinstance(layer, _BATCH_NORMS) for layer in network.modules())


def checked(recipe: Recipe) -> Recipe:
    """A recipe whose numbers are possible.

    Raises:
        ConfigurationError: That names the one that is not.
    """
    check_range("lr", recipe.lr, 0.0)
    check_range("weight_decay", recipe.weight_decay, 0.0)
    size = None if recipe.batch_size is None else whole("batch_size", recipe.batch_size, 1)
    return replace(recipe, epochs=whole("epochs", recipe.epochs, 1), batch_size=size)
