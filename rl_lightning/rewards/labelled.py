"""What a labeller says of a step is its reward."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards.asked import Asked
from rl_lightning.rewards.captions import Captions
from rl_lightning.rewards.labels import Labeller
from rl_lightning.rewards.reward import StateReward, Step
from rl_lightning.rewards.texts import text_entry

Every = Literal["step", "episode_end"]


class LabelledReward(StateReward):
    """r = the number that a labeller gives to a text of the step: a judge's verdict.

    The judge may be a language model that writes its verdict (`EndpointLabeller`, or on this
    machine `WritingLabeller`), one that chooses among verdicts (`OptionLabeller`), a file or a
    rule. A text is judged once. A step without a verdict is worth 0, and counted.

    A checkpoint does not say who the labeller was: whoever goes on from it gives it anew.

    Args:
        spec: Of an environment whose observations are, or hold, a text.
        labeller: Whom to ask, about a single text.
        template: That text, of `{before}`, `{action}` and `{after}`; `{after}` by itself is the
            observation that the step leads to.
        entry: The entry of a Dict or Tuple observation that is told; None: the observation itself,
            or the one text in it.
        actions: What `{action}` is, a text for each action; None: what the observation's entry
            `actions` says, a line each, or else what the environment's are called.
        every: Judge each `step`, or only the last one of an episode (`episode_end`); the others are
            worth 0.
        remember: Most verdicts remembered.
        **shared: `weight`, `name`, `shaping` and `offset`, see `StateReward`. Shaping needs a
            function of the state: `{after}` alone, at every step.

    Raises:
        ConfigurationError: If there is no such text, or if arguments do not go together.
    """

    def __init__(
        self,
        spec: EnvSpec,
        labeller: Labeller,
        template: str = "{after}",
        entry: str | None = None,
        actions: list[str] | None = None,
        every: Every = "step",
        remember: int = 100_000,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        if every not in get_args(Every):
            raise ConfigurationError(
                f"data.rewards: every must be one of {get_args(Every)}, not {every!r}"
            )
        self.every = every
        self.entry = text_entry(spec, entry, type(self).__name__)
        self.captions = Captions(spec, self.entry, template, actions)
        self.asked = Asked(labeller, False, remember)
        if self.shaping == "potential" and not (self.captions.of_state and every == "step"):
            wrong = "every: episode_end" if every != "step" else f"template: {template!r}"
            raise ConfigurationError(
                f"data.rewards: shaping: potential needs a function of the state, which {wrong} is "
                "not; leave out one of them"
            )

    def value(self, obs: Any) -> np.ndarray:
        return self._verdicts(self.captions.of(self.entry(obs)))

    def __call__(self, step: Step) -> Any:
        if self.shaping == "potential":
            return super().__call__(step)
        judged = step.valid
        if self.every == "episode_end":
            judged = judged & (step.terminated | step.truncated)
        rows = np.flatnonzero(judged)
        out = np.zeros(len(judged))
        if len(rows):
            out[rows] = self._verdicts(self.captions(step, rows.tolist()))
        return out

    def _verdicts(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([0.0 if one is None else one for one in self.asked(texts)])

    def metrics(self) -> dict[str, float]:
        return self.asked.metrics()

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked.state_dict()}

    def load_state_dict(self, state: Any) -> None:
        self.asked.load_state_dict(state["asked"])
