"""Attention heads and whole layers of transformers' models taken out.

transformers 5 removed its own head pruning. Two layouts of attention are known by the names of
their parts: BERT's (`self.query`, `self.key`, `self.value`, `output.dense`; also RoBERTa's,
MiniLM's) and Llama's (`q_proj`, `k_proj`, `v_proj`, `o_proj`; also Qwen's, Mistral's, SmolLM's).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rl_lightning.compress.cut import (
    Keep,
    cut_tensors,
    drop_parameters,
    kept_indices,
    refuse_holders,
    stored_names,
    tensors_of,
)
from rl_lightning.compress.replacing import refuse_aliases, replace
from rl_lightning.compress.weights import check_share
from rl_lightning.core.errors import ConfigurationError, shortened

BERT, LLAMA = {"query", "key", "value"}, {"q_proj", "k_proj", "v_proj", "o_proj"}


@dataclass(frozen=True)
class Attention:
    """One attention and its parts.

    Attributes:
        holder: The module that knows of heads.
        query, key, value, output: Names of the linear layers.
        head_dim: Numbers of a head.
        groups: Groups of heads: each a head of keys and values, and the queries that read it.
        queries: Heads of queries in a group; 1 without grouping.
    """

    holder: nn.Module
    query: str
    key: str
    value: str
    output: str
    head_dim: int
    groups: int
    queries: int


def attention_heads(model: nn.Module) -> dict[str, int]:
    """How many heads each attention has, by its name; of grouped queries, how many groups.

    Raises:
        ConfigurationError: If the model has no attention of a known layout.
    """
    return {name: attention.groups for name, attention in _attentions(model).items()}


def prune_heads(
    model: nn.Module,
    share: float | Mapping[str, float],
    optimizers: Sequence[Optimizer] = (),
) -> dict[str, Any]:
    """Take the least important attention heads out, in place.

    The smaller model computes what the whole one does with the heads' columns of the output
    projection at zero. Where several queries share keys and values, whole groups go. A head's
    importance is the norm √Σ w² of its rows and columns in the four projections. At least one
    head of every layer stays.

    The model's configuration stays: it holds one number of heads for all layers, and BERT's says
    by it how wide a head is. It builds the original model, which `restructure` makes this one.

    Args:
        model: Changed; any module with such attentions inside.
        share: Of heads to remove, in [0, 1), ⌊share · heads⌋ in each layer; or one per name of
            an attention (`attention_heads`).
        optimizers: Those with parameters of the model; their state is cut alike.

    Returns:
        The record, for `restructure`.

    Raises:
        ConfigurationError: If a share or a name is not what it should be, or there is no
            attention of a known layout.
    """
    attentions = _attentions(model)
    if isinstance(share, Mapping):
        shares = dict(share)
        for name, value in shares.items():
            check_share(f"share[{name!r}]", value)
            if name not in attentions:
                raise ConfigurationError(
                    f"share: the model has no attention {shortened(name)!r}; it has "
                    f"{shortened(', '.join(attentions))}"
                )
    else:
        check_share("share", share)
        shares = dict.fromkeys(attentions, share)
    heads = {}
    for name, value in shares.items():
        attention = attentions[name]
        gone = min(int(value * attention.groups + 1e-9), attention.groups - 1)
        kept = _importance(model, attention).argsort(stable=True)[gone:]
        heads[name] = {"of": attention.groups, "keep": sorted(kept.tolist())}
    record = {"operator": "prune_heads", "heads": heads}
    apply_heads_record(model, record, optimizers)
    return record


def apply_heads_record(
    model: nn.Module, record: Mapping[str, Any], optimizers: Sequence[Optimizer] = ()
) -> None:
    """Keep the heads that a record keeps.

    Raises:
        ConfigurationError: If the record does not fit the model.
    """
    attentions, heads = _attentions(model), record.get("heads")
    if not isinstance(heads, dict):
        raise ConfigurationError("the record of prune_heads must map attentions to kept heads")
    cuts: dict[str, Keep] = {}
    changed = []
    for name, stated in heads.items():
        attention = attentions.get(name)
        fits = isinstance(stated, dict) and set(stated) == {"of", "keep"}
        if attention is None or not fits or stated["of"] != attention.groups:
            raise ConfigurationError(
                f"the record keeps heads of {shortened(name)!r} ({shortened(stated)}), and the "
                f"model has {attention.groups if attention else 'none'} there"
            )
        keep = kept_indices(f"heads of {name!r}", stated["keep"], attention.groups)
        _refuse_other_tensors(name, attention.holder, attention.head_dim)
        rows = _expanded(keep, attention.head_dim)
        wide = _expanded(keep, attention.head_dim * attention.queries)
        for layer, kept in (
            (attention.query, wide),
            (attention.key, rows),
            (attention.value, rows),
        ):
            part = model.get_submodule(layer)
            cuts |= {n: [kept, None] for n in stored_names(part, layer, "weight")}
            cuts |= {n: [kept] for n in stored_names(part, layer, "bias")}
        output = model.get_submodule(attention.output)
        cuts |= {n: [None, wide] for n in stored_names(output, attention.output, "weight")}
        changed.append((attention, len(keep)))
    cut_tensors(model, cuts, optimizers)
    for attention, groups in changed:
        count = groups * attention.queries
        said = {
            "num_attention_heads": count,
            "num_heads": count,
            "num_key_value_heads": groups,
            "all_head_size": count * attention.head_dim,
        }
        for attribute in said.keys() & vars(attention.holder).keys():
            setattr(attention.holder, attribute, said[attribute])


def prune_layers(
    model: nn.Module,
    keep: Sequence[int],
    layers: str | None = None,
    optimizers: Sequence[Optimizer] = (),
) -> dict[str, Any]:
    """Keep some of a transformer's layers, in place and in their order.

    The model computes what it would if the others passed on what they are given. Its
    configuration, a copy that it no longer shares with other models, says the new number.

    Args:
        model: Changed; a transformer, or any module with one inside.
        keep: Numbers of the layers that stay, from 0, rising.
        layers: Name of the `nn.ModuleList` of layers, of any kind; None where there is one whose
            layers have attention as BERT's or Llama's.
        optimizers: Those with parameters of the model; they forget the layers' that went.

    Returns:
        The record, for `restructure`.

    Raises:
        ConfigurationError: If `keep` does not fit, or there is no list of layers, or several.
    """
    lists = layer_lists(model, layers)
    if layers is None and len(lists) != 1:
        raise ConfigurationError(
            "the model has "
            + (f"several lists of layers, {', '.join(lists)}" if lists else "none")
            + ": name one in layers"
        )
    name = next(iter(lists)) if layers is None else layers
    if name not in lists:
        raise ConfigurationError(
            f"layers={name!r} is no list of layers with attention; there are "
            f"{', '.join(lists) or 'none'}"
        )
    try:
        numbers = list(keep)
    except TypeError as error:
        raise ConfigurationError(f"keep must list layers by number, not {keep!r}") from error
    record = {
        "operator": "prune_layers",
        "layers": name,
        "of": len(lists[name]),
        "keep": kept_indices("keep", numbers, len(lists[name])),
    }
    apply_layers_record(model, record, optimizers)
    return record


def apply_layers_record(
    model: nn.Module, record: Mapping[str, Any], optimizers: Sequence[Optimizer] = ()
) -> None:
    """Keep the layers that a record keeps.

    Raises:
        ConfigurationError: If the record does not fit the model.
    """
    name = record.get("layers")
    lists = layer_lists(model, name)
    if not isinstance(name, str) or name not in lists or len(lists[name]) != record.get("of"):
        raise ConfigurationError(
            f"the record keeps some of {shortened(record.get('of'))} layers in "
            f"{shortened(name)!r}, and the model has "
            f"{', '.join(f'{len(v)} in {k!r}' for k, v in lists.items()) or 'none'}"
        )
    before = lists[name]
    keep = kept_indices(f"layers of {name!r}", record.get("keep"), len(before))
    parameters = list(model.parameters())
    after = nn.ModuleList(before[i] for i in keep)
    after.train(before.training)
    refuse_aliases(model, [before, *(part for i, part in enumerate(before) if i not in keep)])
    stay = {id(p) for i in keep for p in before[i].parameters()}
    refuse_holders(optimizers, (id(p) for p in before.parameters() if id(p) not in stay))
    replace(model, {id(before): after})
    for number, layer in enumerate(after):
        for part in layer.modules():
            if "layer_idx" in vars(part):  # where its keys and values lie in a cache
                part.layer_idx = number  # type: ignore[assignment]
    _tell_configs(model, name, len(before), keep)
    there = {id(p) for p in model.parameters()}
    removed = [p for p in parameters if id(p) not in there]
    for optimizer in optimizers:
        drop_parameters(optimizer, removed)


def _attentions(model: nn.Module) -> dict[str, Attention]:
    found = {}
    for name, part in model.named_modules():
        children, prefix = dict(part.named_children()), f"{name}." if name else ""
        if children.keys() >= LLAMA:
            names = [f"{prefix}{n}" for n in ("q_proj", "k_proj", "v_proj", "o_proj")]
            holder, size = part, vars(part).get("head_dim")
        elif {"self", "output"} <= children.keys():
            inner = dict(children["self"].named_children())
            if not inner.keys() >= BERT:
                continue
            names = [f"{prefix}self.{n}" for n in ("query", "key", "value")]
            names.append(f"{prefix}output.dense")
            holder, size = children["self"], vars(children["self"]).get("attention_head_size")
        else:
            continue
        there = dict(model.named_modules())
        linear: list[Any] = [there.get(n) for n in names]
        if not isinstance(size, int) or not all(isinstance(p, nn.Linear) for p in linear):
            continue
        queries, keys = (layer.weight.shape[0] // size for layer in linear[:2])
        query, key, value, output = names
        found[name] = Attention(holder, query, key, value, output, size, keys, queries // keys)
    if not found:
        raise ConfigurationError(
            f"{type(model).__name__} has no attention laid out as BERT's or Llama's, with plain "
            "linear layers: merge adapters into it first, quantise it later, or prune its weights"
        )
    return found


def _refuse_other_tensors(name: str, holder: nn.Module, size: int) -> None:
    """Refuse an attention with numbers per head that nobody here knows how to cut."""
    for tensor_name, (_, _, tensor) in tensors_of(holder).items():
        projection = tensor_name.split(".")[0] in BERT | LLAMA
        if not projection and tensor.ndim and tuple(tensor.shape) != (size,):
            raise ConfigurationError(
                f"heads of {name!r} cannot be pruned: its {tensor_name!r} of shape "
                f"{tuple(tensor.shape)} would have to follow in a way that is not known"
            )


def _importance(model: nn.Module, attention: Attention) -> Tensor:
    """√Σ w² per group of heads, `[groups]`."""
    with torch.no_grad():
        squares = [
            model.get_submodule(n).weight.float().square().reshape(attention.groups, -1).sum(1)  # type: ignore
            for n in (attention.query, attention.key, attention.value)
        ]
        output = model.get_submodule(attention.output).weight.float().square()  # type: ignore
        squares.append(output.t().reshape(attention.groups, -1).sum(1))
        return torch.stack(squares).sum(0).sqrt().cpu()


def _expanded(keep: Sequence[int], width: int) -> list[int]:
    """Indices of the numbers of kept heads, each `width` wide."""
    return [head * width + i for head in keep for i in range(width)]


def layer_lists(model: nn.Module, named: object = None) -> dict[str, nn.ModuleList]:
    """Lists of layers that each hold an attention, by name; or the one that is named."""
    lists = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part)
    }
    if isinstance(named, str) and named in lists:
        return {named: lists[named]}
    attentions = set(_attentions(model))
    return {
        name: part
        for name, part in lists.items()
        if all(any(a.startswith(f"{name}.{i}.") for a in attentions) for i in range(len(part)))
    }


def _tell_configs(model: nn.Module, layers: str, before: int, keep: Sequence[int]) -> None:
    """Give the transformer of some layers a configuration of its own that says their number."""
    parts = dict(model.named_modules())
    above = [name for name in parts if not name or layers.startswith(f"{name}.")]
    outermost: dict[int, str] = {}  # by configuration: the first of those above that holds it
    for name in above:
        config = vars(parts[name]).get("config")
        if getattr(config, "num_hidden_layers", None) == before:
            outermost.setdefault(id(config), name)
    copies: dict[int, Any] = {}
    for name, part in parts.items():
        config: Any = vars(part).get("config")
        first = outermost.get(id(config))
        if first is None or not (not first or name == first or name.startswith(f"{first}.")):
            continue
        if id(config) not in copies:
            new = copy.deepcopy(config)
            new.num_hidden_layers = len(keep)
            kinds = getattr(config, "layer_types", None)
            if isinstance(kinds, list) and len(kinds) == before:
                new.layer_types = [kinds[i] for i in keep]
            copies[id(config)] = new
        part.config = copies[id(config)]
