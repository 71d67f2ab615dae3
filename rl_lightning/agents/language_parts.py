"""Language models inside an agent's policy: which there are, and what they say."""

import contextlib
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.encoders.encoder import Encoder
from rl_lightning.encoders.reading import ReadingEncoder
from rl_lightning.llm.backbone import Backbone


def language_models(policy: nn.Module) -> list[str]:
    """Names of the language models inside a policy."""
    return [name for name, part in policy.named_modules() if isinstance(part, Backbone)]


class ModelCall(nn.Module):
    """A language model inside a policy as a module that reads token ids alone, for operators that
    follow the call.

    Args:
        policy: The only part of this module, by the name `policy`, so that names are those that
            `PolicyCall` has.
        name: Of the language model, there: `policy.encoder.backbone`.
    """

    def __init__(self, policy: nn.Module, name: str) -> None:
        super().__init__()
        self.policy, self.name = policy, name

    @property
    def backbone(self) -> Any:
        return self.get_submodule(self.name)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """The hidden states behind the last layer, `[N, L, D]`, of ids `[N, L]`; of a model that
        reads by one half and writes by the other, of both."""
        backbone, mask = self.backbone, torch.ones_like(ids)
        if not backbone.embedding_size:  # it has no head
            return (backbone(ids, mask),)
        every = torch.ones_like(ids, dtype=torch.bool)
        if not backbone.encoder_decoder:
            return (backbone.logits(every, input_ids=ids, attention_mask=mask).hidden,)
        read = backbone.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        given = {"encoder_outputs": (read,), "attention_mask": mask, "decoder_input_ids": ids}
        return (read, backbone.logits(every, **given).hidden)


def features(policy: nn.Module, observations: Iterable[Any]) -> dict[str, Tensor]:
    """What language models inside a policy say of texts, `[N, D]` each, before it is standardised.

    Args:
        policy: In eval mode.
        observations: Raw ones, batch after batch.

    Returns:
        By the name of the encoder, of those that standardise; empty if there is none.
    """
    found: dict[str, list[Tensor]] = {}
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for name, part in policy.named_modules():
            if isinstance(part, ReadingEncoder) and part.norm is not None:
                take = partial(_take, found.setdefault(name, []))
                stack.callback(part.norm.register_forward_pre_hook(take).remove)
        if found:
            for obs in observations:
                for encoder in _outermost(policy):
                    encoder(encoder.preprocess(obs))
    return {name: torch.cat(rows) for name, rows in found.items() if rows}


def _outermost(policy: nn.Module) -> list[Encoder]:
    """The encoders of a policy that are no part of another."""
    encoders = {name: part for name, part in policy.named_modules() if isinstance(part, Encoder)}
    inside = tuple(f"{name}." for name in encoders)
    return [part for name, part in encoders.items() if not name.startswith(inside)]


def _take(rows: list[Tensor], _: nn.Module, args: tuple[Any, ...]) -> None:
    rows.append(args[0].detach().flatten(0, -2))
