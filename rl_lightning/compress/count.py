"""What a module costs: parameters, bytes as stored, multiplications."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.flop_counter import FlopCounterMode

from rl_lightning.compress.calls import evaluating, tensors_in
from rl_lightning.compress.cut import layer_of, tensors_of
from rl_lightning.compress.packed import PackedLayer
from rl_lightning.core.errors import ConfigurationError, shortened

SPARSE_PARTS = {
    torch.sparse_coo: ("indices", "values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs by itself, without the layers inside it.

    Attributes:
        name: In the module; empty for the module itself.
        kind: Name of its class.
        parameters: Numbers stored in its parameters, and weights that are stored in few bits; a
            shared one counts where it comes first.
        nonzero: How many of them are not 0, as the layer computes with them.
        bytes: Of its parameters and buffers, as stored.
        macs: Multiply-accumulate operations of products of matrices and convolutions.
        output_shape: Of the first tensor it returned at its last call; None if it was not called.
    """

    name: str
    kind: str
    parameters: int
    nonzero: int
    bytes: int
    macs: int
    output_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class ModelCost:
    """What a module costs, layer by layer and in sum; a table as `str`."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def nonzero(self) -> int:
        return sum(layer.nonzero for layer in self.layers)

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "kind", "parameters", "nonzero", "bytes", "MACs", "output")
        ]
        for c in self.layers:
            shape = "–" if c.output_shape is None else "×".join(map(str, c.output_shape))
            numbers = (f"{n:,}" for n in (c.parameters, c.nonzero, c.bytes, c.macs))
            rows.append((c.name or "(itself)", c.kind, *numbers, shape))
        sums = (f"{n:,}" for n in (self.parameters, self.nonzero, self.bytes, self.macs))
        rows.append(("sum", "", *sums, ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [
                cell.rjust(width) if 2 <= i <= 5 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def count(module: nn.Module, *inputs: Any) -> ModelCost:
    """What one call of a module costs, in evaluation mode and without gradients.

    A multiply-accumulate is half of the two operations that torch's counter takes it for. It
    counts products of matrices, convolutions, and attention as its two products; embeddings,
    norms and activations count nothing. Of recurrent layers every weight counts once a step.

    Args:
        module: Unchanged.
        *inputs: Of the call; their batch counts.

    Returns:
        A row for each layer that stores or multiplies something, in the module's order.

    Raises:
        ConfigurationError: If the call fails.
    """
    macs, shapes = _watched(module, inputs)
    rows: dict[str, list[tuple[str, Tensor]]] = {}
    seen: set[int] = set()
    layers = dict(module.named_modules())
    for name, (_, _, tensor) in tensors_of(module).items():
        rows.setdefault(layer_of(name), []).append((name, tensor))
    found = []
    for name, layer in layers.items():
        own = [(n, t) for n, t in rows.get(name, ()) if id(t) not in seen]
        seen |= {id(t) for _, t in own}
        if not own and not macs.get(layer):
            continue
        parameters = [(n, t) for n, t in own if isinstance(t, nn.Parameter)]
        packed = [layer.weight] if isinstance(layer, PackedLayer) else []
        found.append(
            LayerCost(
                name,
                type(layer).__name__.removeprefix("Parametrized"),
                sum(_values(t).numel() for t in [*dict(parameters).values(), *packed]),
                sum(_nonzero(layer, n, t) for n, t in parameters)
                + sum(int(torch.count_nonzero(weight)) for weight in packed),
                sum(stored_bytes(t) for _, t in own),
                macs.get(layer, 0),
                shapes.get(layer),
            )
        )
    return ModelCost(tuple(found))


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of what a tensor stores: a sparse one's values and indices, a packed one's parts."""
    return sum(part.numel() * part.element_size() for part in _stored_parts(tensor))


def _stored_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor consists of; a sparse one's values come last."""
    tensor = tensor.detach()
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined]
            yield from _stored_parts(getattr(tensor, name))
    elif tensor.layout in SPARSE_PARTS:
        if tensor.layout is torch.sparse_coo:
            tensor = tensor.coalesce()
        for name in SPARSE_PARTS[tensor.layout]:
            yield getattr(tensor, name)()
    else:
        yield tensor


def _values(tensor: Tensor) -> Tensor:
    """A sparse tensor's values; another as it is."""
    return list(_stored_parts(tensor))[-1] if tensor.layout in SPARSE_PARTS else tensor.detach()


def _nonzero(layer: nn.Module, name: str, tensor: Tensor) -> int:
    """How many numbers are not 0, of a masked weight those that the mask lets through."""
    own = name.removeprefix(f"{layer_of(name)}.")
    if own.startswith("parametrizations.") and own.endswith(".original"):
        tensor = getattr(layer, own.split(".")[1])
    if is_traceable_wrapper_subclass(tensor):
        return tensor.numel()
    return int(torch.count_nonzero(_values(tensor)))


def _watched(
    module: nn.Module, inputs: tuple[Any, ...]
) -> tuple[dict[nn.Module, int], dict[nn.Module, tuple[int, ...]]]:
    """Multiply-accumulates of each layer by itself, and the shapes of outputs, of one call."""
    counter = FlopCounterMode(display=False, custom_mapping=VECTORS)
    macs: dict[nn.Module, int] = {}
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    inner: list[list[int]] = [[0, 0]]  # per call that is under way: at its start, of those inside

    def enter(layer: nn.Module, _: Any) -> None:
        inner.append([counter.get_total_flops(), 0])

    def leave(layer: nn.Module, given: Any, output: Any) -> None:
        start, inside = inner.pop()
        whole = counter.get_total_flops() - start
        inner[-1][1] += whole
        own = (whole - inside) // 2
        if isinstance(layer, nn.RNNBase):  # whose kernels the counter does not know
            own = _recurrent_macs(layer, given[0])
        macs[layer] = macs.get(layer, 0) + own
        first = next(iter(tensors_in(output)), None)
        if first is not None:
            shapes[layer] = tuple(first.shape)

    hooks = []
    for layer in module.modules():
        hooks.append(layer.register_forward_pre_hook(enter))
        hooks.append(layer.register_forward_hook(leave))
    try:
        with evaluating(module), _unfused(), counter:
            module(*inputs)
    except Exception as error:
        raise ConfigurationError(
            f"{type(module).__name__} cannot be called with these inputs: {shortened(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return macs, shapes


@contextmanager
def _unfused() -> Iterator[None]:
    """Without gradients and with products that the counter sees in place of fused layers."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _recurrent_macs(layer: nn.RNNBase, given: Any) -> int:
    data = given.data if isinstance(given, nn.utils.rnn.PackedSequence) else given
    steps = prod(data.shape[:-1])
    weights = [p for name, p in layer.named_parameters() if "weight" in name]
    return steps * sum(weight.numel() for weight in weights)


def _vector_product(matrix: Any, vector: Any, *rest: Any, **_: Any) -> int:
    return 2 * prod(matrix)


def _added_vector_product(added: Any, matrix: Any, vector: Any, *rest: Any, **_: Any) -> int:
    return 2 * prod(matrix)


# Which the counter leaves out: a matrix by a vector, and a vector by a vector.
VECTORS = {
    torch.ops.aten.mv: _vector_product,
    torch.ops.aten.addmv: _added_vector_product,
    torch.ops.aten.dot: _vector_product,
}
