"""What an environment says in a conversation, as the tokens that a language model reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.prompt import Template
from rl_lightning.llm.tokens import Tokens

_MARKS = ("\x02first\x03", "\x02said\x03", "\x02then\x03")


class TurnTokens:
    """Token ids of what an environment says first, and of what it answers.

    Each is cut into tokens by itself: what stands before it, the model's own tokens above all,
    stays as it is. Control tokens in an environment's words are spelled out, and do not act.

    Args:
        tokens: Cuts texts into tokens.
        fields: Names of an observation's texts.
        template: What is said first, a text with fields in braces; None: see `Template`.
        turn_template: What is answered; None: that again, in a chat as it is, else on a new line.
        chat: Put what is said into the tokenizer's chat template, as a user's messages.
        system: What a chat begins with.

    Raises:
        ConfigurationError: If a template names what there is not, or the tokenizer has no chat
            template, or one that does not hand on what is said.
    """

    def __init__(
        self,
        tokens: Tokens,
        fields: Sequence[str],
        template: str | None = None,
        turn_template: str | None = None,
        chat: bool = False,
        system: str | None = None,
    ) -> None:
        self.tokens = tokens
        self.first = Template(template, fields)
        if turn_template is None:
            turn_template = self.first.text if chat else f"\n{self.first.text}"
        self.then = Template(turn_template, fields)
        self.chat = chat
        if system is not None and not chat:
            raise ConfigurationError("data.system: it begins a chat; give chat: true with it")
        if chat:
            self.before, self.between, self.behind = _around(tokens.tokenizer, system)

    def begin(self, values: Mapping[str, str]) -> tuple[str, list[int]]:
        """What is said first: as a text, and the tokens that a model goes on from."""
        text = self.first(values)
        if self.chat:
            return text, [*self.before, *self.tokens.plain(text), *self.behind]
        return text, self.tokens.whole([text])[0]

    def answer(self, values: Mapping[str, str], last: int) -> list[int]:
        """Tokens of what is answered.

        Args:
            values: Texts by the names of their fields.
            last: The token that the model wrote last: one that ends its message is not said again.
        """
        ids = self.tokens.plain(self.then(values))
        if not self.chat:
            return ids
        between = self.between[1:] if self.between[:1] == [last] else self.between
        return [*between, *ids, *self.behind]


def _around(tokenizer: Any, system: str | None) -> tuple[list[int], list[int], list[int]]:
    """Tokens before a chat's first message, from the model's message to the next one, and from
    there to where the model writes."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigurationError(
            "data.chat: true, but this model's tokenizer has no chat template; leave it out, or "
            "give an instruction-tuned model"
        )
    first, said, then = _MARKS
    messages = [
        {"role": "user", "content": first},
        {"role": "assistant", "content": said},
        {"role": "user", "content": then},
    ]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, _, rest = text.partition(first)
    _, _, rest = rest.partition(said)
    between, found, behind = rest.partition(then)
    if not found or not behind:
        raise ConfigurationError(
            "data.chat: true, but this model's chat template does not hand on messages as they "
            "are, or leaves nothing for the model to answer; use chat: false"
        )
    return tuple(
        tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        for part in (before, between, behind)
    )  # type: ignore[return-value]
