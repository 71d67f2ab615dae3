"""What data modules of language models that are tuned have in common: prompts, rewards, and
evaluation by completions."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.charset import PRINTABLE
from rl_lightning.core.errors import ConfigurationError, check_range, whole, whole_seed
from rl_lightning.core.order import Order
from rl_lightning.core.protocols import TokenLearner, Trainee
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.base_module import RLDataModule
from rl_lightning.data.collect.completions import Completed, CompletionLoader, complete
from rl_lightning.data.own_module import own_module
from rl_lightning.data.prompts import Prompts, as_prompts, split_prompts
from rl_lightning.data.prompts.asked import PromptTokens
from rl_lightning.data.prompts.lines import LinesWriter
from rl_lightning.data.resume.random_numbers import rng_state, set_rng_state
from rl_lightning.llm.generators import Generator, check_generator
from rl_lightning.llm.sampling import Sampling
from rl_lightning.rewards.completions import CompletionJudge, CompletionReward


class TokenDataModule(RLDataModule):
    """Prompts, what completions of them are worth, and evaluation: completions of held-out prompts.

    `validate` logs `val/reward`, the parts of the reward, lengths, and where `success_threshold`
    says what is right `val/pass@1` and `val/pass@k`; `predict` writes the completions, one JSON
    line each.

    Args:
        prompts: File (JSONL, Parquet), data set, list of texts, chats or rows, or a source such as
            `ReasoningGymPrompts`; see `rl_lightning.data.prompts.as_prompts`. What is in a row
            beside its `prompt` is handed to the rewards.
        val_prompts: As `prompts`, for evaluation; None: `val_share` of those.
        val_share: Share of the prompts that is held out where there are no `val_prompts`.
        rewards: What completions are worth, see `rl_lightning.rewards.completions`.
        template: Prompt as a text with fields in braces, `{prompt}` and other columns; None: as it
            is.
        chat: Put texts into the tokenizer's chat template, as a user's message.
        system: What that begins with.
        max_new_tokens: Most tokens of a completion.
        stop: Texts that end one, beside the model's own end.
        success_threshold: Reward from which a completion is right.
        val_samples: Completions of each prompt in evaluation, k of pass@k.
        val_temperature: Of evaluation; None: greedy where there is one sample, else 1.
        val_batch: Prompts of one evaluation batch.
        val_table: Completions that TensorBoard's text panel shows.
        generator: Writes; None: this process does.
        record: JSONL file that `predict` writes its completions to, each batch as soon as it is
            judged, behind those it holds already; None: beside the logs, at the end.
            `RankedPrompts` reads it.
        seed: Of the order of prompts, and of what is held out. None: that is the same in all runs,
            and the order is by the global seed.
        val_seed: Of evaluation's random numbers.
        **shared: `total_frames` of `RLDataModule`.

    Raises:
        ConfigurationError: If a number is wrong, or the prompts cannot be read.
    """

    evaluated = "batch"
    """What an evaluation counts, for its bar."""
    prediction_file = "completions.jsonl"
    records_lines = True
    pays = False
    """Whether completions are worth something without rewards."""
    held_out_by = "data.val_prompts"
    """The argument that says what evaluation asks."""

    def __init__(
        self,
        prompts: Prompts | str | list,
        *,
        total_frames: int,
        val_prompts: Prompts | str | list | None = None,
        val_share: float = 0.1,
        rewards: list[CompletionReward | Callable[..., Any]] | None = None,
        template: str | None = None,
        chat: bool = False,
        system: str | None = None,
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        success_threshold: float | None = None,
        val_samples: int = 1,
        val_temperature: float | None = None,
        val_batch: int = 32,
        val_table: int = 8,
        generator: Generator | None = None,
        record: str | None = None,
        seed: int | None = None,
        val_seed: int = 1_000_000,
    ) -> None:
        super().__init__(
            "prompts",
            num_envs=1,
            total_frames=total_frames,
            success_threshold=success_threshold,
            val_seed=val_seed,
            record=record,
        )
        self.prompts, self.val_prompts = prompts, val_prompts
        check_range("data.val_share", val_share, 0.0, 0.9)
        self.val_share = val_share
        self.judge = CompletionJudge(rewards) if rewards else None
        self.template, self.chat, self.system = template, chat, system
        self.max_new_tokens = whole("data.max_new_tokens", max_new_tokens, 1)
        self.stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self.val_samples = whole("data.val_samples", val_samples, 1)
        check_range("data.val_temperature", val_temperature, 0.0)
        if val_temperature is None:
            val_temperature = 0.0 if self.val_samples == 1 else 1.0
        elif val_temperature == 0.0 and self.val_samples > 1:
            raise ConfigurationError(
                f"data.val_samples: {val_samples} greedy completions of a prompt would be equal; "
                "give a val_temperature above 0, or val_samples: 1"
            )
        self.val_sampling = Sampling(self.max_new_tokens, val_temperature, stop=self.stop)
        self.val_batch = whole("data.val_batch", val_batch, 1)
        self.val_table = whole("data.val_table", val_table, 0)
        self.generator = check_generator(generator)
        self.seed = None if seed is None else whole_seed("data.seed", seed)

    def clear(self) -> None:
        super().clear()
        self._tables: tuple[Prompts, Prompts] | None = None
        self._cut: dict[str, PromptTokens] = {}
        self._order: Order | None = None
        self._order_seed = 0

    # --- prompts ------------------------------------------------------------------------------

    @property
    def spec(self) -> EnvSpec:  # type: ignore[override]
        """From texts to texts."""
        text = gym.spaces.Text(1_000_000, min_length=0, charset=PRINTABLE)
        return EnvSpec(text, text, "prompts")

    @classmethod
    def judged_by(cls, arguments: Any) -> tuple[str, str] | None:
        """What makes a checkpoint the best one, by the constructor's arguments, and which way."""
        return ("val/reward", "max") if cls.pays or arguments.get("rewards") else None

    @property
    def model(self) -> TokenLearner:
        """The trainer's agent."""
        agent: Any = self.agent
        return agent

    @property
    def tables(self) -> tuple[Prompts, Prompts]:
        """Prompts of training, and of evaluation."""
        if self._tables is None:
            held = None if self.val_prompts is None else as_prompts(self.val_prompts)
            self._tables = split_prompts(
                as_prompts(self.prompts), self.val_share, self.seed or 0, held
            )
        return self._tables

    def cut(self, stage: str) -> PromptTokens:
        """Prompts of `train` or `val`, as the agent's tokenizer cuts them; made once."""
        model, known = self.model, self._cut.get(stage)
        if known is None or known.tokens is not model.backbone.tokens:  # another agent's
            table = self.tables[0 if stage == "train" else 1]
            own = stage != "train" and self.val_prompts is not None
            made = PromptTokens(
                table,
                model.backbone.tokens,
                self.template,
                self.chat,
                self.system,
                "data.val_prompts" if own else "data.prompts",
            )
            room = model.max_length - self.max_new_tokens
            why = f"max_length={model.max_length}, max_new_tokens={self.max_new_tokens}"
            if room < 1:
                raise ConfigurationError(
                    f"data.max_new_tokens: {self.max_new_tokens} leaves no room for a prompt in "
                    f"the {model.max_length} tokens of the model"
                )
            made.check(room, why, quiet=not self._trainer.is_global_zero)
            self._cut[stage] = made
        return self._cut[stage]

    def drawn(self, first: int, count: int) -> list[int]:
        """Numbers of the next training prompts of this rank.

        Args:
            first: Prompts that all ranks have had so far.
            count: Prompts.
        """
        trainer = self._trainer
        total = len(self.cut("train"))
        if self._order is None or (self._order.total, self._order.seed[0]) != (
            total,
            self._order_seed,
        ):
            self._order = Order(total, self._order_seed, 1)
        return self._order(first, count, trainer.global_rank, trainer.world_size).tolist()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells the training prompts from others."""
        table = self.tables[0]
        return {"prompts": len(table), "digest": table.fingerprint}

    def check(self, agent: Trainee) -> None:
        if "completions" not in agent.learns_from:
            raise ConfigurationError(
                f"{type(agent).__name__} does not learn from completions of prompts; use GRPO or "
                f"another agent of tokens, or its own data module: --data {own_module(agent)}"
            )

    def open_source(self, seed: int) -> None:
        self._cut = {}  # an earlier run may have had another tokenizer
        _ = self.fingerprint  # says what is wrong with columns before there is anything to lose
        self._order_seed = self._trainer.strategy.broadcast(self._seed())  # one order for all ranks
        for stage in self.stages:
            self.cut(stage)

    @property
    def stages(self) -> list[str]:
        """Whose prompts a training run has: what is wrong with them is told before it begins."""
        return ["train", "val"] if self.held_out and self._trainer.limit_val_batches else ["train"]

    # --- evaluation ---------------------------------------------------------------------------

    @property
    def held_out(self) -> int:
        """Prompts of evaluation, of all ranks."""
        return len(self.tables[1])

    def answer(
        self, stage: str, rows: Sequence[int], samples: int, sampling: Sampling
    ) -> Completed:
        """Completions of some prompts, written and judged.

        Args:
            stage: `train`, `val`, `test` or `predict`.
            rows: Numbers of the prompts.
            samples: G.
            sampling: How tokens are chosen.
        """
        model = self.model
        assert self.judge is not None
        return complete(
            model.backbone,
            self.generator,
            self.cut("train" if stage == "train" else "val").asked(rows),
            samples,
            sampling,
            self.judge,
            model.updates,
        )

    def val_dataloader(self) -> Any:
        return self._completions("val", self.val_seed)

    def test_dataloader(self) -> Any:
        """The prompts of evaluation, with other random numbers: there are no others."""
        return self._completions("test", self.val_seed + 1_000_000)

    def predict_dataloader(self) -> Any:
        loader = self._completions("predict", self.val_seed + 2_000_000)
        if self.record is not None and loader.keep is None:
            if (world := self._trainer.world_size) > 1:
                raise ConfigurationError(
                    f"data.record: {world} ranks cannot write to one file, {self.record}; set "
                    "trainer.devices: 1"
                )
            loader.keep = LinesWriter(self.record)
        return loader

    def check_held_out(self, stage: str) -> None:
        """Refuse an evaluation by itself of no prompts; training may go without."""
        if not self.held_out and self._trainer.state.fn != "fit":
            command = "validate" if stage == "val" else stage
            raise ConfigurationError(
                f"{command}: there are no prompts for it; give {self.held_out_by}, or a "
                "data.val_share above 0"
            )

    def _completions(self, stage: str, seed: int) -> Any:
        self.check(self.agent)
        if self.judge is None and not self.pays:
            raise ConfigurationError(
                f"data.rewards: there is none, so that {stage} could not say what completions are "
                "worth"
            )
        world, rank = self._trainer.world_size, self._trainer.global_rank
        count = self.held_out
        if not count:
            self.check_held_out(stage)
            return []
        if count < world:
            raise ConfigurationError(
                f"{self.held_out_by}: {count} cannot be shared by {world} ranks"
            )

        def answer(rows: Sequence[int]) -> Completed:
            with self.acting():
                return self.answer(stage, rows, self.val_samples, self.val_sampling)

        known = self._eval_loaders.get(stage)
        if known is None:
            self._eval_loaders[stage] = known = CompletionLoader(
                answer,
                range(count)[rank::world],
                self.val_batch,
                seed + rank,
                lambda: self.agent.device,
                self.success_threshold,
                self.val_table if rank == 0 else 0,
            )
        return known

    # --- exact resuming -----------------------------------------------------------------------

    def rank_state(self) -> dict[str, Any]:
        return {
            "num_envs": self.num_envs,
            "rng": rng_state(self._trainer.strategy.root_device),
            "encoder": self.agent.collection_state(),
            "prompts": self.fingerprint,
            "order": self._order_seed,
        }

    def load_rank_state(self, state: dict[str, Any]) -> None:
        self.load_shared_state(state)
        set_rng_state(state["rng"], self._trainer.strategy.root_device)

    def load_shared_state(self, state: dict[str, Any]) -> None:
        super().load_shared_state(state)
        self._order_seed = state.get("order", self._order_seed)
        now, before = self.fingerprint, state["prompts"]
        if before != now:
            rank_zero_warn(f"{self.changed(before, now)}: it goes on with what is there now")

    def changed(self, before: dict[str, Any], now: dict[str, Any]) -> str:
        """What to say where a run goes on with another `fingerprint`."""
        return (
            f"data.prompts: training began with {before['prompts']} prompts, and here are "
            f"{now['prompts']}, or others"
        )
