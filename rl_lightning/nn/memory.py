"""Recurrent memory: one step while acting, whole sequences while learning, the same numbers."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, whole

Recurrent = Literal["lstm", "gru"]


class Memory(nn.Module):
    """An LSTM or GRU over features whose state is one flat tensor `[N, state_dim]`.

    A flat state can be stored, zeroed row by row and concatenated without knowing the cell.

    Args:
        in_dim: D.
        size: Hidden units, which are also the output features.
        kind: `lstm` or `gru`.
    """

    def __init__(self, in_dim: int, size: int, kind: Recurrent) -> None:
        super().__init__()
        if kind not in get_args(Recurrent):
            raise ConfigurationError(
                f"recurrent must be {' or '.join(get_args(Recurrent))}, or None, not {kind!r}"
            )
        size = whole("recurrent_size", size, 1)
        self.kind = kind
        self.out_dim = size
        self.state_dim = 2 * size if kind == "lstm" else size
        self.cell = (nn.LSTM if kind == "lstm" else nn.GRU)(in_dim, size)
        for name, parameter in self.cell.named_parameters():
            if name.startswith("weight"):
                # Each gate for itself: orthogonal as a stack, every gate's matrix would be halved.
                for gate in parameter.detach().split(size):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(parameter)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            x: Features, `[N, D]`.
            state: State before the step, `[N, state_dim]`.

        Returns:
            Output `[N, out_dim]` and the state after the step `[N, state_dim]`.
        """
        out, after = self._run(x[None], state)
        return out[0], after

    def sequence(self, x: Tensor, state: Tensor, start: Tensor) -> Tensor:
        """Many steps of several environments at once, with resets inside.

        The sequences are cut where an episode starts, and the pieces run side by side as one padded
        batch: one call of the fused cell instead of one call per step.

        Args:
            x: Features, `[L, N, D]`.
            state: State before the first step, `[N, state_dim]`.
            start: True where a step is the first of its episode, bool `[L, N]`. The first row is
                ignored: `state` says what the sequence starts from.

        Returns:
            Outputs, `[L, N, out_dim]`.
        """
        length, columns = start.shape
        first = start.clone()
        first[0] = True
        flat = first.t().reshape(-1)  # column by column, (N·L,)
        begin = flat.nonzero().squeeze(1)  # (S,) pieces
        if len(begin) == columns:
            return self._run(x, state)[0]
        piece = flat.cumsum(0) - 1  # which piece a position belongs to, (N·L,)
        offset = torch.arange(len(flat), device=x.device) - begin[piece]
        longest = int(offset.max()) + 1
        index = begin + torch.arange(longest, device=x.device)[:, None]  # (longest, S)
        x_flat = x.transpose(0, 1).reshape(columns * length, -1)
        # Beyond its end a piece reads whatever follows: those outputs are never looked at.
        pieces = x_flat[index.clamp(max=len(flat) - 1)]
        opening = (begin % length == 0).to(state.dtype)[:, None]
        out, _ = self._run(pieces, state[begin // length] * opening)
        return out[offset, piece].view(columns, length, -1).transpose(0, 1)

    def _run(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "gru":
            out, after = self.cell(x, state[None].to(x.dtype))
            return out, after[0].to(state.dtype)
        h, c = state.to(x.dtype).chunk(2, dim=-1)
        out, (h, c) = self.cell(x, (h[None].contiguous(), c[None].contiguous()))
        return out, torch.cat([h[0], c[0]], dim=-1).to(state.dtype)
