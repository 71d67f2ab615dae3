"""Prompts whose completions have been judged: the best to imitate, and pairs to compare."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.described import Described
from rl_lightning.core.errors import ConfigurationError, check_range, shortened
from rl_lightning.data.prompts.table import RowPrompts, as_json
from rl_lightning.rewards.labels.rule import read_rows


class RankedPrompts(Described, RowPrompts):
    """The prompts of a file that `rl-lightning predict --data.record FILE` has written, several
    completions of each (`data.val_samples`). Columns are `completion` and `chosen`, the one with
    the highest reward, for `SFT` and `DPO`, `rejected`, the one with the lowest, for `DPO`, and
    their difference, `margin`. Of equal ones it is the first.

    Prompts are left out whose completions are worth the same, or differ too little: they say
    nothing about which is better.

    Args:
        file: JSONL, each line with `prompt`, `completion` and `reward`, in any order.
        least_margin: By how much the best must be above the worst, in units of reward. 0: by
            anything.
        least_reward: What the best must be worth; None: anything.

    Raises:
        ConfigurationError: If there is no such file, if a line of it is none of these, or if no
            prompt is left.
    """

    def __init__(
        self, file: str, least_margin: float = 0.0, least_reward: float | None = None
    ) -> None:
        check_range("least_margin", least_margin, 0.0)
        groups: dict[bytes, list[dict[str, Any]]] = {}
        for number, row in enumerate(read_rows(file, ("prompt", "completion", "reward")), 1):
            check_line(row, f"{file}: row {number}")
            groups.setdefault(as_json(row["prompt"]), []).append(row)
        rows, below = [], 0
        for group in groups.values():
            best = max(group, key=lambda row: row["reward"])
            worst = min(group, key=lambda row: row["reward"])
            margin = best["reward"] - worst["reward"]
            if least_reward is not None and best["reward"] < least_reward:
                below += 1
            elif margin > 0 and margin >= least_margin:
                rows.append(
                    {
                        "prompt": best["prompt"],
                        "completion": best["completion"],
                        "chosen": best["completion"],
                        "rejected": worst["completion"],
                        "margin": margin,
                    }
                )
        if not rows:
            why = f"; the best of {below} are below least_reward" if below else ""
            raise ConfigurationError(
                f"{file}: none of its {len(groups)} prompts has completions that differ in reward "
                f"by least_margin={least_margin:g}{why}. Write several of each, data.val_samples"
            )
        super().__init__(rows, where=file)


def check_line(row: dict[str, Any], where: str) -> None:
    """Refuse a judged completion that is none.

    Raises:
        ConfigurationError: That says where it stands.
    """
    reward, text = row["reward"], row["completion"]
    number = isinstance(reward, int | float) and not isinstance(reward, bool)
    if not number or not math.isfinite(reward):
        raise ConfigurationError(f"{where}: its reward must be a number, not {reward!r}")
    if not isinstance(text, str):
        raise ConfigurationError(
            f"{where}: its completion must be a text, not {shortened(repr(text), 60)}"
        )


def check_lines_file(name: str) -> None:
    """Refuse a place for completions that they cannot be written to, before there are any.

    Raises:
        ConfigurationError: If it is no JSONL file, or cannot be written.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".jsonl", ".ndjson"):
        raise ConfigurationError(
            f"data.record: completions are written as JSON lines, to a file such as "
            f"completions.jsonl, not {name!r}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            before = file.tell()
    except OSError as error:
        raise ConfigurationError(
            f"data.record: {name} cannot be written: {error.strerror}"
        ) from error
    if before:
        rank_zero_warn(
            f"data.record: {name} holds completions, and new ones come behind them; the same model "
            "under the same data.val_seed writes the same ones again"
        )
