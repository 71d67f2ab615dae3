"""Observations in words, and what may be done in words, as rows of tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.core.spaces import is_text
from rl_lightning.core.types import EnvSpec
from rl_lightning.llm import Backbone
from rl_lightning.llm.prompt import Prompter, Template, check_candidates
from rl_lightning.llm.rows import Rows, make_rows

ENTRY = "actions"
"""The entry of a Dict observation that holds what may be done, a line each."""
_BETWEEN, _BEFORE = "\x1f", "\x1e"  # candidates from each other, and from the prompt


class Choices:
    """States and what may be done in them: as one text each (a key), and as rows of tokens.

    Args:
        spec: Of an environment with texts in its observations and Discrete actions.
        backbone: Whose tokens and positions count.
        actions: What the actions are called; None: an entry of the observation says it, or the
            environment.
        template: See `rl_lightning.llm.prompt.Template`.
        chat: See `rl_lightning.llm.prompt.Prompter`.
        max_length: Most tokens of a prompt.
        max_actions_length: Most tokens of a state's actions, where the observation says them.

    Attributes:
        count: Actions there are, A.
        names: What they are called, or None where each observation says it.
        fixed: Their token ids, or None.
        budget: Most tokens of all candidates of a state.
        width: Most tokens of a row.

    Raises:
        ConfigurationError: If there is no text, no action in words, or too little room.
    """

    def __init__(
        self,
        spec: EnvSpec,
        backbone: Backbone,
        actions: Sequence[str] | None,
        template: str | None,
        chat: bool,
        max_length: int,
        max_actions_length: int,
    ) -> None:
        space = spec.observation_space
        self.is_dict = isinstance(space, gym.spaces.Dict)
        self.entries = _texts_of(spec)
        self.count = int(spec.action_space.n)  # type: ignore[attr-defined]
        listed = ENTRY in self.entries
        self.template = Template(template, [*self.entries, *([] if listed else [ENTRY])])
        self.names = _names(actions, listed, spec, self.count)
        self.pad_id, self.positions = backbone.tokens.pad_id, backbone.positions
        self.prompter = Prompter(backbone.tokens, self.template, chat, backbone.encoder_decoder)
        self.max_length, self.budget = max_length, max_actions_length
        self.fixed: list[list[int]] | None = None
        if self.names is not None:
            try:
                self.fixed = [self.prompter.candidate(name) for name in self.names]
                self._check_positions(self.fixed)
            except RunError as error:
                raise ConfigurationError(str(error)) from None
            self.budget = sum(map(len, self.fixed))
        self.width = self.max_length + self.budget

    def rules(self) -> tuple[Any, ...]:
        """All that decides how an observation becomes a row."""
        names = None if self.names is None else tuple(self.names)
        sizes = (self.max_length, self.budget, self.count)
        return (self.template.text, self.prompter.chat, names, *sizes)

    def unread(self, space: gym.Space) -> set[tuple[Any, ...]]:
        """Entries of observations that are never looked at."""
        if not isinstance(space, gym.spaces.Dict):
            return set()
        read = {*self.template.fields, *([ENTRY] if self.names is None else [])}
        return {(name,) for name in space.spaces if name not in read}

    def keys(self, obs: Any) -> Sequence[str]:
        """Each state as one text: the prompt, and what may be done where that is not always the
        same.

        Args:
            obs: Raw observations, `B` texts or a mapping of columns of texts.
        """
        if isinstance(obs, str):
            raise TypeError("expected a sequence of texts, one per environment, not one text")
        if not self.is_dict:
            return [self._key({"observation": text}) for text in obs]
        columns = {name: obs[name] for name in self.entries}
        rows = zip(*columns.values(), strict=True)
        return [self._key(dict(zip(columns, row, strict=True))) for row in rows]

    def _key(self, values: Mapping[str, str]) -> str:
        if self.names is not None:
            return self.template({ENTRY: ", ".join(self.names), **values})
        own = values[ENTRY].split("\n")
        shown = self.template({**values, ENTRY: ", ".join(own)})
        return f"{shown}{_BEFORE}{_BETWEEN.join(own)}"

    def rows(self, keys: Sequence[str]) -> tuple[Rows, Tensor]:
        """Rows of token ids `[M, W]`, and how many words each candidate has, int32 `[M, A]`.

        Raises:
            RunError: If a state's candidates are none, too many or too long, or one is twice there.
        """
        parsed = [self._parse(key) for key in keys]
        prompts = self.prompter.prompts([shown for shown, _ in parsed])
        candidates = [self.fixed or self._candidates(own) for _, own in parsed]
        words = torch.zeros(len(keys), self.count, dtype=torch.int32)
        for m, (_, own) in enumerate(parsed):
            words[m, : len(own)] = torch.tensor([len(text.split()) for text in own])
        return make_rows(prompts, candidates, self.pad_id, self.width), words

    def _parse(self, key: str) -> tuple[str, list[str]]:
        if self.names is not None:
            return key, self.names
        shown, _, rest = key.rpartition(_BEFORE)
        # A blank line is refused later: left out, it would give all behind it other numbers.
        return shown, rest.split(_BETWEEN) if rest else []

    def _candidates(self, texts: list[str]) -> list[list[int]]:
        if not texts:  # where an episode has ended there may be nothing left to do
            return []
        check_candidates(texts, self.count, f"the observation's entry {ENTRY!r}")
        ids = [self.prompter.candidate(text) for text in texts]
        if (total := sum(map(len, ids))) > self.budget:
            raise RunError(
                f"the actions of a state are {total} tokens together, and max_actions_length is "
                f"{self.budget}: raise it"
            )
        self._check_positions(ids)
        return ids

    def _check_positions(self, ids: list[list[int]]) -> None:
        longest = max(map(len, ids))
        if self.positions is not None and self.max_length + longest - 1 > self.positions:
            raise RunError(
                f"max_length={self.max_length} and an action of {longest} tokens are more than the "
                f"{self.positions} tokens the model reads: lower max_length"
            )


def _texts_of(spec: EnvSpec) -> list[str]:
    """Names of the texts in an observation."""
    space = spec.observation_space
    if is_text(space):
        return ["observation"]
    parts = space.spaces if isinstance(space, gym.spaces.Dict) else {}
    names = [name for name, part in parts.items() if is_text(part)]
    if not [name for name in names if name != ENTRY]:
        raise ConfigurationError(
            f"TextActionEncoder reads text, but observations of {spec.id} are {shortened(space)}: "
            "wrap the environment in `Describe`, which puts observations into words"
        )
    return names


def _names(
    actions: Sequence[str] | None, listed: bool, spec: EnvSpec, count: int
) -> list[str] | None:
    """What the actions are called, or None where each observation says it."""
    if actions is None and listed:
        return None
    given = spec.action_names if actions is None else actions
    if given is None:
        raise ConfigurationError(
            f"TextActionEncoder: nobody says what the {count} actions of {spec.id} are called; "
            "give actions: [...], a text for each"
        )
    try:
        check_candidates(given, count, "actions")
    except RunError as error:
        raise ConfigurationError(str(error)) from None
    if len(given) != count:
        raise ConfigurationError(
            f"actions: {len(given)} texts for the {count} actions of {spec.id}; give one for each"
        )
    return list(given)
