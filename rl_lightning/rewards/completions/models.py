"""Models as judges of completions: a learned reward, and whoever answers questions."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch

from rl_lightning.core.errors import ConfigurationError, whole
from rl_lightning.core.types import EnvSpec
from rl_lightning.rewards.completions.reward import (
    CompletionReward,
    Prompt,
    as_text,
    column_of,
)
from rl_lightning.rewards.labels import Labeller
from rl_lightning.rewards.learned import load_reward_model
from rl_lightning.rewards.texts import template_fields

_TEXTS = EnvSpec(gym.spaces.Text(1), gym.spaces.Discrete(1), "a completion")


class RewardModelReward(CompletionReward):
    """What a `RewardModel` has learned of texts from comparisons: r of prompt and completion.

    The model is frozen. Such comparisons are a JSONL file of `{"a": text, "b": text, "label": 1}`,
    see `PreferenceDataModule`, where each text is written as `template` writes it.

    Args:
        ckpt_path: A checkpoint of a `RewardModel` of texts, read as plain data: no code of the
            file's runs.
        template: The text, of `{prompt}` and `{completion}`; of a chat the prompt is a line
            `role: content` for each message, and `assistant:`.
        normalize: Subtract the mean of r over the model's training texts, and divide by its
            standard deviation, which stand in the checkpoint; otherwise r is paid as it is.
        batch_size: Texts that the model reads at a time.
        device: Where it computes.
        trusted: Packages outside this library whose classes the checkpoint may name.
        **shared: `weight` and `name`, see `CompletionReward`.

    Raises:
        ConfigurationError: If the file is no such checkpoint, or an argument is wrong.
    """

    def __init__(
        self,
        ckpt_path: str,
        template: str = "{prompt}{completion}",
        normalize: bool = True,
        batch_size: int = 64,
        device: str = "cpu",
        trusted: Sequence[str] = (),
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        template_fields("template", template, ("prompt", "completion"), ("completion",))
        self.template, self.batch_size = template, whole("batch_size", batch_size, 1)
        self.model = load_reward_model(ckpt_path, _TEXTS, trusted).to(torch.device(device))
        if self.model.inputs != "next_obs":
            raise ConfigurationError(
                f"ckpt_path: {ckpt_path} holds a model of transitions, and a completion is none; "
                "give one of inputs: next_obs"
            )
        statistics = self.model.statistics
        if normalize and statistics is None:
            raise ConfigurationError(
                f"ckpt_path: {ckpt_path} holds no statistics of its reward, because it was never "
                "trained; give normalize: false to pay it as it is"
            )
        # A model that says the same of everything has no spread to divide by.
        self.mean, self.std = (
            (statistics["mean"], statistics["std"] or 1.0) if normalize else (0.0, 1.0)
        )

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float]:
        texts = tuple(
            self.template.format(prompt=as_text(prompt), completion=completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        )
        starts = range(0, len(texts), self.batch_size)
        r = [self.model.score(texts[s : s + self.batch_size]).double().cpu() for s in starts]
        return [] if not r else ((torch.cat(r) - self.mean) / self.std).tolist()


class LabellerReward(CompletionReward):
    """The number that a labeller answers to a question about a completion: a judge's verdict.

    The judge may be a language model that writes its verdict (`EndpointLabeller`, or on this
    machine `WritingLabeller`), one that chooses among verdicts (`OptionLabeller`), a file or a
    rule. Equal questions are asked once, of a `cache` over all runs. A completion without a verdict
    is not judged, and counted.

    A checkpoint does not say who the labeller was: whoever goes on from it gives it anew.

    Args:
        labeller: Whom to ask, about a single text.
        template: That text, of `{completion}`, `{prompt}` and columns of the data, such as
            `{answer}`; of a chat the prompt is a line `role: content` for each message, and
            `assistant:`. What is to be answered stands here, or in the labeller's own template.
        **shared: `weight` and `name`, see `CompletionReward`.

    Raises:
        ConfigurationError: If the template is none, or, when judging, names a column that there is
            not.
    """

    def __init__(
        self, labeller: Labeller, template: str = "{prompt}\n\n{completion}", **shared: Any
    ) -> None:
        super().__init__(**shared)
        if not isinstance(labeller, Labeller):
            raise ConfigurationError(
                f"labeller must be a labeller, such as RuleLabeller(function), not {labeller!r}"
            )
        self.labeller, self.template = labeller, template
        fields = template_fields("template", template, None, ("completion",))
        self.columns = sorted(fields - {"prompt", "completion"})

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any
    ) -> list[float | None]:
        named = {name: column_of(columns, name, self.label) for name in self.columns}
        fill = self.template.format
        return self.labeller(
            [
                fill(
                    prompt=as_text(prompt),
                    completion=completion,
                    **{name: values[row] for name, values in named.items()},
                )
                for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
            ]
        )

    def metrics(self) -> dict[str, float]:
        return self.labeller.metrics()
