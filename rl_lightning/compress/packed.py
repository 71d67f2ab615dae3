"""Layers whose weights are stored in a few bits, and computed with in floating point.

What is small is what is stored: the file, the memory between two calls. Each call restores the
weight in the scales' type (float32 as a rule) and computes with that, so a call takes longer than
the float layer's, unless the layer is `cached`, which keeps the restored weight and with it the
float layer's memory and speed. Activations are not rounded.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl_lightning.compress.rounding import Rounded, unpack_weight

Layer = TypeVar("Layer", bound=nn.Module)


class PackedLayer(nn.Module):
    """A layer with packed codes in place of its weight; what every kind has in common.

    The bias is the float layer's own parameter. Gradients flow to inputs and bias, not to the
    weight.

    Args:
        layer: The float layer, of which everything but the weight is taken.
        stored: Its weight, packed, see `rl_lightning.compress.rounding.pack_weight`.
        bits: 1 to 8, or 16.
        group_size: As it was rounded with.
        cached: Keep the restored weight until the layer is moved, cast or loaded into. It is in no
            state dict. Whoever writes into `codes` or `scale` otherwise calls `forget`.
    """

    codes: Tensor
    scale: Tensor

    def __init__(
        self,
        layer: nn.Module,
        stored: Rounded,
        bits: int,
        group_size: int | None = None,
        cached: bool = False,
    ) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = tuple(layer.weight.shape)  # type: ignore[arg-type]
        self.count = 1  # weights of a row
        for size in self.shape[1:]:
            self.count *= size
        self.bits, self.group_size, self.cached = bits, group_size, cached
        self.register_buffer("codes", stored.codes)
        self.register_buffer("scale", stored.scale)
        self._weight: Tensor | None = None
        self.register_load_state_dict_post_hook(_forget)
        self.training = layer.training

    @property
    def weight(self) -> Tensor:
        """The restored weight, for those who read it; without gradient."""
        if not self.cached:
            return self._restored(self.codes, self.scale).view(self.shape)
        if self._weight is None:
            # Made under inference_mode, it could not be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                self._weight = self._restored(self.codes, self.scale).view(self.shape)
        return self._weight

    def _restored(self, codes: Tensor, scale: Tensor) -> Tensor:
        return unpack_weight(codes, scale, self.bits, self.count, self.group_size)

    def rows(self, index: Tensor) -> Tensor:
        """Some rows of a table, restored without the others: `[M]` → `[M, N]`."""
        if self.cached:
            return self.weight.index_select(0, index)
        scale = self.scale if self.bits == 16 else self.scale.index_select(0, index)
        return self._restored(self.codes.index_select(0, index), scale)

    def forget(self) -> None:
        """Drop the kept weight."""
        self._weight = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._weight = None
        return super()._apply(fn, recurse)

    def float_layer(self) -> nn.Module:
        """The plain layer with the restored weight as its parameter."""
        raise NotImplementedError

    def _filled(self, layer: Layer, bias: Tensor | None = None) -> Layer:
        """A layer made without weights, with these in it."""
        layer.weight = nn.Parameter(self.weight.clone())  # type: ignore[assignment]
        if bias is not None:
            layer.bias = bias  # type: ignore[assignment]
        return layer.train(self.training)

    def extra_repr(self) -> str:
        group = "" if self.group_size is None else f", group_size={self.group_size}"
        return f"{'×'.join(map(str, self.shape))}, bits={self.bits}{group}"


def _forget(layer: nn.Module, _: Any) -> None:
    assert isinstance(layer, PackedLayer)
    layer.forget()


class PackedLinear(PackedLayer):
    """`nn.Linear`, packed."""

    def __init__(
        self,
        layer: nn.Linear,
        stored: Rounded,
        bits: int,
        group_size: int | None = None,
        cached: bool = False,
    ) -> None:
        super().__init__(layer, stored, bits, group_size, cached)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in_features]` → `[..., out_features]`."""
        return F.linear(input, self.weight, self.bias)

    def float_layer(self) -> nn.Linear:
        has_bias = self.bias is not None
        layer = nn.Linear(self.in_features, self.out_features, has_bias, device="meta")
        return self._filled(layer, self.bias)


