"""Steps in words: where they began, what was done, where they led to."""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.core.spaces import is_text
from rl_lightning.core.types import EnvSpec
from rl_lightning.encoders.choices import ENTRY
from rl_lightning.rewards.reward import Step
from rl_lightning.rewards.texts import Entry, template_fields

FIELDS = ("before", "action", "after")


class Captions:
    """A text of each step, by a template of `{before}`, `{action}` and `{after}`.

    Args:
        spec: The environment's spaces.
        entry: Where the text of an observation stands.
        template: Holds `{after}`, and may hold the others.
        actions: What the actions are called, in their order; None: what the observation's entry
            `actions` says, or else the environment.

    Attributes:
        of_state: Whether the text is a function of where the step led to.

    Raises:
        ConfigurationError: If the template is none, or asks for actions that nobody can name.
    """

    def __init__(
        self, spec: EnvSpec, entry: Entry, template: str, actions: Sequence[str] | None = None
    ) -> None:
        self.entry, self.template = entry, template
        self.fields = template_fields("template", template, FIELDS, ("after",))
        self.of_state = self.fields == {"after"}
        if actions is not None and "action" not in self.fields:
            raise ConfigurationError(
                "data.rewards: actions names what a template without {action} does not say; leave "
                "it out, or put {action} into the template"
            )
        self.names = ActionTexts(spec, actions) if "action" in self.fields else None

    def __call__(self, step: Step, rows: Sequence[int]) -> list[str]:
        """The texts of some environments' steps."""
        after = self.entry(step.next_obs)
        if self.of_state:
            return [self.template.format(after=after[b]) for b in rows]
        before = self.entry(step.obs)
        did = [""] * len(after) if self.names is None else self.names(step, rows)
        return [self.template.format(before=before[b], action=did[b], after=after[b]) for b in rows]

    def of(self, texts: Sequence[str]) -> list[str]:
        """The same of observations' texts, where `of_state`."""
        return [self.template.format(after=text) for text in texts]


class ActionTexts:
    """What discrete actions are called in words.

    Args:
        spec: The environment's spaces.
        actions: A text for each; None: see `Captions`.

    Raises:
        ConfigurationError: If the actions are not discrete, or nobody says what they are called.
    """

    def __init__(self, spec: EnvSpec, actions: Sequence[str] | None) -> None:
        space, there = spec.action_space, spec.observation_space
        if not isinstance(space, gym.spaces.Discrete):
            raise ConfigurationError(
                f"data.rewards: {{action}} needs actions with names, and those of {spec.id} are "
                f"{shortened(space)}: leave it out"
            )
        self.count, self.start = int(space.n), int(space.start)
        listed = isinstance(there, gym.spaces.Dict) and is_text(there.spaces.get(ENTRY, there))
        self.listed = actions is None and listed
        names = spec.action_names if actions is None else actions
        self.names = [] if self.listed else list(names or ())
        if not self.listed and not self.names:
            raise ConfigurationError(
                f"data.rewards: nobody says what the {self.count} actions of {spec.id} are called; "
                "give actions: [...], a text for each, or leave {action} out of the template"
            )
        texts = all(isinstance(name, str) and name.strip() for name in self.names)
        if not self.listed and not (texts and len(self.names) == self.count):
            raise ConfigurationError(
                f"data.rewards: actions must be {self.count} texts, one for each action of "
                f"{spec.id}, not {shortened(repr(self.names), 80)}"
            )

    def __call__(self, step: Step, rows: Sequence[int]) -> list[str]:
        """Of every environment what was done, `[B]`; "" beside `rows`.

        Raises:
            RunError: If an observation does not name the action that was taken.
        """
        index = np.asarray(step.action).reshape(-1) - self.start
        out = [""] * len(index)
        for b in rows:
            names = step.obs[ENTRY][b].split("\n") if self.listed else self.names
            if not 0 <= index[b] < len(names):
                raise RunError(
                    f"data.rewards: action {int(index[b]) + self.start} has no name among "
                    f"{shortened(repr(names), 120)}"
                )
            out[b] = names[int(index[b])]
        return out
