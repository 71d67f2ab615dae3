"""A language model that goes on with texts over the keys and values of before.

Shapes: N prompts, P tokens of a prompt, B rows of a batch, K tokens that are read at once, V of the
vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.logits import Logits


class Continuation:
    """Prompts that a model has read, and what it reads behind them.

    Prompts are padded on the left: what lies between two tokens is then the same in columns and in
    positions, as a window or a bias over distances needs it. A model that keeps no keys and values
    reads everything again.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.cache: Any = None
        self._recalled: tuple[Tensor, Tensor] | None = None

    def begin(self, prompt: Tensor, length: Tensor) -> Logits:
        """Read prompts, right-padded `[N, P]`; the logits are of what comes next, `[N, V]`."""
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

    def _go_on(self, prompt: Tensor, length: Tensor) -> Logits:
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

    def more(
        self, ids: Tensor, there: Tensor | None = None, select: Tensor | None = None
    ) -> Logits:
        """Read on.

        Args:
            ids: Right-padded, int64 `[B, K]`.
            there: What of them is no padding, bool `[B, K]`; None: all.
            select: Whose logits are wanted, bool `[B, K]`; None: the last one's, `[B, V]`.
        """
        there = torch.ones_like(ids, dtype=torch.bool) if there is None else there
        self.given = torch.cat([self.given, ids], 1)
        if not self.backbone.encoder_decoder:
            self.mask = torch.cat([self.mask, there], 1)
            # Padding stays where the text ended: behind it there may be no position.
            self.place = torch.cat([self.place, self.place[:, -1:] + there.cumsum(1)], 1)
        return self._read(ids.shape[1], select)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows, int64 `[B]`, as often as they are named."""
        self.mask, self.given = self.mask[rows], self.given[rows]
        if self.backbone.encoder_decoder:
            self.states = self.states[rows]
        else:
            self.place = self.place[rows]
        if self.cache is not None:
            self.cache.reorder_cache(rows)

    def share(self, owner: Tensor) -> None:
        """Go on behind prompts `owner`, int64 `[B]`, none of which is read again.

        Raises:
            ConfigurationError: If the model keeps no keys and values.
        """
        if self.cache is None:
            raise ConfigurationError("it keeps no keys and values")
        self.keep(owner)

    def _read(self, new: int, select: Tensor | None = None) -> Logits:
        """Read the last tokens; see `more`."""
        if select is None:
            select = torch.zeros_like(self.given[:, -new:], dtype=torch.bool)
            select[:, -1] = True
        if self.cache is None:
            select = torch.nn.functional.pad(select, (self.given.shape[1] - new, 0))
            new = self.given.shape[1]
        given = self.given[:, -new:]
        if self.backbone.encoder_decoder:
            inputs = {"encoder_outputs": (self.states,), "decoder_input_ids": given}
        else:
            inputs = {"input_ids": given, "position_ids": self.place[:, -new:]}
        out = self.backbone.logits(
            select,
            **inputs,
            attention_mask=self.mask.long(),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.cache
        return out