class _PackedConv(PackedLayer):
    """What convolutions of one and of two dimensions have in common."""

    def __init__(
        self,
        layer: nn.Conv1d | nn.Conv2d,
        stored: Rounded,
        bits: int,
        group_size: int | None = None,
        cached: bool = False,
    ) -> None:
        super().__init__(layer, stored, bits, group_size, cached)
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation, self.groups = layer.padding, layer.dilation, layer.groups
        self.padding_mode = layer.padding_mode
        self.bias = layer.bias

    def _padded(self, input: Tensor) -> tuple[Tensor, Any]:
        """The input, and the padding that is left to the convolution."""
        if self.padding_mode == "zeros":
            return input, self.padding
        sides: list[int] = []
        for dim in reversed(range(len(self.kernel_size))):  # F.pad begins with the last dimension
            if isinstance(self.padding, str):
                total = self.dilation[dim] * (self.kernel_size[dim] - 1)
                both = (total // 2, total - total // 2) if self.padding == "same" else (0, 0)
            else:
                both = (self.padding[dim], self.padding[dim])
            sides.extend(both)
        return F.pad(input, sides, mode=self.padding_mode), 0

    def _arguments(self) -> dict[str, Any]:
        """What the float layer is made with."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.bias is not None,
            "padding_mode": self.padding_mode,
            "device": "meta",
        }


class PackedConv1d(_PackedConv):
    """`nn.Conv1d`, packed; a row is an output channel."""

    def forward(self, input: Tensor) -> Tensor:
        """`[N, C, L]` → `[N, C′, L′]`."""
        input, padding = self._padded(input)
        return F.conv1d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def float_layer(self) -> nn.Conv1d:
        return self._filled(nn.Conv1d(**self._arguments()), self.bias)


class PackedConv2d(_PackedConv):
    """`nn.Conv2d`, packed; a row is an output channel."""

    def forward(self, input: Tensor) -> Tensor:
        """`[N, C, H, W]` → `[N, C′, H′, W′]`."""
        input, padding = self._padded(input)
        return F.conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def float_layer(self) -> nn.Conv2d:
        return self._filled(nn.Conv2d(**self._arguments()), self.bias)


class PackedEmbedding(PackedLayer):
    """`nn.Embedding`, packed; only the rows that are asked for are restored."""

    def __init__(
        self,
        layer: nn.Embedding,
        stored: Rounded,
        bits: int,
        group_size: int | None = None,
        cached: bool = False,
    ) -> None:
        super().__init__(layer, stored, bits, group_size, cached)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.padding_idx = layer.padding_idx

    def forward(self, input: Tensor) -> Tensor:
        """`[...]` → `[..., embedding_dim]`."""
        return self.rows(input.reshape(-1)).view(*input.shape, self.embedding_dim)

    def float_layer(self) -> nn.Embedding:
        layer = nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta"
        )
        return self._filled(layer)


class PackedEmbeddingBag(PackedLayer):
    """`nn.EmbeddingBag`, packed; only the rows that are asked for are restored."""

    def __init__(
        self,
        layer: nn.EmbeddingBag,
        stored: Rounded,
        bits: int,
        group_size: int | None = None,
        cached: bool = False,
    ) -> None:
        super().__init__(layer, stored, bits, group_size, cached)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.mode, self.padding_idx = layer.mode, layer.padding_idx
        self.include_last_offset = layer.include_last_offset

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Ids `[N, L]`, or `[M]` with offsets `[N]`, → `[N, embedding_dim]`."""
        index = input.reshape(-1)
        table = self.rows(index)  # [M, D], a row for each id
        place = torch.arange(len(index), device=index.device)
        padding_idx = self.padding_idx
        if padding_idx is not None:
            place = torch.where(index == padding_idx, len(index), place)
            padding_idx = len(index)
            table = torch.cat([table, table.new_zeros(1, table.shape[1])])
        return F.embedding_bag(
            place.view_as(input),
            table,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding_idx,
        )

    def float_layer(self) -> nn.EmbeddingBag:
        layer = nn.EmbeddingBag(
            self.num_embeddings,
            self.embedding_dim,
            mode=self.mode,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            device="meta",
        )
        return self._filled(layer)


# Layers of exactly these types; a subclass may compute otherwise.
KINDS: dict[type[nn.Module], type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Conv1d: PackedConv1d,
    nn.Conv2d: PackedConv2d,
    nn.Embedding: PackedEmbedding,
    nn.EmbeddingBag: PackedEmbeddingBag,
}
