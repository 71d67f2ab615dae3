"""Where texts stand in observations, and what a frozen language model makes of them."""

import re
import string
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import gymnasium as gym
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, check_one_of, shortened, whole
from rl_lightning.core.remembered import Remembered
from rl_lightning.core.sharing import shared
from rl_lightning.core.spaces import is_text
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm import Backbone, Dtype, Pooling, TextCache, embed


class Entry:
    """One entry of an observation, or the whole of one that has none.

    Args:
        spec: The environment's spaces.
        name: Of an entry of a Dict, or the number of one of a Tuple; None: the whole observation.
        argument: What messages call `name`.

    Raises:
        ConfigurationError: If there is no such entry.
    """

    def __init__(self, spec: EnvSpec, name: str | None, argument: str = "entry") -> None:
        space = spec.observation_space
        entries = _entries(space)
        self.key: Any = name
        if name is not None and name not in entries:
            there = f"it has {', '.join(map(repr, entries))}" if entries else "it has none"
            raise ConfigurationError(
                f"data.rewards: {argument}: no entry {name!r} in observations of {spec.id}; {there}"
            )
        self.space = space if name is None else entries[name]
        if name is not None and isinstance(space, gym.spaces.Tuple):
            self.key = int(name)

    def __call__(self, obs: Any) -> Any:
        """Of observations `[B, ...]`, the entry's column."""
        return obs if self.key is None else obs[self.key]


def text_entry(
    spec: EnvSpec,
    name: str | None,
    owner: str,
    argument: str = "entry",
    besides: Collection[str | None] = (),
) -> Entry:
    """Where the text of an observation stands.

    Args:
        spec: The environment's spaces.
        name: The entry; None: the observation itself, or the one text in it.
        owner: Who reads it, for messages.
        argument: What messages call `name`.
        besides: Entries that are no answer to None.

    Raises:
        ConfigurationError: If there is no such entry or it is no text.
    """
    space = spec.observation_space
    if name is None and not is_text(space):
        entries = _entries(space)
        texts = [n for n, part in entries.items() if is_text(part) and n not in besides]
        if len(texts) != 1:
            hint = (
                f"name one of them, {argument}: {texts[0]}"
                if texts
                else "wrap the environment in Describe, which puts observations into words"
            )
            raise ConfigurationError(
                f"data.rewards: {owner} reads one text, and observations of {spec.id} hold "
                f"{len(texts) or 'no'} ({shortened(space)}): {hint}"
            )
        name = texts[0]
    entry = Entry(spec, name, argument)
    if not is_text(entry.space):
        raise ConfigurationError(
            f"data.rewards: {owner} reads text, but the entry {name!r} of {spec.id} is "
            f"{shortened(entry.space)}"
        )
    return entry


def _entries(space: gym.Space) -> dict[str, gym.Space]:
    if isinstance(space, gym.spaces.Dict):
        return dict(space.spaces)
    if isinstance(space, gym.spaces.Tuple):
        return {str(i): part for i, part in enumerate(space.spaces)}
    return {}


def template_fields(
    argument: str, template: str, allowed: Sequence[str] | None, needed: Sequence[str] = ()
) -> set[str]:
    """The fields in braces of a text that `str.format` fills.

    Args:
        argument: What messages call it.
        template: The text.
        allowed: Fields there are; None: any of one word.
        needed: Those of them that must be there.

    Raises:
        ConfigurationError: If it is no such text, or if there are other fields, or needed ones are
            missing.
    """
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"data.rewards: {argument}={shortened(repr(template), 80)}: {error}; a brace by itself "
            "is doubled"
        ) from None
    if allowed is None:
        allowed = sorted({*needed, *filter(str.isidentifier, fields)})
    if not fields <= set(allowed) or not fields >= set(needed):
        must = " and ".join(f"{{{name}}}" for name in needed)
        may = " and ".join(f"{{{name}}}" for name in allowed if name not in needed)
        rules = [f"must hold {must}"] * bool(must) + [f"may hold {may}"] * bool(may)
        raise ConfigurationError(
            f"data.rewards: {argument} {', '.join([*rules, 'and nothing else in braces'])}; not "
            f"{shortened(repr(template), 80)}"
        )
    return fields


_BETWEEN = re.compile(r"(?<=[.!?])\s+|\s*\n\s*")


