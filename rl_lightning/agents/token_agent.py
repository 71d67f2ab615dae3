"""The base of agents whose actions are tokens: a language model, and a loss over what it wrote.

Shapes: P prompts of a batch, G completions of each, L tokens of a prompt, T of a completion.
"""

from functools import partial
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from tensordict import TensorDict
from torch import Tensor

from rl_lightning.agents import answering
from rl_lightning.agents.agent import Agent
from rl_lightning.agents.collapse import CollapseModule
from rl_lightning.agents.evaluated_completions import EvaluatedCompletions
from rl_lightning.agents.policy_loss import sampler_gap
from rl_lightning.agents.reading import ReadingModule
from rl_lightning.agents.token_batches import mean_over_ranks
from rl_lightning.core.errors import ConfigurationError, check_range, whole
from rl_lightning.core.loss import Loss
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.load import Dtype
from rl_lightning.llm.reading import Method
from rl_lightning.llm.tune import Tune

# AdamW as its users know it, but without decay: adapters begin at zero and are pulled nowhere.
adamw = partial(torch.optim.AdamW, lr=1e-5, weight_decay=0.0, fused=True)


class TokenAgent(EvaluatedCompletions, CollapseModule, ReadingModule, Agent):
    """A language model that is tuned by what its completions are worth.

    A subclass implements `advantages` and `loss`. What it is given is a TensorDict `[P]`, one row a
    prompt with its group of completions, as `rl_lightning.data.PromptDataModule` makes them:

    - `prompt` int32 `[P, L]` right-padded, `prompt_length` int64 `[P]`
    - `ids` int32 `[P, G, T]` right-padded, `length` int64 `[P, G]`
    - `own`, bool `[P, G, T]`: tokens that the model chose. Not so padding, and what an environment
      wrote in between
    - `said`, float32 `[P, G, T]`: log-probabilities of own tokens when they were sampled
    - `reward` float32 `[P, G]`, `temperature` float32 `[P]`
    - `token_reward` float32 `[P, G, T]`, of environments of several turns alone: what was paid for
      a turn, at its last own token; its sum is `reward`

    Args:
        spec: Of texts to texts.
        model: Hub name, folder or weights package of a causal language model, see
            `rl_lightning.llm.find_model`.
        tune: `lora`, whose reference model is the one without adapters, or `full`, whose reference
            is a frozen copy.
        layers: Transformer layers to keep; None keeps all.
        dtype: Of the weights.
        max_length: Most tokens of prompt and completion together; None: as many as the model reads,
            or 2,048 where that has no limit.
        lora_rank: Rank of the adapters.
        lora_alpha: Their output is scaled by `lora_alpha / lora_rank`.
        lora_targets: Layers that get one; None for all linear ones.
        gradient_checkpointing: Recompute layers in the backward pass: less memory, a third slower.
        pretrained: False starts from random weights.
        config_overrides: Their sizes, see `rl_lightning.llm.load.load_backbone`.
        trust_remote_code: See there.
        reading: How a group is read in updates: `packed`, one row a group, in which the prompt
            stands once; `cached`, over the prompt's keys and values; `rows`, one row a completion;
            `auto`, what costs least. See `read_completions`.
        chunk: Positions whose logits are float32 at the same time.
        max_grad_norm: Largest norm of all gradients together; None: `trainer.gradient_clip_val`.
        gamma: Discount γ; a subclass says of what.
        kl_coef: β, weight of the KL to the reference model; 0 needs none.
        **shared: Arguments of `Agent`.

    Raises:
        ConfigurationError: If an argument is wrong, or the model is none that goes on with texts.
    """

    learns_from = ("completions",)
    monitored = ("val/reward", "max")
    """What makes a checkpoint the best one, where a configuration says nothing else."""
    reuses_rollouts = True
    default_optimizer: OptimizerCallable = staticmethod(adamw)
    smallest_group = 1
    """Completions of each prompt that it needs."""
    min_reward: float | None = None
    """Reward from which it learns from a completion; None: whatever it is."""
    remedies = (
        "Lower the learning rate, clip gradients (model.max_grad_norm: 1.0), or keep weights in "
        "more digits (model.dtype: float32)"
    )
    compares = True
    """Whether the loss compares the policy with the one that wrote."""

    def __init__(
        self,
        spec: EnvSpec,
        model: str,
        *,
        tune: Tune = "lora",
        layers: int | None = None,
        dtype: Dtype = "float32",
        max_length: int | None = None,
        lora_rank: int = 16,
        lora_alpha: int = 32,
        lora_targets: list[str] | None = None,
        gradient_checkpointing: bool = False,
        pretrained: bool = True,
        config_overrides: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        reading: Method = "auto",
        chunk: int = 1024,
        max_grad_norm: float | None = None,
        gamma: float = 1.0,
        kl_coef: float = 0.0,
        **shared: Any,
    ) -> None:
        super().__init__(spec, encoder_lr=None, gamma=gamma, **shared)
        check_range("model.kl_coef", kl_coef, 0.0)
        self.kl_coef = kl_coef
        if tune == "frozen":
            raise ConfigurationError(
                "model.tune: frozen, so that nothing would be learned; give lora or full"
            )
        if tune == "full" and dtype != "float32":
            rank_zero_warn(
                f"model.dtype: {dtype} with model.tune: full: at usual learning rates most weights "
                "never move, as an update is less than half of their last digit"
                + (", and float16 soon ends in nan" if dtype == "float16" else "")
                + "; give model.dtype: float32 and trainer.precision: bf16-mixed, or tune: lora"
            )
        check_range("max_grad_norm", max_grad_norm, 1e-12)
        self.max_grad_norm = max_grad_norm
        self.reading: Method = reading
        self.chunk = whole("model.chunk", chunk, 1)
        self._model = partial(
            Backbone,
            model,
            layers=layers,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            max_length=16,  # of single texts, which nobody reads here
            head=True,
        )
        self.backbone = self._model(
            tune=tune,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            gradient_checkpointing=gradient_checkpointing,
            pretrained=pretrained,
            config_overrides=config_overrides,
        )
        if self.backbone.encoder_decoder:
            raise ConfigurationError(
                f"model.model: {model} reads by one half and writes by the other: give a causal "
                "language model, such as a Llama, Qwen or GPT-2"
            )
        limit = self.backbone.positions
        wanted = limit or 2048 if max_length is None else whole("model.max_length", max_length, 2)
        if limit is not None and wanted > limit:
            raise ConfigurationError(
                f"model.max_length: {wanted} is more than the {limit} tokens the model reads"
            )
        self.max_length = wanted
        """Most tokens of prompt and completion together."""
        self.frozen = None
        self._pretrained = pretrained
        self._warned: set[str] = set()
        if self.needs_reference:
            self.make_reference()

    # --- what an algorithm is made of ---------------------------------------------------------

    def advantages(self, batch: TensorDict) -> dict[str, Tensor]:
        """What is learned from beside what is in the batch, such as `advantage`; each `[P, ...]`.

        Args:
            batch: A whole one, without gradient. It has `log_prob` `[P, G, T]` where
                `needs_log_prob` says so or it is learned from in several updates, and
                `reference_log_prob` where `needs_reference` says so.
        """
        raise NotImplementedError

    def loss(self, batch: TensorDict) -> Loss:
        """The loss of some rows of what `prepare_completions` returned."""
        raise NotImplementedError

    def normalizer(self, batch: TensorDict) -> Tensor | None:
        """What the summed loss of a whole batch is divided by; None: that of each minibatch is a
        mean of its own."""
        return None

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities are needed."""
        return self.kl_coef > 0.0

    @property
    def needs_log_prob(self) -> bool:
        """Whether `advantages` reads the learner's own log-probabilities."""
        return False

    # --- learning -----------------------------------------------------------------------------

    def prepare_completions(self, batch: TensorDict, rows: int, once: bool) -> TensorDict:
        """What minibatches come from, without gradient.

        Args:
            batch: Completions with their rewards, see above.
            rows: Prompts of one minibatch; so many are read at a time.
            once: Whether a single update learns from them: the learner's log-probabilities before
                it are those that it computes with a gradient, and need no pass of their own.
        """
        parts = batch.split(rows)
        if self.compares and (not once or self.needs_log_prob):
            found: Any = [self.recall(part) for part in parts]
            batch.update({name: torch.cat([one[name] for one in found]) for name in found[0]})
            self.rollout_metrics = {"policy/sampler_gap": sampler_gap(batch, batch["log_prob"])}
        if self.needs_reference:
            with self._reference() as backbone:
                said = [self.read(part, backbone).log_prob for part in parts]
            batch["reference_log_prob"] = torch.cat(said)
        batch.update(self.advantages(batch))
        if (normalizer := self.normalizer(batch)) is not None:
            # Of one minibatch, and the mean over ranks as their gradients are.
            share = mean_over_ranks(normalizer) / len(parts)
            batch["normalizer"] = share.expand(len(batch))
        return batch

    predict = answering.predict  # type: ignore[assignment]

    def recall(self, batch: TensorDict) -> dict[str, Tensor]:
        """What the learner says of completions before it learns from them."""
        return {"log_prob": self.read(batch).log_prob}

    def judged(self, batch: TensorDict) -> dict[str, Tensor]:
        """What held-out completions that somebody else wrote come to, for evaluation: values by
        name, of which means are logged."""
        raise ConfigurationError(f"{type(self).__name__} does not learn from recorded completions")
