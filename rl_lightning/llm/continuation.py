"""A language model that goes on with texts, token by token, over the keys and values of before.

Shapes: N prompts, P tokens of a prompt, B rows of a batch, V of the vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from rl_lightning.llm.backbone import Backbone


class Continuation:
    """A model goes on, token by token.

    Prompts are padded on the left: what lies between two tokens is then the same in columns and in
    positions, as a window or a bias over distances needs it. A model that keeps no keys and values
    reads everything again.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.cache: Any = None
        self._recalled: tuple[Tensor, Tensor] | None = None

    def begin(self, prompt: Tensor, length: Tensor) -> Tensor:
        """Read prompts, right-padded `[N, P]`; the logits of what comes next, `[N, V]`."""
        if self._recalled is not None:
            return self._go_on(prompt, length)
        width = max(int(length.max()), 1)
        at = torch.arange(width, device=prompt.device)
        model = self.backbone.model
        if self.backbone.encoder_decoder:
            self.mask = at < length[:, None]
            read = model.get_encoder()(input_ids=prompt[:, :width], attention_mask=self.mask.long())
            self.states = read[0]
            self.given = torch.full_like(prompt[:, :1], model.config.decoder_start_token_id)
        else:
            place = at - (width - length[:, None])  # [N, P], from 0 at a prompt's first token
            self.mask = place >= 0
            self.place = place.clamp(min=0)
            filled = prompt[:, :width].gather(1, self.place)
            self.given = torch.where(self.mask, filled, self.backbone.tokens.pad_id)
        return self._read(self.given.shape[1])

    @property
    def recalls(self) -> bool:
        """Whether it can go on from the keys and values of single rows: it has them all."""
        layers = [] if self.cache is None else self.cache.layers
        whole = all(type(layer).__name__ == "DynamicLayer" for layer in layers)
        return bool(layers) and whole and not self.backbone.encoder_decoder

    def recall(self, rows: Tensor, known: Tensor) -> None:
        """Have `begin` go on from what has been read, in the next call.

        Args:
            rows: Whose, int64 `[N]`.
            known: How many of its tokens are those that the next prompt begins with, int64 `[N]`.
        """
        self._recalled = rows, known

    def _go_on(self, prompt: Tensor, length: Tensor) -> Tensor:
        """As `begin`, over the keys and values of what is known.

        All prompts read as many tokens as the one of which least is known, so that no padding comes
        to lie within one: of the others, some are read again.
        """
        assert self._recalled is not None
        (rows, known), self._recalled = self._recalled, None
        new = int((length - known).max())
        kept = (length - new).clamp(min=0)
        width = int(kept.max())
        place = torch.arange(width, device=prompt.device) - (width - kept)[:, None]  # [N, W]
        column = (self.mask[rows].long().argmax(1)[:, None] + place).clamp(min=0)
        for layer in self.cache.layers:
            at = column[:, None, :, None]
            for name in ("keys", "values"):
                have = getattr(layer, name)[rows]  # [N, heads, before, D]
                shape = -1, have.shape[1], -1, have.shape[3]
                setattr(layer, name, have.gather(2, at.expand(*shape)))
        ahead = torch.arange(new, device=prompt.device) + (length - new)[:, None]
        place = torch.cat([place, ahead], 1)
        self.mask, self.place = place >= 0, place.clamp(min=0)
        filled = prompt.gather(1, self.place)
        self.given = torch.where(self.mask, filled, self.backbone.tokens.pad_id)
        return self._read(new)

    def more(self, token: Tensor) -> Tensor:
        """Read one more token of each, `[B]`; the logits of what comes next, `[B, V]`."""
        self.given = torch.cat([self.given, token[:, None]], 1)
        if not self.backbone.encoder_decoder:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
            self.place = torch.cat([self.place, self.place[:, -1:] + 1], 1)
        return self._read(self.given.shape[1] if self.cache is None else 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows, int64 `[B]`, as often as they are named."""
        self.mask, self.given = self.mask[rows], self.given[rows]
        if self.backbone.encoder_decoder:
            self.states = self.states[rows]
        else:
            self.place = self.place[rows]
        if self.cache is not None:
            self.cache.reorder_cache(rows)

    def _read(self, new: int) -> Tensor:
        """The logits behind the last token, `[B, V]`, of which so many have not been read."""
        given = self.given[:, -new:]
        if self.backbone.encoder_decoder:
            inputs = {"encoder_outputs": (self.states,), "decoder_input_ids": given}
        else:
            inputs = {"input_ids": given, "position_ids": self.place[:, -new:]}
        select = torch.zeros_like(given, dtype=torch.bool)
        select[:, -1] = True
        out = self.backbone.logits(
            select,
            **inputs,
            attention_mask=self.mask.long(),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.cache
        return out.logits
