"""From named texts to the tokens that a model is asked to go on from, and of what it may say."""

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.llm.tokens import Tokens

_TAIL = 24  # characters of a prompt's end that may decide how what follows is cut into tokens
_MESSAGE = "\x02message\x03"


class Template:
    """A text with named fields, such as `"{goal}\\n{observation}\\nAction:"`.

    Args:
        text: Fields in braces, by their names alone; `{{` and `}}` are braces. None: each field on
            a line with its name, then `Action:`.
        fields: The names there are, in order; `actions` is what may be said.
        any_end: Allow any: what follows is tokens by itself, and never cut as one text with this.

    Attributes:
        fields: Names that occur in it.
        end: Its last literal characters.

    Raises:
        ConfigurationError: If it names a field that there is not, or none, or ends in white space
            or in a field: then how an action is cut into tokens would depend on what precedes it.
    """

    def __init__(self, text: str | None, fields: Sequence[str], any_end: bool = False) -> None:
        if text is None:
            named = [name for name in fields if name != "actions"]
            lines = ["{observation}"] if named == ["observation"] else [
                f"{name.capitalize()}: {{{name}}}" for name in named
            ]  # fmt: skip
            text = "\n".join([*lines, "Action:"])
        self.text = text
        there = f"there {'is' if len(fields) == 1 else 'are'} {', '.join(map(repr, fields))}"
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(
                f"template={shortened(text, 80)!r}: {error}; a brace by itself is doubled"
            ) from None
        self._parts: list[tuple[str, str | None]] = []
        for literal, name, spec, conversion in parsed:
            if name is not None and (spec or conversion or name not in fields):
                asked = (
                    name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                )
                raise ConfigurationError(
                    f"template={shortened(text, 80)!r}: no field {{{asked}}}; {there}"
                )
            self._parts.append((literal, name))
        self.fields = [name for _, name in self._parts if name is not None]
        if not self.fields:
            raise ConfigurationError(
                f"template={shortened(text, 80)!r} names no field, so that the model would see no "
                f"observation; {there}"
            )
        self.end = self._parts[-1][0] if self._parts[-1][1] is None else ""
        if any_end:
            return
        if not self.end:
            raise ConfigurationError(
                f"template={shortened(text, 80)!r} ends in a field, so that how actions are cut "
                "into tokens would depend on it: end it in a word of your own, such as 'Action:'"
            )
        if self.end[-1] in " \t":
            raise ConfigurationError(
                f"template={shortened(text, 80)!r} ends in a space: most tokenizers put the space "
                "into the word that follows, so that the tokens of prompt and action would not be "
                "those of the whole; end it without (actions get the space by themselves)"
            )

    def __call__(self, values: Mapping[str, str]) -> str:
        """The text of one state."""
        return "".join(
            literal if name is None else literal + values[name] for literal, name in self._parts
        )


class Prompter:
    """Tokens of prompts, and of candidates as they stand behind a prompt.

    The tokens of prompt and candidate are those of the whole text: a candidate is cut into tokens
    behind the end of the template, and refused if the two would run into each other.

    Args:
        tokens: Cuts texts into tokens; longer prompts lose their beginning.
        template: Ends all prompts.
        chat: Put what the template gives into the tokenizer's chat template, as the user's message.
        writes_apart: Whether the model writes by another half than it reads (an encoder-decoder):
            then candidates are cut by themselves.

    Raises:
        ConfigurationError: If `chat` is asked of a tokenizer without a chat template.
    """

    def __init__(
        self, tokens: Tokens, template: Template, chat: bool = False, writes_apart: bool = False
    ) -> None:
        self.tokens = tokens
        self.writes_apart = writes_apart
        self._before: list[int] = []
        self._after: list[int] = []
        self.chat = chat
        end = template.end
        if chat:
            before, end = _chat_around(tokens.tokenizer)
            self._before, self._after = _raw(tokens.tokenizer, before), _raw(tokens.tokenizer, end)
        self._glue = "" if writes_apart or end[-1:].isspace() or not end else " "
        self._tail = "" if writes_apart else end[-_TAIL:]
        self._tail_ids = _raw(tokens.tokenizer, self._tail) if chat else tokens.plain(self._tail)
        self._raw_tail = chat
        self._known: dict[str, list[int]] = {}

    def own_ids(self) -> set[int]:
        """Ids that it puts into every row, and those of candidates that it has cut already."""
        every = (self._before, self._after, self._tail_ids, *self._known.values())
        return {token for ids in every for token in ids}

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of what the template gave, at most `tokens.max_length` of them."""
        rows = self.tokens(texts)
        first, behind = self.tokens.around
        if self.chat:
            room = self.tokens.max_length - len(self._before) - len(self._after)
            if room < 1:
                raise ConfigurationError(
                    f"max_length={self.tokens.max_length} leaves no room beside the chat "
                    f"template's {len(self._before) + len(self._after)} tokens: raise it"
                )
            inner = (row[first : len(row) - behind][-room:] for row in rows)
            return [[*self._before, *row, *self._after] for row in inner]
        if behind and not self.writes_apart:
            return [row[:-behind] for row in rows]
        return rows

    def candidate(self, text: str) -> list[int]:
        """Token ids of a candidate behind a prompt.

        Raises:
            RunError: If it is no text, has no token, or runs into the prompt.
        """
        known = self._known.get(text)
        if known is not None:
            return known
        if not isinstance(text, str):
            raise RunError(f"an action must be a text, not {text!r}")
        glued = text if text[:1].isspace() else self._glue + text
        if self._raw_tail:
            whole = [*self._tail_ids, *self.tokens.plain(glued)]
        else:
            whole = self.tokens.plain(self._tail + glued)
        cut = len(self._tail_ids)
        ids = whole[cut:]
        if whole[:cut] != self._tail_ids:
            raise RunError(
                f"the action {shortened(text, 60)!r} runs into the end of the template, "
                f"{self._tail!r}: their tokens together are not those of each; end the template "
                "in another sign, such as ':'"
            )
        if not ids or not text.strip():
            raise RunError(f"the action {shortened(text, 60)!r} has no token: leave it out")
        if len(self._known) < 100_000:
            self._known[text] = ids
        return ids


def check_candidates(texts: Sequence[str], most: int, whose: str) -> None:
    """Refuse what is no choice: nothing, too many, or the same twice.

    Args:
        texts: The candidates.
        most: So many actions the environment has.
        whose: What messages call them.

    Raises:
        RunError: That says which.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise RunError(f"{whose}: expected a list of texts, not {shortened(repr(texts), 80)}")
    if not texts:
        raise RunError(f"{whose}: there is no candidate to choose from")
    if len(texts) > most:
        raise RunError(f"{whose}: {len(texts)} candidates for an action space of {most}")
    seen: set[str] = set()
    for text in texts:
        if text.strip() in seen:
            raise RunError(
                f"{whose}: {shortened(text, 60)!r} stands there twice, and only one of them could "
                "be meant"
            )
        seen.add(text.strip())


def _chat_around(tokenizer: Any) -> tuple[str, str]:
    """What a chat template puts before and behind a user's message."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigurationError(
            "chat=True: this model's tokenizer has no chat template; leave it out, or give an "
            "instruction-tuned model"
        )
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MESSAGE}], tokenize=False, add_generation_prompt=True
    )
    before, found, after = whole.partition(_MESSAGE)
    if not found or not after:
        raise ConfigurationError(
            "chat=True: this model's chat template does not hand on the user's message as it is, "
            "or leaves nothing for the model to answer; use a plain template"
        )
    return before, after


def _raw(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text whose control tokens act."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
