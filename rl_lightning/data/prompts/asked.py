"""Prompts as a language model reads them: texts and chats, cut into tokens once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.data.prompts.table import Prompts, check_encodable
from rl_lightning.llm.prompt import Template
from rl_lightning.llm.tokens import Tokens

AT_ONCE = 1_000  # texts that a tokenizer is given


class Asked(NamedTuple):
    """Some prompts: token ids, what they are as texts or chats, and all else, by column."""

    ids: list[list[int]]
    prompts: list[Any]
    columns: dict[str, list[Any]]


class PromptTokens:
    """Token ids of prompts, each made once.

    Args:
        table: The prompts.
        tokens: Cuts texts into tokens.
        template: Text with fields in braces, `prompt` and other columns that are texts; None: the
            prompt as it is.
        chat: Put texts into the tokenizer's chat template, as a user's message. Chats always are.
        system: What a chat begins with, in front of the user's message.
        where: What messages call the table.

    Raises:
        ConfigurationError: If a template names what there is not, or chats meet a tokenizer
            without a chat template.
    """

    def __init__(
        self,
        table: Prompts,
        tokens: Tokens,
        template: str | None = None,
        chat: bool = False,
        system: str | None = None,
        where: str = "data.prompts",
    ) -> None:
        self.table, self.tokens, self.where = table, tokens, where
        self.chat, self.system = chat, system
        names = ["prompt", *table.names]
        self.template = None if template is None else Template(template, names, any_end=True)
        if system is not None and not chat:
            raise ConfigurationError("data.system: it begins a chat; give chat: true with it")
        if chat:
            self._check_template("data.chat: true")
        self._ids: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.table)

    def called(self, row: int) -> str:
        """What messages call a prompt."""
        return f"{self.where}: prompt {self.table.number(row)}"

    def asked(self, rows: Sequence[int]) -> Asked:
        """Some prompts, by their numbers."""
        self._cut([i for i in rows if i not in self._ids])
        return Asked([self._ids[i] for i in rows], *self.table.batch(rows))

    def check(self, most: int, why: str, quiet: bool = True) -> None:
        """Refuse prompts of more tokens than there is room for.

        Args:
            most: Tokens of a prompt.
            why: What that comes of, for the message.
            quiet: Show no bar.

        Raises:
            ConfigurationError: That names the first that is too long.
        """
        rows = range(len(self.table))
        told = {"desc": "tokens of prompts", "unit": " prompts", "delay": 2.0, "leave": False}
        with tqdm(total=len(rows), disable=quiet, **told) as bar:
            for start in rows[::AT_ONCE]:
                part = rows[start : start + AT_ONCE]
                self._cut([i for i in part if i not in self._ids])
                for i in part:
                    if len(self._ids[i]) > most:
                        raise ConfigurationError(
                            f"{self.called(i)} has {len(self._ids[i])} tokens, and "
                            f"there is room for {most} ({why}): leave it out, shorten it, or "
                            "lower data.max_new_tokens"
                        )
                bar.update(len(part))

    def _cut(self, rows: Sequence[int]) -> None:
        texts, places = [], []
        for i in rows:
            prompt = self.table.prompt(i)
            if isinstance(prompt, str):
                prompt = self._filled(i, prompt)
            if isinstance(prompt, str) and not self.chat:
                texts.append(prompt)
                places.append(i)
            else:
                if not isinstance(prompt, str):
                    self._check_template(f"{self.called(i)} is a chat")
                self._ids[i] = self._of_chat(prompt)
        for i, ids in zip(places, self.tokens.whole(texts), strict=True):
            if not ids:
                raise ConfigurationError(
                    f"{self.called(i)} has no token: a model needs one to go on from"
                )
            self._ids[i] = ids

    def _filled(self, i: int, prompt: str) -> str:
        if self.template is None:
            return prompt
        values = {"prompt": prompt, **self.table.columns(i)}
        for name in self.template.fields:
            if not isinstance(values.get(name), str):
                raise ConfigurationError(
                    f"{self.called(i)}: data.template names {{{name}}}, and that is "
                    f"{shortened(repr(values.get(name)), 60)}, which is no text"
                )
        text = self.template(values)
        check_encodable(text, f"{self.called(i)}, in data.template,")
        return text

    def _check_template(self, why: str) -> None:
        if getattr(self.tokens.tokenizer, "chat_template", None) is None:
            raise ConfigurationError(
                f"{why}, but this model's tokenizer has no chat template; give texts with chat: "
                "false, or an instruction-tuned model"
            )

    def _of_chat(self, prompt: Any) -> list[int]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        text = self.tokens.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.tokens.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
