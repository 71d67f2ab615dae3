"""Small tasks over characters, whose answers a rule knows: for small models, and for learning how
reinforcement learning over tokens behaves."""

import random
from collections.abc import Callable
from typing import Any

from rl_lightning.core.described import Described
from rl_lightning.core.errors import ConfigurationError, whole, whole_seed
from rl_lightning.data.prompts.table import RowPrompts


def _copy(rng: random.Random, length: int) -> tuple[str, str]:
    digits = "".join(rng.choices("0123456789", k=length))
    return f"copy {digits}=", digits


def _sort(rng: random.Random, length: int) -> tuple[str, str]:
    digits = "".join(rng.choices("0123456789", k=length))
    return f"sort {digits}=", "".join(sorted(digits))


def _add(rng: random.Random, length: int) -> tuple[str, str]:
    a, b = (rng.randrange(10 ** (length - 1), 10**length) for _ in range(2))
    return f"{a}+{b}=", str(a + b)


TASKS: dict[str, Callable[[random.Random, int], tuple[str, str]]] = {
    "copy": _copy,
    "sort": _sort,
    "add": _add,
}


class StringTasks(Described, RowPrompts):
    """Copy digits, sort them, or add two numbers: `copy 3142=`, `sort 3142=`, `31+42=`.

    Prompts differ, unless there are fewer different ones. Columns are `answer` and, for `SFT`,
    `completion`, both what the rule says.

    Args:
        task: `copy`, `sort` or `add`, or several of them with a plus in between, in turn.
        size: Prompts.
        length: Digits of what is copied or sorted, and of each number that is added.
        shortest: Fewest digits, of each prompt so many at random; None: always `length`.
        seed: Of the prompts.

    Raises:
        ConfigurationError: If there is no such task, or a number is wrong.
    """

    def __init__(
        self,
        task: str = "copy",
        size: int = 1_000,
        length: int = 4,
        shortest: int | None = None,
        seed: int = 0,
    ) -> None:
        names = task.split("+")
        if unknown := [name for name in names if name not in TASKS]:
            raise ConfigurationError(
                f"task={unknown[0]!r}: use one of {', '.join(TASKS)}, or several, copy+sort"
            )
        size, length = whole("size", size, 1), whole("length", length, 1, 18)
        least = length if shortest is None else whole("shortest", shortest, 1, length)
        rng = random.Random(whole_seed("seed", seed))
        rows: list[dict[str, Any]] = []
        known: set[str] = set()
        tries = 0
        while len(rows) < size:
            prompt, answer = TASKS[names[len(rows) % len(names)]](rng, rng.randint(least, length))
            tries += 1
            if prompt in known and tries < 20 * size:
                continue
            known.add(prompt)
            rows.append({"prompt": prompt, "answer": answer, "completion": answer})
        super().__init__(rows)
