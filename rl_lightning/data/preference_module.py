"""The data module of learned rewards: labelled comparisons, in batches."""

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from tensordict import TensorDict
from tqdm import tqdm

from rl_lightning.core.errors import ConfigurationError, RunError, check_range, whole, whole_seed
from rl_lightning.core.order import Order
from rl_lightning.core.protocols import Trainee
from rl_lightning.core.ranks import gather
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.preferences.labelling import answered, checked
from rl_lightning.data.preferences.lines import Lines
from rl_lightning.data.preferences.questions import Questions, Source
from rl_lightning.data.preferences.recorded import RecordedSteps, opened
from rl_lightning.data.preferences.table import READ_ROWS, Batches, Table, make_table
from rl_lightning.data.recorded_module import RecordedDataModule
from rl_lightning.data.resume.random_numbers import rng_state, set_rng_state
from rl_lightning.rewards.labels import Labeller

STAGES = ("training", "validation")


class PreferenceDataModule(RecordedDataModule):
    """Comparisons of observations with labels, for a `RewardModel`.

    Of recorded episodes, pairs of steps are drawn by seed, uniformly, and a labeller is asked which
    led to the better place; a file of comparisons is taken as it is. A share of what there is to
    see is held out: observations that validation compares were in no training pair (of a file,
    its pairs were not).

    The clock counts updates. Training passes over all comparisons, in an order drawn anew for each
    pass. A checkpoint holds neither labels nor whom to ask: a resumed run asks again, which a
    labeller's `cache` makes free, and says so if labels have changed.

    Args:
        dataset: HDF5 file of episodes (`rl-lightning predict --data.record FILE` writes one), the
            folder of a Minari data set, or a JSONL file, see `Lines`.
        labeller: Answers what has no label; None for a file with labels.
        pairs: Comparisons to draw from recorded episodes, validation's included; with a
            `model.objective` of single labels, observations.
        both_orders: Ask about each pair both ways round, and take the mean: against a language
            model's liking for the first or the last. It doubles the questions.
        describe: Text of an observation, or of `(obs, action, next_obs)` where the model judges
            transitions, by import path; None: the texts that it holds.
        val_share: Share of all that is held out for validation.
        batch_size: Comparisons of one batch, and so of one update, on each rank.
        updates_per_epoch: Updates that make one epoch of the trainer.
        total_updates: Budget.
        seed: Of what is drawn and held out.

    Raises:
        ConfigurationError: If a number is wrong, or, when training starts, if the file cannot be
            read or labels are missing.
    """

    def __init__(
        self,
        dataset: str,
        labeller: Labeller | None = None,
        pairs: int = 2_000,
        both_orders: bool = False,
        describe: Callable[..., str] | None = None,
        val_share: float = 0.1,
        batch_size: int = 64,
        updates_per_epoch: int = 100,
        total_updates: int = 1_000,
        seed: int = 0,
    ) -> None:
        super().__init__("preferences", num_envs=1, total_frames=total_updates)
        self.dataset, self.labeller, self.describe = dataset, labeller, describe
        self.pairs = whole("data.pairs", pairs, 2)
        self.both_orders = both_orders
        check_range("data.val_share", val_share, 0.0, 0.9)
        self.val_share = val_share
        self.batch_size = whole("data.batch_size", batch_size, 1)
        self.updates_per_epoch = whole("data.updates_per_epoch", updates_per_epoch, 1)
        self.draw_seed = self.seed = whole_seed("data.seed", seed)

    def clear(self) -> None:
        super().clear()
        self._tables: dict[str, Table] = {}
        self._labelled: dict[str, Questions] = {}
        self._asked_for: Any = None
        self._order: Order | None = None
        for name in ("source", "questions", "spec"):
            self.__dict__.pop(name, None)

    def metrics(self) -> dict[str, float]:
        asked = {} if self.labeller is None else self.labeller.metrics()
        return {**super().metrics(), **asked}

    # --- questions and labels -------------------------------------------------------------------

    @property
    def _is_file_of_lines(self) -> bool:
        return self.dataset.endswith((".jsonl", ".ndjson"))

    def check(self, agent: Trainee) -> None:
        if "preferences" not in agent.learns_from:
            raise ConfigurationError(
                f"{type(agent).__name__} does not learn from preferences; use RewardModel, or "
                "another data module"
            )
        learner: Any = agent  # the command line asks before there is a trainer
        if self._is_file_of_lines and learner.inputs == "transition":
            raise ConfigurationError(
                f"model.inputs: transition judges steps, and {self.dataset} holds texts; use "
                "recorded episodes, or inputs: next_obs"
            )

    @property
    def _learner(self) -> Any:
        """The trainer's model, a `PreferenceLearner`."""
        return self.agent

    @cached_property
    def source(self) -> Source:
        """Where comparisons come from."""
        if self._is_file_of_lines:
            return Lines(self.dataset)
        return RecordedSteps(self.dataset, self._learner.inputs, self.describe)

    @cached_property
    def spec(self) -> EnvSpec:
        """The spaces of what is judged, as the file says."""
        if self._is_file_of_lines:
            return Lines(self.dataset).spec
        return opened(self.dataset)[1]

    @cached_property
    def questions(self) -> dict[str, Questions]:
        """By stage, with the labels that the file has."""
        size = 2 if self._learner.objective == "preferences" else 1
        drawn = self.source.questions(self.pairs, self.val_share, size, self.draw_seed)
        return dict(zip(STAGES, drawn, strict=True))

    def labelled(self, stage: str) -> Questions:
        """The questions of `training` or `validation` with their labels; rank 0 asks for all.

        Raises:
            ConfigurationError: If labels are missing or none of the objective's.
            RunError: If a labeller fails.
        """
        if stage not in self._labelled:
            questions, own = self.questions[stage], None
            if self._trainer.is_global_zero:
                try:
                    own = answered(self.source, questions, self.labeller, self.both_orders)
                except (ConfigurationError, RunError) as error:
                    own = error  # the other ranks would wait for ever
            labels = gather(own)[0]
            if isinstance(labels, Exception):
                raise labels
            what = f"{stage} questions"
            known = checked(questions, labels, self._learner.objective, what)
            self._labelled[stage] = known
            if self.labeller is not None and self._trainer.is_global_zero:
                told = {k.partition("/")[2]: int(v) for k, v in self.labeller.metrics().items()}
                rank_zero_info(
                    f"{len(known)} {what} with labels ("
                    + ", ".join(f"{count} {name}" for name, count in told.items())
                    + " so far)"
                )
        return self._labelled[stage]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells the training labels from others."""
        known = self.labelled("training")
        content = hashlib.blake2b(known.items.tobytes() + known.labels.tobytes(), digest_size=8)
        return {"comparisons": len(known), "digest": content.hexdigest()}

    def table(self, stage: str) -> Table:
        """The comparisons of a stage as tensors; made once, by this agent's encoder."""
        if stage not in self._tables:
            known = self.labelled(stage)
            total = len(np.unique(known.items))
            quiet = not self._trainer.is_global_zero
            told = {"desc": f"reading {stage}", "unit": " rows", "delay": 2.0, "leave": False}
            bar = tqdm(total=total, disable=quiet, **told)
            begins = stage == "training" and self.agent.frames == 0
            with self.acting() as agent, bar:
                agent.begin_rollout()
                made = make_table(self.source, known, agent, bar, observe=begins)
                if begins:
                    agent.synchronize()
                    agent.begin_rollout()
            self._tables[stage] = made
        return self._tables[stage]

    def open_source(self, seed: int) -> None:
        self._ask_anew(None)  # an earlier run may have had another agent, or another file
        if self.labeller is not None:
            self.labeller.progress = self._trainer.is_global_zero
        _ = self.fingerprint

    def _ask_anew(self, wanted: Any) -> None:
        """Forget what was asked for something else than (inputs, objective)."""
        if wanted is None or wanted != self._asked_for:
            self._tables, self._labelled = {}, {}
            for name in ("source", "questions"):
                self.__dict__.pop(name, None)
        self._asked_for = self._learner.inputs, self._learner.objective

    def start(self) -> None:
        super().start()
        table = self.table("training")
        if not len(table):
            raise ConfigurationError("data.dataset: there is no comparison to train on")
        self._learner.measure_over(partial(_training_rows, weakref.ref(self)))

    def training_rows(self) -> Iterator[TensorDict]:
        """The observations of all training comparisons, as often as they were drawn."""
        if table := self._tables.get("training"):
            yield from table.observations(READ_ROWS, self.agent.device)

    # --- loaders --------------------------------------------------------------------------------

    def next_batch(self) -> TensorDict:
        table = self.table("training")
        return table.batch(self.order(self.frames, len(table)), self.agent.device)

    def order(self, update: int, total: int) -> torch.Tensor:
        """Which comparisons an update learns from, int64 `[batch_size]`.

        Passes over all of them, each in an order of its own, follow each other. Where an update
        stands in them depends on its number alone, so a resumed run needs to know no more.
        """
        if self._order is None or self._order.total != total:
            self._order = Order(total, self.draw_seed, 1 + self._trainer.global_rank)
        return self._order(update * self.batch_size, self.batch_size)

    def val_dataloader(self) -> Any:
        return self._evaluated()

    def test_dataloader(self) -> Any:
        """The comparisons that were held out, too: there are no others."""
        return self._evaluated()

    def predict_dataloader(self) -> Any:
        raise ConfigurationError(
            "predict plays episodes, and a reward model plays none; `validate` says how well it "
            "judges, and RewardModel.load_from_checkpoint(path).score(observations) how"
        )

    def _evaluated(self) -> Any:
        self.check(self.agent)
        self._ask_anew((self._learner.inputs, self._learner.objective))
        if not len(self.questions["validation"]):
            return []
        size = max(self.batch_size, READ_ROWS)
        return Batches(lambda: self.table("validation"), size, lambda: self.agent.device)

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        self._tables = {}

    # --- exact resuming -------------------------------------------------------------------------

    def rank_state(self) -> dict[str, Any]:
        return {
            "num_envs": self.num_envs,
            "rng": rng_state(self._trainer.strategy.root_device),
            "encoder": self.agent.collection_state(),
            "labels": self.fingerprint,
        }

    def load_rank_state(self, state: dict[str, Any]) -> None:
        self.load_shared_state(state)
        set_rng_state(state["rng"], self._trainer.strategy.root_device)

    def load_shared_state(self, state: dict[str, Any]) -> None:
        super().load_shared_state(state)
        now, before = self.fingerprint, state["labels"]
        if before != now:
            rank_zero_warn(
                f"data.dataset: {self.dataset}: training began with {before['comparisons']} "
                f"comparisons, and here are {now['comparisons']}, or others, or with other labels: "
                "it goes on with what is there now"
            )


def _training_rows(held: "weakref.ref[PreferenceDataModule]") -> Iterable[TensorDict]:
    data = held()
    return () if data is None else data.training_rows()
