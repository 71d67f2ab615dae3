"""What encoders of texts have in common: a language model, and what it has read already."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.remembered import Remembered
from rl_lightning.core.sharing import shared
from rl_lightning.core.types import Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.kept_rows import KeptRows
from rl_lightning.llm import Backbone, TextCache, Tokens
from rl_lightning.llm.chunks import MOST_PADDING, like_lengths
from rl_lightning.nn.norm import RunningMoments, RunningNorm


class ReadingEncoder(Encoder):
    """A language model that reads texts, and remembers them.

    A text becomes one row: of a frozen model what it made of the text, of a tuned one the text's
    tokens. A subclass says what stands in a row (`_read_frozen`, `_tokenize`), how it is stored
    (`_stored`), and which part of that are features.

    Args:
        backbone: The model.
        frozen_width: Numbers of a frozen model's row.
        token_width: Of a tuned one's.
        batch_size: Texts the frozen model reads at a time.
        standardize: See `LLMEncoder`.
        cache_size: Most texts remembered.
        cache_bytes: Most memory for them.
        rules: All that decides what a frozen row is, beside the model: encoders with equal ones
            have one cache.
        keep_on_disk: Whether a frozen model's rows are kept for other runs, see `KeptRows`.

    Raises:
        ConfigurationError: If an argument makes no sense.
    """

    frozen: bool
    cache: TextCache
    norm: RunningNorm | None

    def __init__(
        self,
        backbone: Backbone,
        *,
        frozen_width: int,
        token_width: int,
        batch_size: int,
        standardize: bool,
        cache_size: int,
        cache_bytes: int,
        rules: tuple[Any, ...],
        keep_on_disk: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}: give 1 or more")
        self.backbone = backbone
        self.frozen = backbone.tune == "frozen"
        if keep_on_disk and not (self.frozen and backbone.reloadable):
            raise ConfigurationError(
                "keep_on_disk: true keeps what a pretrained, frozen model says, and this one "
                f"{'has random weights' if self.frozen else 'is tuned'}; leave it out"
            )
        self.keep_on_disk = keep_on_disk
        self._kept: KeptRows | None = None
        self.batch_size = batch_size
        self.out_dim = backbone.hidden_size
        self.norm = RunningNorm(self.out_dim) if standardize else None
        # What a tuned model's first rollout says; `norm` takes it over when the second begins.
        self._first = RunningMoments(self.out_dim) if standardize and not self.frozen else None
        self._gathering = False  # asked of the statistics once a rollout, not at every step
        self._observed: tuple[Any, Stored | None] = (None, None)
        own = (
            TextCache(cache_size, frozen_width, max_bytes=cache_bytes)
            if self.frozen
            else TextCache(cache_size, token_width, torch.int32, max_bytes=cache_bytes)
        )
        self.cache = own
        if self.frozen and backbone.reloadable:
            model_here = id(backbone.model)  # kept alive by what shares it
            size = (cache_size, cache_bytes, batch_size)
            self.cache = shared((TextCache, model_here, rules, size), lambda: own)
        self._speaks = self.cache is own  # one of those who share it counts and saves it
        self.register_load_state_dict_post_hook(_forget_rows)
        self.register_buffer("_here", torch.zeros(1), persistent=False)  # knows the device

    @property
    def device(self) -> torch.device:
        return self._here.device  # type: ignore[return-value]

    # --- what a subclass says -----------------------------------------------------------------

    def _texts(self, obs: Any) -> Sequence[str]:
        """What is read of raw observations, one text each: equal ones are read once."""
        raise NotImplementedError

    def _read_frozen(self, texts: list[str]) -> Tensor:
        """What a frozen model makes of texts, float32 `[M, frozen_width]`."""
        raise NotImplementedError

    def _tokenize(self, texts: list[str]) -> Tensor:
        """Tokens of texts, int32 `[M, token_width]`."""
        raise NotImplementedError

    def _stored(self, rows: Tensor) -> Stored:
        """What storage keeps of rows of the cache."""
        raise NotImplementedError

    def _features_in(self, stored: Any) -> Tensor:
        """Features, `[N, D]`, in what `_stored` gave of a frozen model."""
        raise NotImplementedError

    def _with_features(self, stored: Any, features: Tensor) -> Any:
        """The same, with other features."""
        raise NotImplementedError

    def _read(self, x: Any) -> Tensor:
        """Features, `[N, D]`, of what `_stored` gave of a tuned model: it reads now."""
        raise NotImplementedError

    def _rows(self, texts: list[str]) -> Tensor:
        """`_read_frozen`, of what no run has kept."""
        if not self.keep_on_disk:
            return self._read_frozen(texts)
        if self._kept is None:
            splits = self.backbone.tokens.split_special_tokens
            self._kept = KeptRows(f"{self._fingerprint()} {splits}", self.cache.width)
        return self._kept.get(texts, self._read_frozen)

    # --- observations -------------------------------------------------------------------------

    def preprocess(self, obs: Any) -> Stored:
        return self.standardized(self.preprocess_raw(obs))

    def preprocess_raw(self, obs: Any) -> Stored:
        if self.frozen:
            seen, stored = self._observed
            if stored is None or seen is not obs:
                stored = self._stored(self.cache.get(self._texts(obs), self._rows))
            return stored
        return self._stored(self.cache.get(self._texts(obs), self._tokenize))

    def standardized(self, x: Any) -> Any:
        # A tuned model's vectors exist in `forward` only, and are standardised there.
        if not self.frozen or self.norm is None:
            return x
        return self._with_features(x, self.norm(self._features_in(x)))

    def repeats(self) -> bool | Mapping[str, Any]:
        return True

    def observe(self, obs: Any) -> None:
        if self.norm is None:
            return
        if self.frozen:
            stored = self._stored(self.cache.get(self._texts(obs), self._rows))
            self.norm.update(self._features_in(stored))
            self._observed = (obs, stored)  # `preprocess` is asked for the same texts next
        elif self._first is not None and self._gathering:
            self._first.update(self._read(self.preprocess(obs)).detach())

    def forget(self) -> None:
        """Told that the model's weights were changed: what it said before is void."""
        self._observed = (None, None)
        if self.frozen:
            self.cache.clear()

    def begin_rollout(self) -> None:
        self.cache.hits = self.cache.lookups = 0  # evaluation has counted too
        if self._first is not None and self.norm is not None and not self.norm.running.count:
            self.norm.running.moments.copy_(self._first.moments)
            self._gathering = not self.norm.running.count

    def synchronize(self) -> None:
        if self._first is not None:
            self._first.synchronize()
        elif self.norm is not None:
            self.norm.synchronize()

    def forward(self, x: Any) -> Tensor:
        """Features `[N, out_dim]` of what `preprocess` returned, or of a TensorDict of it."""
        if self.frozen:
            return self._features_in(x)
        features = self._read(x)
        return features if self.norm is None else self.norm(features)

    def chunks(self, lengths: Sequence[int]) -> Any:
        """The indices of texts to be read together, see `rl_lightning.llm.chunks.like_lengths`."""
        # Elsewhere than on a CPU, beginning a chunk costs more than some padding.
        padding = MOST_PADDING if self.device.type == "cpu" else 1.0
        return like_lengths(lengths, self.batch_size, padding)

    # --- what it remembers --------------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """Since the last call: the share of texts that needed no model, and the texts remembered.

        A text that occurs twice in one batch needs the model once: the second counts as a hit. Of
        encoders that share a cache, one speaks for all.
        """
        if not self.frozen or not self._speaks:
            return {}
        out = {"llm/cache_size": float(len(self.cache))}
        if self.cache.lookups:
            out["llm/cache_hit_rate"] = self.cache.hits / self.cache.lookups
        self.cache.hits = self.cache.lookups = 0
        return out

    def collection_state(self) -> dict[str, Any]:
        """The remembered rows: with them a resumed run is bit for bit the uninterrupted one."""
        if not self.frozen or not self._speaks:
            return {}
        return {
            "fingerprint": self._fingerprint(),
            "split_special_tokens": self.backbone.tokens.split_special_tokens,
            "remembered": self.cache.state(),
            "hits": self.cache.hits,
            "lookups": self.cache.lookups,
        }

    def load_collection_state(self, state: Mapping[str, Any]) -> None:
        """Restore `collection_state`; one of another model is refused, with a warning."""
        if not self.frozen or not state:
            return
        if not self._speaks:
            # Of a time when it had a cache of its own: the run goes on with that, bit for bit.
            cache = self.cache
            self.cache = TextCache(cache.capacity, cache.width, max_bytes=cache.max_bytes)
            self._speaks = True
        self.cache.clear()
        if state["fingerprint"] != self._fingerprint():
            warnings.warn(
                "the saved embedding cache belongs to another model, or to other "
                f"{self._decided_by}: starting with an empty one",
                stacklevel=2,
            )
            return
        try:
            texts, rows, _ = Remembered.of(state.get("remembered") or _former(state))
            tokens, splits = self.backbone.tokens, state.get("split_special_tokens", False)
            if splits != tokens.split_special_tokens:
                # Of a digest nobody knows whether there were control tokens in its text.
                same = [i for i, text in enumerate(texts) if _is_plain(text, tokens)]
                texts, rows = [texts[i] for i in same], rows[same]
            self.cache.load_state(texts, rows)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            self.cache.clear()
            told = f"the saved embedding cache is damaged ({error}): starting with an empty one"
            warnings.warn(told, stacklevel=2)
            return
        self.cache.hits, self.cache.lookups = state["hits"], state["lookups"]

    _decided_by = "arguments"
    """Which arguments decide what a row is, for messages."""

    def _fingerprint(self) -> str:
        """All that decides what a frozen model's row is."""
        raise NotImplementedError


def _former(state: Mapping[str, Any]) -> dict[str, Any]:  # of an earlier version
    return {"keys": state["texts"], "rows": state["vectors"]}


def _is_plain(text: str | bytes, tokens: Tokens) -> bool:
    return isinstance(text, str) and not tokens.has_control_token(text)


def _forget_rows(encoder: nn.Module, incompatible: Any) -> None:
    """A random model's weights come with the checkpoint: what older weights said is void."""
    assert isinstance(encoder, ReadingEncoder)
    if not encoder.backbone.reloadable:
        encoder.forget()
