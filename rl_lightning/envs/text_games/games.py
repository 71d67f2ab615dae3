"""TextWorld's games: made by seed, kept on disk, and played without its interpreter.

TextWorld compiles a game for a Z-machine (3 s a game, 19 ms a step) or plays it as logic (2 ms a
step), where it has no texts. This is the second way; `telling` has the texts.
"""

import contextlib
import copy
import importlib
import json
import os
import uuid
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from rl_lightning.core.cache_folder import cache_folder
from rl_lightning.core.errors import ConfigurationError, shortened

# Commands that tell what an observation tells anyway, and change nothing.
_IDLE = ("look", "inventory", "examine")
WAIT = "wait"


class Settings(NamedTuple):
    """What a game is made from, besides its seed.

    Attributes:
        quest_length: Commands that a quest is made of, at least 1.
        rooms: How many, at least 1.
        objects: Things besides rooms and doors, at least 1; a quest may bring more.
    """

    quest_length: int
    rooms: int
    objects: int


def textworld(part: str = "") -> Any:
    """TextWorld, or a module of it: imported when it is needed, which takes two seconds.

    Raises:
        ConfigurationError: If it is not installed.
    """
    try:
        return importlib.import_module(f"textworld{part}")
    except ImportError as error:
        raise ConfigurationError(
            "TextWorld-v0 needs the package textworld: pip install textworld (on Linux and macOS; "
            f"what it depends on is compiled with make and a C compiler): {shortened(error)}"
        ) from error


@lru_cache(maxsize=4096)  # 15 kB each
def find_game(settings: Settings, seed: int) -> Any:
    """The game of a seed, made the first time (0.3 s with four rooms, 4 s with twelve).

    Later, and in other processes, it is read from `cache_folder("textworld")`.

    Args:
        settings: What kind of game.
        seed: Which one.

    Returns:
        A `textworld.Game`, which nobody may change.

    Raises:
        ConfigurationError: If there is no game of these settings.
    """
    kind = "-".join(map(str, (textworld().__version__, *settings)))
    path = cache_folder("textworld") / kind / f"{seed}.json"
    # Not there, or damaged: then it is made again.
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        return _read(path.read_text())
    text = _write(_make(settings, seed))
    with contextlib.suppress(OSError):  # no room: then it is made again another time
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{seed}.{uuid.uuid4().hex}.part")
        part.write_text(text)
        os.replace(part, path)
    return _read(text)


def _make(settings: Settings, seed: int) -> Any:
    options = textworld().GameOptions()
    options.kb = _rules()
    options.nb_rooms, options.nb_objects = settings.rooms, settings.objects
    options.quest_length = settings.quest_length
    options.grammar.theme = "house"
    options.grammar.allowed_variables_numbering = True  # where names run out
    # TextWorld would draw these from 65,635 numbers, and games would repeat.
    seeds = np.random.SeedSequence(seed).generate_state(4).tolist()
    options.seeds = dict(zip(("map", "objects", "quest", "grammar"), seeds, strict=True))
    try:
        return textworld(".generator").make_game(options)
    except Exception as error:  # of its own kinds, and others'
        raise ConfigurationError(
            f"TextWorld makes no game of quest_length={settings.quest_length}, "
            f"rooms={settings.rooms}, objects={settings.objects} and seed {seed}: "
            f"{type(error).__name__}: {shortened(error)}"
        ) from error


def _rules() -> Any:
    """Those that all games have; parsing them takes longer than making a game."""
    return textworld(".generator.data").KnowledgeBase.default()


@cache
def _rules_of_play() -> Any:
    """Without the idle ones, which would be tried in every step."""
    rules = copy.copy(_rules())
    rules.rules = type(rules.rules)(
        (name, rule) for name, rule in rules.rules.items() if name.split("/")[0] not in _IDLE
    )
    return rules


def _write(game: Any) -> str:
    """A game without TextWorld's rules, which are the same for all."""
    data = game.serialize()
    kept = ("world", "quests", "infos", "metadata", "objective")
    return json.dumps({key: data[key] for key in kept})


def _read(text: str) -> Any:
    parts, data = textworld(".generator.game"), json.loads(text)
    world = textworld(".generator.world").World.deserialize(data["world"], kb=_rules_of_play())
    game = parts.Game(world)
    game.quests = tuple(parts.Quest.deserialize(quest) for quest in data["quests"])
    game.infos.update((key, parts.EntityInfo.deserialize(info)) for key, info in data["infos"])
    game.metadata, game.objective = data["metadata"], data["objective"]
    return game


class Session:
    """One game being played.

    Args:
        settings: What kind of game.
        seed: Which one.

    Attributes:
        game: The `textworld.Game`.
        played: Commands so far, also those that did nothing.
        admitted: Commands that do something now, in alphabetical order.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.game = find_game(settings, seed)
        self.played: list[str] = []
        self._names = {key: info.name for key, info in self.game.infos.items()}
        self._progress = textworld(".generator.game").GameProgression(self.game)
        self._find_actions()

    def play(self, command: str) -> None:
        """Do what a command says; one that is not admitted does nothing."""
        self.played.append(command)
        action = self._actions.get(command)
        if action is not None:
            self._progress.update(action)
            self._find_actions()

    @property
    def won(self) -> bool:
        """Whether the quest is done."""
        return bool(self._progress.completed)

    @property
    def lost(self) -> bool:
        """Whether it cannot be done any more; not seen in games that are made here."""
        return bool(self._progress.failed)

    @property
    def facts(self) -> list[Any]:
        """What is true, as TextWorld's propositions."""
        return list(self._progress.state.facts)

    def remaining(self) -> int | None:
        """Commands from here to the end on the shortest way that TextWorld knows, if it does."""
        if self.won:
            return 0
        policy = self._progress.winning_policy
        return None if policy is None else len(policy)

    def _find_actions(self) -> None:
        pairs = sorted(
            (action.format_command({v.name: self._names[v.name] for v in action.variables}), i)
            for i, action in enumerate(self._progress.valid_actions)
        )
        actions = self._progress.valid_actions
        self._actions = {command: actions[i] for command, i in reversed(pairs)}
        self.admitted = sorted(self._actions) or [WAIT]
