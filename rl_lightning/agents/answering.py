"""Answering outside of training: prompts as texts, completions as texts."""

from collections.abc import Sequence
from typing import Any

import torch

from rl_lightning.core.errors import ConfigurationError, shortened
from rl_lightning.llm.generators import TransformersGenerator
from rl_lightning.llm.sampling import Sampling
from rl_lightning.nn.modes import EvalMode


def predict(
    agent: Any,
    prompts: str | Sequence[str],
    *,
    explore: bool = False,
    max_new_tokens: int = 64,
    stop: Sequence[str] = (),
) -> str | list[str]:
    """Go on with one prompt, or with several.

    In eval mode and without gradient. A chat is a text, too, once the tokenizer has made one of it:
    `agent.backbone.tokens.tokenizer.apply_chat_template(messages, tokenize=False)`.

    Args:
        agent: Whose language model writes.
        prompts: A text, or a list of texts.
        explore: Sample at temperature 1, with the global random numbers; otherwise greedily.
        max_new_tokens: Most tokens of a completion.
        stop: Texts that end one, beside the model's own end.

    Returns:
        A completion, or a list of them.

    Raises:
        ConfigurationError: If there is no text, or one is too long for the model.
    """
    texts = [prompts] if isinstance(prompts, str) else prompts
    several = isinstance(texts, Sequence) and not isinstance(texts, bytes)
    if not several or not texts or not all(isinstance(text, str) for text in texts):
        given = shortened(repr(prompts), 80)
        raise ConfigurationError(f"prompts: give a text or a list of texts, not {given}")
    sampling = Sampling(max_new_tokens, 1.0 if explore else 0.0, stop=stop)
    tokens = agent.backbone.tokens
    with torch.no_grad(), EvalMode(agent):
        written = TransformersGenerator()(agent.backbone, tokens.whole(texts), 1, sampling)
    pairs = zip(written.ids.tolist(), written.length.tolist(), strict=True)
    rows = [ids[:count] for ids, count in pairs]
    said = tokens.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return said[0] if isinstance(prompts, str) else said
