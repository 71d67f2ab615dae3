"""Losses of rewards that are learned from comparisons and from scores."""

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(reward: Tensor, label: Tensor) -> Tensor:
    """−Σᵢ yᵢ log softmax(r)ᵢ of pairs, with y = (1 − label, label) (Bradley & Terry 1952;
    Christiano et al. 2017, equation 1 for single observations; Motif, Klissarov et al. 2023).

    A tie, y = (½, ½), pulls both rewards together.

    Args:
        reward: r of the first and of the second of each pair, `[N, 2]`.
        label: Which is the better one: 0 the first, 1 the second, 0.5 neither; or what lies in
            between, `[N]`.

    Returns:
        `[N]`, at least the entropy of y.
    """
    log_prob = F.log_softmax(reward, dim=1)
    return -((1.0 - label) * log_prob[:, 0] + label * log_prob[:, 1])


def preference_hits(reward: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """How many pairs that are no tie a reward puts in order, and how many such pairs there are.

    Equal rewards are half a hit, as a coin would have it.

    Args:
        reward: `[N, 2]`.
        label: As for `bradley_terry`, `[N]`.

    Returns:
        Hits and pairs, float32 scalars.
    """
    wanted = (label - 0.5).sign()
    counted = wanted != 0
    agree = (reward[:, 1] - reward[:, 0]).sign() * wanted  # 1, 0 or -1
    return ((agree + 1.0) / 2.0)[counted].sum().float(), counted.sum().float()