def parts_of(texts: Sequence[str], sentences: bool) -> tuple[list[str], Tensor]:
    """The sentences of texts, or the texts as they are, and whose they are, int64 `[P]`.

    Every text has one part at least; a sentence ends with a mark and a space, or with the line.
    """
    parts = [_BETWEEN.split(text.strip()) if sentences else [text] for text in texts]
    sizes = torch.tensor([len(own) for own in parts], dtype=torch.long)
    owner = torch.arange(len(parts)).repeat_interleave(sizes)
    return [one for own in parts for one in own], owner


def likest(like: Tensor, owner: Tensor, count: int) -> Tensor:
    """The largest of each text's parts, `[P, ...]` → `[count, ...]`."""
    index = owner.view(-1, *[1] * (like.ndim - 1)).expand_as(like)
    out = like.new_full((count, *like.shape[1:]), -torch.inf)
    return out.scatter_reduce(0, index, like, "amax")


class TextEmbedder:
    """Texts → vectors of length 1 by a frozen language model, each text once.

    Args:
        model: Hub name, folder or installed weights package.
        pooling: See `rl_lightning.llm.pool`.
        layers: Transformer layers to keep; None keeps all.
        dtype: Of the weights.
        max_length: Most tokens of a text; longer ones are cut, with a warning.
        batch_size: Texts it reads at a time.
        cache_size: Most texts remembered.

    Raises:
        ConfigurationError: If there is no such model, or if an argument makes no sense.
    """

    def __init__(
        self,
        model: str,
        pooling: Pooling = "mean",
        layers: int | None = None,
        dtype: Dtype = "float32",
        max_length: int = 128,
        batch_size: int = 64,
        cache_size: int = 100_000,
    ) -> None:
        check_one_of("data.rewards: pooling", pooling, get_args(Pooling))
        whole("data.rewards: max_length", max_length, 1)
        self.batch_size = whole("data.rewards: batch_size", batch_size, 1)
        whole("data.rewards: cache_size", cache_size, 0)
        self.pooling: Pooling = pooling
        self.backbone = Backbone(model, layers=layers, dtype=dtype, max_length=max_length).eval()
        self.dim = self.backbone.hidden_size
        self.cache = TextCache(cache_size, self.dim, max_bytes=1_000_000_000)
        self.device = torch.device("cpu")
        self.spoken_for = False

    @classmethod
    def make(cls, *args: Any) -> tuple["TextEmbedder", bool]:
        """An embedder with these arguments, all of them, and whether to speak for it: of rewards
        that read with the same one, the first saves what it remembers."""
        made = shared((cls, args), lambda: cls(*args))
        first, made.spoken_for = not made.spoken_for, True
        return made, first

    def to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self.device = device
        self.backbone.to(device)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """B texts → `[B, D]`, float32, of length 1, on the CPU."""
        return self.cache.get(texts, self._embed)

    def _embed(self, texts: list[str]) -> Tensor:
        return embed(
            self.backbone,
            texts,
            self.device,
            pooling=self.pooling,
            normalize=True,
            batch_size=self.batch_size,
        )

    def metrics(self) -> dict[str, float]:
        """The share of texts since the last call that needed no model."""
        cache = self.cache
        out = {"cache_hit_rate": cache.hits / cache.lookups} if cache.lookups else {}
        cache.hits = cache.lookups = 0
        return out

    def state_dict(self) -> dict[str, Any]:
        """The remembered vectors: with them a resumed run is bit for bit the uninterrupted one."""
        return {
            "fingerprint": self._fingerprint(),
            "remembered": self.cache.state(),
            "hits": self.cache.hits,
            "lookups": self.cache.lookups,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; one of another model is refused, with a warning."""
        cache = self.cache
        cache.clear()
        problem = None
        if state["fingerprint"] != self._fingerprint():
            problem = "belong to another model, or to other layers, dtype, pooling or max_length"
        else:
            try:
                keys, rows, _ = Remembered.of(state["remembered"])
                cache.load_state(keys, rows)
                cache.hits, cache.lookups = state["hits"], state["lookups"]
            except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
                cache.clear()
                problem = f"are damaged ({error})"
        if problem is not None:
            warnings.warn(
                f"data.rewards: the remembered texts of the checkpoint {problem}: starting with "
                "none",
                stacklevel=2,
            )

    def _fingerprint(self) -> str:
        parts = [self.backbone.digest(), self.backbone.source["dtype"], self.pooling]
        return " ".join([*parts, self.backbone.tokens.fingerprint()])
