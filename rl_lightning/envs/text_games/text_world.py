"""TextWorld-v0: small quests in houses that are drawn anew, played by commands."""

from typing import Any
from weakref import WeakKeyDictionary

import gymnasium as gym
from gymnasium.error import ResetNeeded

from rl_lightning.core.errors import ConfigurationError, check_finite, is_whole, whole
from rl_lightning.envs.text import is_printable, text_space
from rl_lightning.envs.text_games.admissible import AdmissibleActions
from rl_lightning.envs.text_games.games import Session, Settings, find_game
from rl_lightning.envs.text_games.telling import Goal, tell_goal, tell_state

LONGEST_COMMAND = 120


class TextWorldGame(gym.Env[str, str]):
    """Play a game that TextWorld has made, by commands such as "open gate".

    Observations are what the player sees: the room, what is in it, its exits, what is carried (see
    `tell_state`). What lies in closed things and in other rooms is not told. `info` holds
    `admissible_actions`, the commands that change something, in alphabetical order, and at the
    beginning and the end of an episode `game_seed` and `success`; at the beginning also `goal`. Any
    other command does nothing and takes a turn. Doing what is wanted terminates with success; what
    TextWorld holds for lost terminates without; the time limit truncates.

    `reset(options={"game_seed": k})` plays one certain game; otherwise its seed is drawn from
    `seed_range`, so disjoint ranges keep training and held-out games apart. A game is made when it
    is first played, in 0.3 s with the defaults, and kept on disk (see `find_game`): a range of a
    thousand costs five minutes, once. Choosing at random succeeds in a quarter of the episodes.

    A copy, or one whose state is read from a checkpoint, plays the game up to where it stood.

    Args:
        quest_length: Commands that the quest is made of; now and then a shorter way is there.
        rooms: Rooms of the house; from a dozen on a game takes seconds to make.
        objects: Things in it, some of which the quest needs.
        seed_range: Half-open range of game seeds.
        goal: How the goal is told: "steps", all commands of the way it was made for; "last", the
            last one alone, so that the way is to be found; "story", all of them in TextWorld's
            flowery words.
        max_steps: Time limit in steps.
        win_reward: Reward for success.
        progress_reward: Reward for each command by which the shortest known way to success has got
            shorter, and its negative for each by which it has got longer: over a game that is won,
            the length of that way at the beginning times this, whatever the detours.
        step_reward: Reward of every step.
        render_mode: "ansi" or None.

    Raises:
        ConfigurationError: If an argument is out of its range, if there is no such game, or if
            textworld is not installed.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self,
        quest_length: int = 4,
        rooms: int = 4,
        objects: int = 8,
        seed_range: tuple[int, int] | list[int] = (0, 1000),
        goal: Goal = "steps",
        max_steps: int = 30,
        win_reward: float = 1.0,
        progress_reward: float = 0.0,
        step_reward: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.settings = Settings(
            whole("quest_length", quest_length, 1),
            whole("rooms", rooms, 1),
            whole("objects", objects, 1),
        )
        self.seed_range = _range(seed_range)
        self.goal: Goal = goal
        self.max_steps = whole("max_steps", max_steps, 1)
        for name, value in (
            ("win_reward", win_reward),
            ("progress_reward", progress_reward),
            ("step_reward", step_reward),
        ):
            check_finite(name, value)
        self.win_reward, self.step_reward = float(win_reward), float(step_reward)
        self.progress_reward = float(progress_reward)
        modes = (None, *self.metadata["render_modes"])
        if render_mode not in modes:
            raise ConfigurationError(f"render_mode={render_mode!r}: expected one of {modes}")
        self.render_mode = render_mode
        tell_goal(find_game(self.settings, self.seed_range[0]), goal)  # what fails, fails here
        things = self.settings.objects + 2 * self.settings.quest_length
        self.observation_space = text_space(500 + 120 * things)
        self.action_space = text_space(LONGEST_COMMAND)
        # What is being played is all here; a session is made from it, see `_session`.
        self._game_seed: int | None = None
        self._commands: list[str] = []
        self._remaining = 0
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start a game.

        Args:
            seed: Seed of the generator that draws game seeds.
            options: Nothing, or `{"game_seed": k}`.

        Raises:
            ConfigurationError: If `options` holds anything else.
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = sorted(set(options) - {"game_seed"})
        if unknown:
            raise ConfigurationError(f"options={options!r}: expected no other key than 'game_seed'")
        drawn = options.get("game_seed")
        if drawn is None:
            drawn = self.np_random.integers(*self.seed_range)
        self._game_seed = whole("game_seed", drawn, 0)
        self._commands = []
        self._running = True
        session = self._session()
        self._remaining = self.settings.quest_length
        if self.progress_reward:
            self._remaining = session.remaining() or self._remaining
        info = self._info(session) | {"goal": tell_goal(session.game, self.goal)}
        return self._observe(session), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Say a command.

        Raises:
            ResetNeeded: If no episode is running.
        """
        if not self._running:
            raise ResetNeeded("no episode is running: call reset() before step()")
        session = self._session()
        session.play(str(action))
        self._commands.append(str(action))
        reward = self.step_reward
        if session.won:
            reward += self.win_reward
        if self.progress_reward:
            remaining = session.remaining()
            if remaining is not None:
                reward += self.progress_reward * (self._remaining - remaining)
                self._remaining = remaining
        terminated = session.won or session.lost
        truncated = not terminated and len(self._commands) >= self.max_steps
        self._running = not (terminated or truncated)
        return self._observe(session), reward, terminated, truncated, self._info(session)

    @property
    def walkthrough(self) -> list[str]:
        """The commands that the present game was made for, from its beginning."""
        return list(self._session().game.walkthrough)

    def render(self) -> str | None:  # type: ignore[override]
        """What the player sees, for "ansi"."""
        return self._observe(self._session()) if self.render_mode == "ansi" else None

    def _session(self) -> Session:
        """The game at the point that this environment's own attributes say.

        TextWorld's objects are no plain data. They are kept elsewhere, so that copying this
        environment, or writing its state into a checkpoint, is copying a seed and a list of texts.
        """
        session = _SESSIONS.get(self)
        if (
            session is None
            or (session.settings, session.seed) != (self.settings, self._game_seed)
            or session.played != self._commands
        ):
            if self._game_seed is None:
                raise ResetNeeded("no game has been drawn: call reset()")
            session = Session(self.settings, self._game_seed)
            for command in self._commands:
                session.play(command)
            _SESSIONS[self] = session
        return session

    def _observe(self, session: Session) -> str:
        text = tell_state(session.facts, session.game.infos)
        most = self.observation_space.max_length  # type: ignore[attr-defined]
        if len(text) > most or not is_printable(text):
            raise ConfigurationError(
                f"TextWorld's game {self._game_seed} is told in {len(text)} characters, where at "
                f"most {most} are expected, or in other ones than printable ASCII "
                f"({text[:80]!r}…): leave it out of seed_range"
            )
        return text

    def _info(self, session: Session) -> dict[str, Any]:
        info: dict[str, Any] = {"admissible_actions": list(session.admitted)}
        if not self._commands or not self._running:
            info |= {"game_seed": self._game_seed, "success": session.won}
        return info


_SESSIONS: "WeakKeyDictionary[TextWorldGame, Session]" = WeakKeyDictionary()


def make_text_world(max_actions: int = 32, **game: Any) -> gym.Env:
    """TextWorld-v0: observations `{"observation", "goal", "actions"}`, actions by index.

    Args:
        max_actions: Number of actions; a state may admit fewer (`info["action_mask"]`), not more.
            An index beyond those admitted does nothing and takes a turn.
        **game: Arguments of `TextWorldGame`.
    """
    made = TextWorldGame(**game)
    longest = 500 + 200 * made.settings.quest_length
    return AdmissibleActions(
        made,
        max_actions,
        otherwise="",
        max_action_length=LONGEST_COMMAND,
        max_goal_length=longest,
    )


def _range(value: Any) -> tuple[int, int]:
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(is_whole, value))
    if not pair or not 0 <= value[0] < value[1]:
        raise ConfigurationError(f"seed_range={value!r}: expected two integers, 0 <= low < high")
    return int(value[0]), int(value[1])
