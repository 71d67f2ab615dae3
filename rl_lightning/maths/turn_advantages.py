"""Credit by turns: what the turns of conversations are worth, compared within groups.

N conversations of T tokens each, as in `token_advantages`. A *turn* is a run of own tokens, which
`mask`, bool `[N, T]`, marks: what an environment wrote parts it from the next one. K is the most
turns of a conversation.
"""

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from rl_lightning.core.errors import check_one_of
from rl_lightning.maths.returns import backward_sum
from rl_lightning.maths.token_advantages import Scale, group_index
from rl_lightning.maths.token_losses import exact, own


class Turns(NamedTuple):
    """The turns of conversations."""

    to_go: Tensor
    """Reward from each turn on, `[N, K]`; 0 where there is no such turn."""
    there: Tensor
    """Whether there is such a turn, bool `[N, K]`."""
    turn: Tensor
    """Which turn each token is of, int64 `[N, T]`; of own tokens alone it means something."""

    def spread(self, x: Tensor, mask: Tensor) -> Tensor:
        """What belongs to turns, `[N, K]`, for each of their tokens, `[N, T]`; 0 elsewhere."""
        return own(x.gather(1, self.turn), mask)


def find_turns(reward: Tensor, mask: Tensor, gamma: float = 1.0) -> Turns:
    """Gₖ = rₖ + γ Gₖ₊₁, where rₖ is the sum over the tokens of turn k.

    Args:
        reward: Of each token; that of tokens outside the mask does not count, `[N, T]`.
        mask: Own tokens, bool `[N, T]`.
        gamma: Discount γ per turn.
    """
    begins = mask & ~torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)
    count = begins.sum(1)  # (N,)
    turn = (begins.cumsum(1) - 1).clamp(min=0)
    number = torch.arange(max(int(count.max()), 1), device=mask.device)
    there = number < count[:, None]
    reward = own(reward, mask)
    each = reward.new_zeros(there.shape).scatter_add(1, turn, reward)
    return Turns(backward_sum(each.T, torch.full_like(each.T, gamma)).T, there, turn)


def turn_advantages(
    turns: Turns,
    group: Tensor | int,
    scale: Scale = "group",
    everyone: Tensor | None = None,
    eps: float = 1e-4,
) -> Tensor:
    """(Gₖ − mean) / (std + ε) over the k-th turns of a group: as `group_advantages`, turn by turn.

    Conversations that ended before turn k have no part in it: what would be compared with them is
    how early they ended, which earlier turns have decided. A turn that no other of its group has
    gets 0.

    Args:
        turns: Of N conversations.
        group: See `token_advantages`.
        scale: Whose std: that of the k-th turns of the "group", of all turns of the "batch", or
            "none" at all.
        everyone: Gₖ of all turns there are, `[M]`, whose std is the batch's; None: of these.
        eps: Keeps turns without spread finite.

    Returns:
        `[N, K]`.
    """
    check_one_of("scale", scale, get_args(Scale))
    centred, size = _centred(turns, group)
    if scale == "batch":
        all_turns = turns.to_go[turns.there] if everyone is None else everyone
        centred = centred / (exact(all_turns).std() + eps)
    elif scale == "group":
        variance = _sums(centred.square(), turns, group) / (size - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + eps)
    return centred.to(turns.to_go)


def rloo_turn_advantages(turns: Turns, group: Tensor | int) -> Tensor:
    """Gₖ minus the mean of the k-th turns of the others in its group, `[N, K]`: as
    `rloo_advantages`, turn by turn.

    Args:
        turns: Of N conversations.
        group: See `token_advantages`.
    """
    centred, size = _centred(turns, group)
    return (centred * size / (size - 1).clamp(min=1)).to(turns.to_go)


def _centred(turns: Turns, group: Tensor | int) -> tuple[Tensor, Tensor]:
    """Gₖ minus the mean over the group, and over how many that is, `[N, K]` each, `exact`."""
    to_go = exact(turns.to_go)
    size = _sums(turns.there.to(to_go), turns, group)
    mean = _sums(to_go, turns, group) / size.clamp(min=1)
    return own(to_go - mean, turns.there), size


def _sums(x: Tensor, turns: Turns, group: Tensor | int) -> Tensor:
    """The sum of x over the k-th turns of each one's group, `[N, K]`."""
    index, size = group_index(turns.to_go[:, 0], group, 2)
    return x.new_zeros(len(size), x.shape[1]).index_add(0, index, own(x, turns.there))[index]
