"""The data module of recorded completions: demonstrations to imitate, and pairs to compare."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from tensordict import TensorDict

from rl_lightning.core.errors import ConfigurationError, shortened, whole
from rl_lightning.core.protocols import Trainee
from rl_lightning.data.collect.completions import padded
from rl_lightning.data.prompts import Prompts
from rl_lightning.data.recorded_module import RecordedDataModule
from rl_lightning.data.token_module import TokenDataModule
from rl_lightning.data.update_loader import UpdateLoader
from rl_lightning.llm.generation import end_tokens

COLUMNS = {"demonstrations": ("completion",), "pairs": ("chosen", "rejected")}


class CompletionDataModule(TokenDataModule, RecordedDataModule):
    """Prompts with completions that somebody else wrote: a column `completion` for `SFT`, columns
    `chosen` and `rejected` for `DPO`.

    The clock counts updates. Training passes over all rows, in an order drawn anew for each pass.
    `validate` logs `val/loss` of held-out rows, and where there are `rewards` also what the model's
    own completions of their prompts are worth, as `PromptDataModule` does.

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

    gradient_steps = 1
    row_errors = None

    def __init__(
        self,
        prompts: str | list[Any] | Prompts,
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
        self._recorded: dict[tuple[str, int], list[list[int]]] = {}

    def check(self, agent: Trainee) -> None:
        if not set(COLUMNS) & set(agent.learns_from):
            raise ConfigurationError(
                f"{type(agent).__name__} does not learn from recorded completions; use SFT or DPO, "
                "or its own data module: --data PromptDataModule"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that hold the agent's completions."""
        kind = next(kind for kind in COLUMNS if kind in self.agent.learns_from)
        return COLUMNS[kind]

    def open_source(self, seed: int) -> None:
        self._recorded = {}
        super().open_source(seed)
        for row in range(len(self.cut("train"))):
            self.completions("train", row)

    def completions(self, stage: str, row: int) -> list[list[int]]:
        """Token ids of a prompt's completions.

        Raises:
            ConfigurationError: If one is no text, has no token, or too many.
        """
        known = self._recorded.get((stage, row))
        if known is not None:
            return known
        backbone = self.model.backbone
        values = self.cut(stage).table.columns(row)
        out = []
        for name in self.columns:
            text = values.get(name)
            if not isinstance(text, str):
                raise ConfigurationError(
                    f"data.prompts: prompt {row + 1} has no text in the column {name!r}, but "
                    f"{shortened(repr(text), 60)}"
                )
            ids = backbone.tokens.plain(text)
            if self.append_end:
                ids = [*ids, *end_tokens(backbone)[:1]]
            if not ids or len(ids) > self.max_new_tokens:
                raise ConfigurationError(
                    f"data.prompts: the {name} completion of prompt {row + 1} has {len(ids)} "
                    f"tokens, and data.max_new_tokens is {self.max_new_tokens}: leave it out, or "
                    "change that"
                )
            out.append(ids)
        self._recorded[stage, row] = out
        return out

    def batch(self, stage: str, rows: Sequence[int]) -> TensorDict:
        """Some prompts with their completions, as agents learn from them, without rewards."""
        pad = self.model.backbone.tokens.pad_id
        prompt, prompt_length = padded(self.cut(stage).asked(rows).ids, pad)
        groups = [self.completions(stage, row) for row in rows]
        ids, length = padded(list(chain.from_iterable(groups)), pad)
        shape = len(rows), len(self.columns)
        ids, length = ids.view(*shape, -1), length.view(shape)
        own = torch.arange(ids.shape[2]) < length[..., None]
        return TensorDict(
            {
                "prompt": prompt,
                "prompt_length": prompt_length,
                "ids": ids,
                "length": length,
                "own": own,
                "said": torch.zeros(ids.shape),
                "reward": torch.zeros(shape),
                "temperature": torch.ones(len(rows)),
                "most": torch.full((len(rows),), self.max_new_tokens),
            },
            batch_size=[len(rows)],
        ).to(self.agent.device)

    # --- loaders ------------------------------------------------------------------------------

    def train_dataloader(self) -> UpdateLoader:
        self.start()
        return UpdateLoader(self, self.runs)

    @property
    def rounds(self) -> int:
        """Updates of one epoch."""
        return self.epoch_length

    def begin_epoch(self) -> None:
        self.begin_clock()

    def batches(self) -> Iterator[TensorDict]:
        size = self.batch_size * self._trainer.world_size
        for left in reversed(range(self.rounds)):
            rows = self.drawn(self.frames * size, self.batch_size)
            with self.acting():
                batch = self.model.prepare_completions(
                    self.batch("train", rows), self.batch_size, once=True
                )
            self.count(1)
            if not left:
                self.plan(self.epoch + 1)
            yield batch

    def _completions(self, stage: str, seed: int) -> Any:
        """Held-out rows as they were recorded, and behind them the model's own completions."""
        self.check(self.agent)
        judges = self.judge is not None or stage == "predict"
        own = super()._completions(stage, seed) if judges else []
        if stage == "predict":
            return own
        world, rank = self._trainer.world_size, self._trainer.global_rank
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
