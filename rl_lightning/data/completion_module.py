"""The data module of recorded completions: demonstrations to imitate, and pairs to compare."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from rl_lightning.core.errors import ConfigurationError, shortened, whole
from rl_lightning.core.protocols import Trainee
from rl_lightning.data.own_module import own_module
from rl_lightning.data.prompts import Prompts
from rl_lightning.data.prompts.table import check_encodable
from rl_lightning.data.recorded_module import RecordedDataModule
from rl_lightning.data.token_module import TokenDataModule
from rl_lightning.llm.generation import end_tokens

COLUMNS = {"demonstrations": ("completion",), "pairs": ("chosen", "rejected")}


class CompletionDataModule(TokenDataModule, RecordedDataModule):
    """Prompts with completions that somebody else wrote: a column `completion` for `SFT`, columns
    `chosen` and `rejected` for `DPO`.

    The clock counts updates. Training passes over all rows, in an order drawn anew for each pass.
    `validate` logs `val/loss` of held-out rows, and where there are `rewards` also what the model's
    own completions of their prompts are worth, as `PromptDataModule` does. With `rewards`,
    `val_prompts` may be prompts alone: then it logs no `val/loss`.

    Args:
        prompts: See `TokenDataModule`.
        batch_size: Prompts of one batch, and so of one update, on each rank.
        updates_per_epoch: Updates that make one epoch of the trainer.
        total_updates: Budget.
        append_end: Whether the model's own end token is put behind completions, to be learned too.
        **shared: Arguments of `TokenDataModule`.

    Raises:
        ConfigurationError: If a number is wrong, or, when training starts, if a row has no such
            completion, or one of more tokens than `max_new_tokens`.
    """

    def __init__(
        self,
        prompts: Prompts | str | list,
        batch_size: int = 32,
        updates_per_epoch: int = 50,
        total_updates: int = 500,
        append_end: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(prompts, total_frames=total_updates, **shared)
        self.batch_size = whole("data.batch_size", batch_size, 1)
        self.updates_per_epoch = whole("data.updates_per_epoch", updates_per_epoch, 1)
        self.append_end = append_end

    def clear(self) -> None:
        super().clear()
        # By stage: what completions were cut by, and those that are known, by row.
        self._recorded: dict[str, tuple[Any, dict[int, list[list[int]]]]] = {}
        self._drawn: int | None = None  # rows that all ranks have had; None: as frames say

    def check(self, agent: Trainee) -> None:
        if not set(COLUMNS) & set(agent.learns_from):
            raise ConfigurationError(
                f"{type(agent).__name__} does not learn from recorded completions; use SFT or DPO, "
                f"or its own data module: --data {own_module(agent)}"
            )
        learner: Any = agent
        if learner.min_reward is not None:
            raise ConfigurationError(
                f"model.min_reward: {learner.min_reward:g}, and recorded completions have no "
                "rewards to compare it with: leave it out, or choose among judged ones by "
                f"RankedPrompts(file, least_reward={learner.min_reward:g})"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that hold the agent's completions."""
        kind = next(kind for kind in COLUMNS if kind in self.agent.learns_from)
        return COLUMNS[kind]

    def open_source(self, seed: int) -> None:
        self._recorded = {}
        super().open_source(seed)
        for stage in self.stages:
            if stage == "train" or self.val_recorded:
                for row in range(len(self.cut(stage))):
                    self.completions(stage, row)

    @property
    def val_recorded(self) -> bool:
        """Whether evaluation has recorded completions, too: prompts of its own that come without
        any are asked alone, where `rewards` say what the model's own are worth."""
        own = self.val_prompts is not None and self.judge is not None
        return not own or bool(set(self.columns) & set(self.tables[1].names))

    def completions(self, stage: str, row: int) -> list[list[int]]:
        """Token ids of a prompt's completions.

        Raises:
            ConfigurationError: If one is no text, has no token, or too many.
        """
        cut, columns = self.cut(stage), self.columns
        by, known = self._recorded.get(stage, (None, {}))
        if by != (cut, columns):  # another agent's
            known = {}
            self._recorded[stage] = (cut, columns), known
        if row in known:
            return known[row]
        backbone = self.model.backbone
        values = cut.table.columns(row)
        out = []
        for name in columns:
            text = values.get(name)
            if not isinstance(text, str):
                raise ConfigurationError(
                    f"{cut.called(row)} has no text in the column {name!r}, but "
                    f"{shortened(repr(text), 60)}"
                )
            check_encodable(text, f"{cut.called(row)}: its column {name!r}")
            ids = backbone.tokens.plain(text)
            if self.append_end:
                ids = [*ids, *end_tokens(backbone)[:1]]
            if not ids or len(ids) > self.max_new_tokens:
                raise ConfigurationError(
                    f"{cut.called(row)}: its column {name!r} has {len(ids)} tokens, and "
                    f"data.max_new_tokens is {self.max_new_tokens}: leave it out, or change that"
                )
            out.append(ids)
        known[row] = out
        return out

    def batch(self, stage: str, rows: Sequence[int]) -> TensorDict:
        """Some prompts with their completions, as agents learn from them, without rewards."""
        pad = self.model.backbone.tokens.pad
        prompt, there = pad(self.cut(stage).asked(rows).ids)
        ids, own = pad([ids for row in rows for ids in self.completions(stage, row)])
        shape = len(rows), len(self.columns)
        own = own.view(*shape, -1)
        return TensorDict(
            {
                "prompt": prompt.int(),
                "prompt_length": there.sum(1),
                "ids": ids.int().view(own.shape),
                "length": own.sum(2),
                "own": own,
                "said": torch.zeros(own.shape),
                "reward": torch.zeros(shape),
                "temperature": torch.ones(len(rows)),
                "most": torch.full((len(rows),), self.max_new_tokens),
            },
            batch_size=[len(rows)],
        ).to(self.agent.device)

    # --- exact resuming -----------------------------------------------------------------------

    def forget(self) -> None:
        super().forget()
        self._drawn = None

    def rank_state(self) -> dict[str, Any]:
        return {**super().rank_state(), "drawn": self._drawn}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        super().load_shared_state(state)
        self._drawn = state.get("drawn")

    # --- loaders ------------------------------------------------------------------------------

    def next_batch(self) -> TensorDict:
        size = self.batch_size * self._trainer.world_size
        first = self.frames * size if self._drawn is None else self._drawn
        batch = self.batch("train", self.drawn(first, self.batch_size))
        self._drawn = first + size
        with self.acting():
            return self.model.prepare_completions(batch, self.batch_size, once=True)

    def _completions(self, stage: str, seed: int) -> Any:
        """Held-out rows as they were recorded, and behind them the model's own completions."""
        self.check(self.agent)
        self.check_held_out(stage)
        judges = self.judge is not None or stage == "predict"
        own = super()._completions(stage, seed) if judges else []
        if stage == "predict":
            return own
        world, rank = self._trainer.world_size, self._trainer.global_rank
        if not self.val_recorded:
            return own
        rows = range(len(self.tables[1]))[rank::world]
        parts = [rows[i : i + self.val_batch] for i in range(0, len(rows), self.val_batch)]
        return RecordedLoader(self, parts, own)


class RecordedLoader:
    """Held-out rows, a batch at a time, and then what another loader has.

    Args:
        data: The data module.
        parts: Numbers of the rows of each batch.
        own: The loader of the model's own completions, or nothing.
    """

    def __init__(
        self, data: CompletionDataModule, parts: Sequence[Sequence[int]], own: Any
    ) -> None:
        self.data, self.parts, self.own = data, parts, own

    def __len__(self) -> int:
        return len(self.parts) + len(self.own)

    def __iter__(self) -> Iterator[Any]:
        for rows in self.parts:
            yield self.data.batch("val", rows)
        yield from self.own
