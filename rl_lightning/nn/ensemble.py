"""Several networks of one shape, evaluated as one: the critics of an actor-critic."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.nn.mlp import Activation, make_activation, widths


class Ensemble(nn.Module):
    """M multi-layer perceptrons, as batched matrix products.

    Twice as fast as two networks in turn where they are small, as fast where they are large. Layers
    start as `nn.Linear` starts them, the usual choice for DDPG, TD3 and SAC.

    Args:
        count: M.
        in_dim: Input features.
        hidden: Widths of the hidden layers.
        out_dim: Outputs.
        activation: Of the hidden layers.
        layer_norm: Normalise each hidden layer before its activation.
    """

    def __init__(
        self,
        count: int,
        in_dim: int,
        hidden: Sequence[int],
        out_dim: int,
        activation: Activation = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.activation = make_activation(activation)
        self.layer_norm = layer_norm
        sizes = [in_dim, *widths(hidden), out_dim]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = 1.0 / math.sqrt(max(fan_in, 1))  # observations may be empty
            self.weights.append(torch.empty(count, fan_in, fan_out).uniform_(-bound, bound))
            self.biases.append(torch.empty(count, 1, fan_out).uniform_(-bound, bound))
        self.count = count

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """`[N, in_dim]` → `[M, N, out_dim]`.

        Args:
            x: Input.
            frozen: Let gradient flow to `x` only, not to the weights.
        """
        h = x.expand(self.count, *x.shape)
        layers = list(zip(self.weights, self.biases, strict=True))
        for number, (weight, bias) in enumerate(layers):
            if frozen:
                weight, bias = weight.detach(), bias.detach()
            h = torch.baddbmm(bias, h, weight)
            if number < len(layers) - 1:
                if self.layer_norm:
                    h = F.layer_norm(h, h.shape[-1:])
                h = self.activation(h)
        return h
