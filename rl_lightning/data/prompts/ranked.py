"""Prompts whose completions have been judged: the best to imitate, and pairs to compare."""

import os
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.described import Described
from rl_lightning.core.errors import ConfigurationError, check_finite, check_range, shortened
from rl_lightning.data.prompts.table import RowPrompts, as_json, check_encodable
from rl_lightning.rewards.labels.rule import read_rows

_LARGEST = float(torch.finfo(torch.float32).max)


class RankedPrompts(Described, RowPrompts):
    """The prompts of a file that `rl-lightning predict --data.record FILE` has written, several
    completions of each (`data.val_samples`). Columns are `completion` and `chosen`, the one with
    the highest reward, for `SFT` and `DPO`, `rejected`, the one with the lowest of those that are
    other texts, for `DPO`, and the difference of the two, `margin`; and those that the prompt had
    in the data, if they have other names. Of equal ones it is the first.

    Prompts are left out whose completions are worth the same, or differ too little: they say
    nothing about which is better.

    Args:
        file: JSONL, each line with `prompt`, `completion` and `reward`, in any order, and if it is
            known whether it `ended` by itself.
        least_margin: By how much the best must be above the worst, in units of reward. 0: by
            anything.
        least_reward: What the best must be worth; None: anything.
        keep_cut: Rank completions, too, that were cut (`ended: false`): with
            `data.append_end: true` an end is learned behind them that the model did not write.

    Raises:
        ConfigurationError: If there is no such file, if a line of it is none of these or a
            conversation of `EpisodeDataModule`, or if no prompt is left.
    """

    def __init__(
        self,
        file: str,
        least_margin: float = 0.0,
        least_reward: float | None = None,
        keep_cut: bool = False,
    ) -> None:
        if not isinstance(file, str | os.PathLike):
            raise ConfigurationError(
                f"file must be the name of a JSONL file, not {shortened(repr(file), 60)}"
            )
        check_range("least_margin", least_margin, 0.0)
        check_finite("least_reward", least_reward)
        groups: dict[bytes, list[dict[str, Any]]] = {}
        lines = cut = 0
        for row in read_rows(file, ("prompt", "completion", "reward")):
            lines += 1
            check_line(row, f"{file}: row {lines}")
            group = groups.setdefault(as_json(row["prompt"]), [])
            if keep_cut or row.get("ended", True):
                group.append(row)
            else:
                cut += 1
        told = f"{cut} of {lines} completions were cut at data.max_new_tokens and are left out"
        rows, below = [], 0
        for group in filter(None, groups.values()):
            best = max(group, key=_reward)
            others = [row for row in group if row["completion"] != best["completion"]]
            worst = min(others, key=_reward, default=best)
            margin = best["reward"] - worst["reward"]
            if least_reward is not None and best["reward"] < least_reward:
                below += 1
            elif margin > 0 and margin >= least_margin:
                rows.append(
                    {
                        **best.get("columns", {}),
                        "prompt": best["prompt"],
                        "completion": best["completion"],
                        "chosen": best["completion"],
                        "rejected": worst["completion"],
                        "margin": margin,
                    }
                )
        if not rows:
            why = f"; the best of {below} are below least_reward" if below else ""
            why += f"; {told}" if cut else ""
            raise ConfigurationError(
                f"{file}: none of its {len(groups)} prompts has completions that differ in reward "
                f"by least_margin={least_margin:g}{why}. Write several of each, data.val_samples"
                f"{', and longer ones, data.max_new_tokens' if cut else ''}"
            )
        if cut:
            rank_zero_warn(
                f"{file}: {told}: an end would be learned behind them that the model did not "
                "write. Raise data.max_new_tokens, or give keep_cut: true"
            )
        super().__init__(rows, where=str(file))


def _reward(row: dict[str, Any]) -> float:
    return row["reward"]


def check_line(row: dict[str, Any], where: str) -> None:
    """Refuse a judged completion that is none.

    Raises:
        ConfigurationError: That says where it stands.
    """
    reward, text = row["reward"], row["completion"]
    number = isinstance(reward, int | float) and not isinstance(reward, bool)
    if not number or reward != reward:
        raise ConfigurationError(
            f"{where}: its reward must be a number, not {shortened(repr(reward), 60)}"
        )
    if abs(reward) > _LARGEST:
        raise ConfigurationError(
            f"{where}: its reward is {shortened(repr(reward), 20)}, too much for float32; leave it "
            "out, or give a smaller one"
        )
    if not isinstance(text, str):
        raise ConfigurationError(
            f"{where}: its completion must be a text, not {shortened(repr(text), 60)}"
        )
    check_encodable(text, f"{where}: its completion")
    if not isinstance(row.get("ended", True), bool):
        raise ConfigurationError(f"{where}: ended must be true or false, not {row['ended']!r}")
    if not isinstance(row.get("columns", {}), dict):
        raise ConfigurationError(
            f"{where}: columns must be values by name, not {shortened(repr(row['columns']), 60)}"
        )
    if "turns" in row:
        raise ConfigurationError(
            f"{where} is a conversation (turns), whose completion holds the environment's words, "
            "too: give completions that PromptDataModule or CompletionDataModule has written"
        )
