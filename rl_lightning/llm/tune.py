"""Which weights of a language model training may change."""

import functools
import re
import warnings
from typing import Any, Literal, get_args

from torch import nn
from torch.utils.checkpoint import checkpoint

from rl_lightning.core.errors import ConfigurationError, check_one_of, shortened
from rl_lightning.llm.trial import called_layers

Tune = Literal["frozen", "lora", "full"]


def tune_backbone(
    model: Any,
    tune: Tune = "frozen",
    *,
    lora_rank: int = 8,
    lora_alpha: int = 16,
    lora_targets: list[str] | None = None,
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """Set `requires_grad` of a loaded model, adding LoRA adapters where asked for.

    LoRA (Hu et al. 2021, arXiv:2106.09685) starts as the unchanged model. It has no dropout here: a
    policy that is not the same function twice breaks importance ratios. Adapters are float32 even
    on a bfloat16 model.

    Args:
        model: A `PreTrainedModel`.
        tune: `"frozen"` trains nothing, `"lora"` low-rank adapters, `"full"` everything.
        lora_rank: Rank of the adapters.
        lora_alpha: Their output is scaled by `lora_alpha / lora_rank`.
        lora_targets: Names of the layers that get an adapter, such as `["query", "value"]`; None
            for every linear layer that runs as a layer (Schulman et al. 2025, "LoRA Without
            Regret"). Left out are those whose weights alone the model reads (Mamba's `dt_proj` and
            `out_proj`) and those that text alone never reaches (Longformer's global attention).
        gradient_checkpointing: Recompute each layer in the backward pass: about a third slower,
            much less memory. Acts in training mode only.

    Returns:
        The model, wrapped by peft if `tune` is `"lora"`.

    Raises:
        ConfigurationError: For values that cannot mean anything.
    """
    check_one_of("tune", tune, get_args(Tune))
    model.requires_grad_(tune == "full")
    if tune == "lora":
        model = _add_lora(model, lora_rank, lora_alpha, lora_targets)
    if gradient_checkpointing:
        if tune == "frozen":
            raise ConfigurationError("gradient_checkpointing=True saves nothing with tune='frozen'")
        _checkpoint_layers(model)
    return model


def _add_lora(model: Any, rank: int, alpha: int, targets: list[str] | None) -> nn.Module:
    if rank < 1:
        raise ConfigurationError(f"lora_rank={rank}: give 1 or more")
    from peft import LoraConfig, get_peft_model

    linear = {name for name, child in model.named_modules() if _is_linear(child)}
    useful = _useful(linear, called_layers(model))
    for target in targets or ():
        named = [name for name in linear if _matches(name, target)]
        if named and useful.isdisjoint(named):
            raise ConfigurationError(
                f"lora_targets={targets}: this {model.config.model_type} reads the weights of "
                f"{target} without calling the layer, or never for plain text, so that adapters "
                f"there would do nothing; there are {_names(useful)}"
            )
    useless = linear - useful
    if model.config.model_type in _MAMBA:
        useless |= {name for name in linear if name.endswith("out_proj")}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear" if targets is None else targets,
        exclude_modules=sorted(useless) if targets is None and useless else None,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # GPT-2's; peft corrects it
        warnings.filterwarnings("ignore", category=FutureWarning)  # peft's own use of transformers
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            reason = shortened(error, 250)
            raise ConfigurationError(
                f"lora_targets={targets}: there are {_names(linear - useless)} ({reason})"
            ) from error


# Their kernels read the weight of the mixers' out_proj without calling the layer; peft refuses it.
_MAMBA = frozenset({"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"})


def _useful(linear: set[str], called: set[str]) -> set[str]:
    """The layers that are called, and their like: a router calls few of many experts."""
    kinds = {_kind(name) for name in linear & called}
    return {name for name in linear if _kind(name) in kinds}


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _names(layers: set[str]) -> str:
    return ", ".join(sorted({name.split(".")[-1] for name in layers}))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def name_without_adapters(name: str) -> str:
    """What a weight is called where there are no adapters around it."""
    return re.sub(r"(\.base_layer)+\.", ".", name.removeprefix("base_model.model."))


def checkpointed_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that recompute themselves in the backward pass while they are in training mode."""
    return [m for m in model.modules() if getattr(m, "_gradient_checkpointing_func", None)]


def _checkpoint_layers(model: nn.Module) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigurationError(
            "gradient_checkpointing=True: this model has no layers that can do it"
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        # Reentrant checkpointing would lose the adapters' gradient: its inputs need none.
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
