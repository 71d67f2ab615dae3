"""The data module of reinforcement learning over tokens in environments: episodes of many turns."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import gymnasium as gym
from lightning.pytorch.utilities import rank_zero_warn

from rl_lightning.core.charset import PRINTABLE
from rl_lightning.core.errors import ConfigurationError, check_finite, check_one_of, whole
from rl_lightning.core.ranks import gather
from rl_lightning.core.types import EnvSpec
from rl_lightning.data.collect.completions import Completed
from rl_lightning.data.collect.conversation import Conversation, Conversations, OnIllegal
from rl_lightning.data.collect.episodes import OURS, Rules, play
from rl_lightning.data.prompt_module import PromptDataModule
from rl_lightning.data.prompts.table import as_json
from rl_lightning.data.prompts.turns import TurnTokens
from rl_lightning.envs.conversations import make_text_env
from rl_lightning.envs.failures import name
from rl_lightning.envs.make import WrapperSpec
from rl_lightning.llm.sampling import Sampling
from rl_lightning.policies.parsing import ActionParser

_STAGES = ("val", "test", "predict")


class EpisodeDataModule(PromptDataModule):
    """Environments that a language model plays in words, turn by turn: a prompt is a seed.

    One step resets G copies of an environment with each of `prompts_per_step` seeds, and the model
    plays all of them side by side: it reads what the environment says, writes a turn, reads the
    answer behind it, and so on. Learned from are the tokens that it wrote itself. Training takes
    the seeds `seed`, `seed + 1`, …, evaluation `val_seed`, `val_seed + 1`, …

    An episode that becomes too long (`max_turns`, or the model's `max_length`) is cut, and counted
    by `completion/cut`. Some environments speak of success only where there is one: once an episode
    of the run has said something of it, those that say nothing are failures.

    Args:
        env: Gymnasium id (`module:Id-v0` imports the module first), or `module:function`, which
            returns an environment or what `rl_lightning.envs.as_text_env` makes one of.
            Observations are texts, or Dicts with texts; actions are texts, or Discrete ones with
            names.
        env_kwargs: Keyword arguments of the environment.
        wrappers: Wrappers by name, innermost first, see `rl_lightning.envs.make_env`.
        val_env_kwargs: What evaluation changes in `env_kwargs`, e.g. held-out levels.
        actions: What Discrete actions are called; None: an entry `actions` of the observation says
            it, line by line, or the environment.
        answer: A regular expression whose first group is the action, for models that think first:
            `<answer>(.*?)</answer>`. None: the whole turn.
        on_illegal: What a turn does that names no action: a uniformly drawn one is taken in its
            place (of texts, an empty one), and it is also paid for (`penalize`), or not
            (`replace`); or it is paid for and the episode is over (`end`). `policy/illegal` is the
            share of such turns.
        illegal_reward: What it is paid.
        max_turns: Turns after which an episode is cut.
        template: What the environment says first, a text with fields in braces, `{observation}` or
            entries of a Dict, and `{actions}`, what may be done. None: see
            `rl_lightning.llm.prompt.Template`.
        turn_template: What it answers, likewise; None: that again.
        max_new_tokens: Most tokens of a turn.
        stop: Texts that end one, beside the model's own end.
        env_reward_weight: Weight of what the environment pays.
        rewards: What whole conversations are worth beside that; they are given all that stands
            behind the prompt as one text, `seed`, and `turns`.
        success_threshold: Return from which an episode is a success where `info` does not say.
        val_episodes: Seeds of evaluation, of all ranks together.
        total_prompts: Budget, in seeds of all ranks together.
        seed: First seed of training; None: 0.
        val_seed: First seed of evaluation.
        **shared: Arguments of `PromptDataModule`.

    Raises:
        ConfigurationError: If a number is wrong, or the environment says or takes no texts.
    """

    pays = True
    held_out_by = "data.val_episodes"

    def __init__(
        self,
        env: str,
        env_kwargs: dict[str, Any] | None = None,
        wrappers: list[WrapperSpec] | None = None,
        val_env_kwargs: dict[str, Any] | None = None,
        *,
        actions: list[str] | None = None,
        answer: str | None = None,
        on_illegal: OnIllegal = "penalize",
        illegal_reward: float = -0.1,
        max_turns: int = 32,
        turn_template: str | None = None,
        env_reward_weight: float = 1.0,
        val_episodes: int = 100,
        **shared: Any,
    ) -> None:
        super().__init__(prompts=[], val_prompts=None, val_share=0.0, **shared)
        self.env, self.env_kwargs, self.wrappers = env, dict(env_kwargs or {}), wrappers or []
        self.val_env_kwargs = dict(val_env_kwargs or {})
        ActionParser(answer)  # says what is wrong with it
        self.actions, self.pattern = actions, answer
        check_one_of("data.on_illegal", on_illegal, get_args(OnIllegal))
        self.on_illegal: OnIllegal = on_illegal
        check_finite("data.illegal_reward", illegal_reward)
        check_finite("data.env_reward_weight", env_reward_weight)
        self.illegal_reward = 0.0 if on_illegal == "replace" else float(illegal_reward)
        self.env_reward_weight = float(env_reward_weight)
        self.max_turns = whole("data.max_turns", max_turns, 1)
        self.turn_template = turn_template
        self.val_episodes = whole("data.val_episodes", val_episodes, 1)
        names = [] if self.judge is None else list(self.judge.rewards)
        if taken := [name for name in names if name in OURS]:
            raise ConfigurationError(
                f"data.rewards: {taken[0]!r} is what playing is paid; give that reward another name"
            )
        self._check_seeds()

    def _check_seeds(self, ranks: int = 1) -> None:
        first = self._first_seed("train")
        step = self.prompts_per_step * ranks
        epoch = step * min(self.steps_per_epoch, math.ceil(self.total_prompts / step))
        last = first + math.ceil(self.total_prompts / epoch) * epoch  # it ends with an epoch
        for stage in _STAGES:
            begin = self._first_seed(stage)
            if begin < last and first < begin + self.val_episodes:
                raise ConfigurationError(
                    f"data.val_seed: {self.val_seed}, so that {stage} has seeds from {begin} on, "
                    f"and training has {first} to {last - 1}, in whole epochs: give one that is "
                    f"{last} at least"
                )

    def _first_seed(self, stage: str) -> int:
        if stage == "train":
            return self.seed or 0
        return self.val_seed + 1_000_000 * _STAGES.index(stage)

    def clear(self) -> None:
        super().clear()
        self._copies: dict[bool, Conversations] = {}
        self._words: TurnTokens | None = None
        self._hears = False  # whether an episode of this run has said anything of success
        self._told_unseeded = False

    @property
    def spec(self) -> EnvSpec:  # type: ignore[override]
        text = gym.spaces.Text(1_000_000, min_length=0, charset=PRINTABLE)
        return EnvSpec(text, text, self.env)

    # --- environments -------------------------------------------------------------------------

    def copies(self, evaluates: bool) -> Conversations:
        """Environments of training, or of evaluation."""
        if evaluates not in self._copies:
            kwargs = {**self.env_kwargs, **(self.val_env_kwargs if evaluates else {})}

            def make() -> Conversation:
                env = make_text_env(self.env, kwargs, self.wrappers)
                self._check_reset(env)
                return Conversation(
                    env,
                    self.actions,
                    self.pattern,
                    self.on_illegal,
                    self.success_threshold,
                )

            self._copies[evaluates] = Conversations(make)
        return self._copies[evaluates]

    def _check_reset(self, env: gym.Env) -> None:
        if getattr(env.unwrapped, "takes_seed", True) or self._told_unseeded:
            return
        self._told_unseeded = True
        rank_zero_warn(
            f"data.env: reset of {name(env)} takes no seed, so that the episodes of a group may be "
            "different tasks, and evaluations, too; give it reset(seed), or ignore this where it "
            "always begins alike"
        )

    @property
    def words(self) -> TurnTokens:
        """Makes tokens of what environments say."""
        tokens = self.model.backbone.tokens
        if self._words is None or self._words.tokens is not tokens:
            fields = self.copies(evaluates=False).take(1)[0].fields
            self._words = TurnTokens(
                tokens, fields, self.template, self.turn_template, self.chat, self.system
            )
        return self._words

    @property
    def rules(self) -> Rules:
        """How long episodes may be, and what they are worth."""
        return Rules(
            self.max_turns, self.model.max_length, self.env_reward_weight, self.illegal_reward
        )

    def drawn(self, first: int, count: int) -> list[int]:
        trainer = self._trainer
        return list(range(first + trainer.global_rank, first + count * trainer.world_size))[
            :: trainer.world_size
        ]

    @property
    def held_out(self) -> int:
        return self.val_episodes

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"env": self.env, "kwargs": as_json(self.env_kwargs).decode()}

    def changed(self, before: dict[str, Any], now: dict[str, Any]) -> str:
        return f"data.env: training began with {before}, and here is {now}"

    def open_source(self, seed: int) -> None:
        self._check_seeds(self._trainer.world_size)
        assert self.words is not None  # says what is wrong with the environment or a template

    def answer(
        self, stage: str, rows: Sequence[int], samples: int, sampling: Sampling
    ) -> Completed:
        model = self.model
        first = self._first_seed(stage)
        found = play(
            model.backbone,
            self.generator,
            self.copies(stage != "train"),
            self.words,
            [first + row for row in rows],
            samples,
            sampling,
            self.rules,
            self.judge,
            model.updates,
        )
        self._hears |= not bool(found.told["success"].isnan().all())
        return self._resolved(found)

    def _resolved(self, found: Completed) -> Completed:
        """With what nobody says as no success, once one episode of the run has said something."""
        if not self._hears:
            return found
        return found.telling(success=found.told["success"].nan_to_num())

    def more_statistics(self, found: Completed) -> dict[str, float]:
        self._hears = any(gather(self._hears))
        found = self._resolved(found)
        told = {name: float(values.nanmean()) for name, values in found.told.items()}
        illegal = told.pop("illegal")
        known = {f"train/{name}": value for name, value in told.items() if value == value}
        return {**known, "policy/illegal": illegal}

    # --- exact resuming -----------------------------------------------------------------------

    def forget(self) -> None:
        super().forget()
        self._hears = False

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "hears_success": any(gather(self._hears))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._hears = bool(state_dict.get("hears_success", False))

    def teardown(self, stage: str) -> None:
        super().teardown(stage)
        for copies in self._copies.values():
            copies.close()
        self._copies, self._words = {}, None

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        self._copies, self._words = {}, None  # to wait for one that has failed could hide why
