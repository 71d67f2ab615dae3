"""Small tasks over characters, whose answers a rule knows: for small models, and for learning how
reinforcement learning over tokens behaves."""

import random
import zlib
from collections.abc import Callable
from typing import Any, Literal, get_args

from rl_lightning.core.described import Described
from rl_lightning.core.errors import ConfigurationError, check_one_of, whole, whole_seed
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
Part = Literal["all", "train", "test"]


class StringTasks(Described, RowPrompts):
    """Copy digits, sort them, or add two numbers: `copy 3142=`, `sort 3142=`, `31+42=`.

    Prompts differ, unless there are fewer different ones. Columns are `answer` and, for `SFT`,
    `completion`, both what the rule says.

    Args:
        task: `copy`, `sort` or `add`, or several of them with a plus in between, in turn; each with
            a length of its own if wanted, `copy:4+add:2`.
        size: Prompts.
        length: Digits of what is copied or sorted, and of each number that is added.
        shortest: Fewest digits, of each prompt so many at random; None: always `length`.
        seed: Of the prompts.
        part: `train` or `test`: out of nine tenths of all prompts there can be, or out of the other
            tenth, so that they share none, whatever the seeds; `all`.

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
        part: Part = "all",
    ) -> None:
        size = whole("size", size, 1)
        if isinstance(task, list | tuple):
            raise ConfigurationError(
                f"task={task!r}: write several with a plus in between, "
                f"{'+'.join(map(str, task)) or 'copy+sort'}"
            )
        tasks = [_named(one, length) for one in str(task).split("+")]
        if shortest is not None:
            shortest = whole("shortest", shortest, 1, min(longest for _, longest in tasks))
        check_one_of("part", part, get_args(Part))
        rng = random.Random(whole_seed("seed", seed))
        rows: list[dict[str, Any]] = []
        known: set[str] = set()
        tries = misses = 0
        while len(rows) < size:
            make, longest = tasks[len(rows) % len(tasks)]
            prompt, answer = make(rng, rng.randint(shortest or longest, longest))
            tries += 1
            is_test = zlib.crc32(prompt.encode()) % 10 == 0
            if part != "all" and is_test != (part == "test"):
                misses += 1
                if misses > 10_000:
                    raise ConfigurationError(
                        f"part={part!r}: there is no prompt in it like {prompt!r}; make them longer"
                    )
                continue
            misses = 0
            if prompt in known and tries < 200 * size:
                continue
            known.add(prompt)
            rows.append({"prompt": prompt, "answer": answer, "completion": answer})
        super().__init__(rows)


def _named(task: str, length: int) -> tuple[Callable[..., tuple[str, str]], int]:
    """What makes a prompt and its answer, and how many digits these have at most."""
    name, _, own = task.partition(":")
    if name not in TASKS:
        raise ConfigurationError(
            f"task={task!r}: use one of {', '.join(TASKS)}, or several, copy+sort"
        )
    return TASKS[name], whole("length", int(own) if own.isdecimal() else own or length, 1, 18)
