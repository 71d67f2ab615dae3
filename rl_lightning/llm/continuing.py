"""Reading on behind prompts, over their keys and values.

Shapes: N prompts, P tokens of a prompt, B continuations, K tokens that are read at once.
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

    Args:
        backbone: With its head.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.cache: Any = None
        self.mask: Tensor  # [B, P + what was read since], of an encoder-decoder [B, P]

    def begin(self, prompt: Tensor, length: Tensor) -> Logits:
        """Read prompts, right-padded int64 `[N, P]`: the logits are of the last token, `[N, V]`."""
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
        return self._read(self.given.shape[1], _last(self.given))

    def more(
        self, ids: Tensor, there: Tensor | None = None, select: Tensor | None = None
    ) -> Logits:
        """Read on.

        Args:
            ids: Right-padded, int64 `[B, K]`.
            there: What of them is no padding, bool `[B, K]`; None: all.
            select: Whose logits are wanted, bool `[B, K]`; None: the last one's.
        """
        there = torch.ones_like(ids, dtype=torch.bool) if there is None else there
        self.given = torch.cat([self.given, ids], 1)
        if not self.backbone.encoder_decoder:
            self.mask = torch.cat([self.mask, there], 1)
            # Padding stays where the text ended: behind it there may be no position.
            self.place = torch.cat([self.place, self.place[:, -1:] + there.cumsum(1)], 1)
        return self._read(ids.shape[1], _last(ids) if select is None else select)

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
        """Read on behind prompts `owner`, int64 `[B]`, each of which is not read again.

        Raises:
            ConfigurationError: If the model keeps no keys and values.
        """
        if self.cache is None:
            raise ConfigurationError("it keeps no keys and values")
        self.keep(owner)

    def _read(self, new: int, select: Tensor) -> Logits:
        """Read the last `new` tokens, of which some logits are wanted."""
        if self.cache is None:
            before = self.given.shape[1] - new
            new, select = self.given.shape[1], torch.nn.functional.pad(select, (before, 0))
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


def _last(ids: Tensor) -> Tensor:
    """The last column alone, bool `[B, K]`."""
    select = torch.zeros_like(ids, dtype=torch.bool)
    select[:, -1] = True
    return select
