"""A language model as a module that Lightning can train, copy and save sparingly."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.sharing import shared
from rl_lightning.llm.find import has_no_weights
from rl_lightning.llm.load import Dtype, load_backbone
from rl_lightning.llm.logits import Logits, read_logits
from rl_lightning.llm.tokens import Tokens, TruncationSide
from rl_lightning.llm.tune import Tune, checkpointed_layers, name_without_adapters, tune_backbone
from rl_lightning.nn.compiled import name_inside, plain_name


class Backbone(nn.Module):
    """Token ids → hidden states, with all that is special about a language model inside an agent.

    - It never drops out, in training mode either: else PPO's first ratio would not be 1.
    - Where its weights can be loaded again by name (`pretrained`, and not `tune="full"`), what
      training does not change is left out of `state_dict()`, need not be there when loading, and is
      shared by deep copies. A digest of it is saved instead, and loading a checkpoint onto a model
      with other weights is an error.
    - Where its weights are the checkpoint's own (a folder of `save_without_weights`), all of them
      are part of `state_dict()`, and operators of `rl_lightning.compress` may change its layers.
    - Inside `rl_lightning.core.sharing.sharing`, backbones of the same model have their unchanging
      weights in common, and frozen ones the whole module.
    - Frozen weights, and adapters, keep their dtype: `.to(torch.bfloat16)` does not cast them.

    Args:
        model: Hub name, folder or weights package, see `rl_lightning.llm.load.find_model`.
        tune: See `rl_lightning.llm.tune.tune_backbone`, as for the `lora_*` arguments.
        layers: Transformer layers to keep; None keeps all.
        dtype: Of the weights.
        max_length: Most tokens of a text.
        gradient_checkpointing: Less memory, slower updates.
        pretrained: False starts from random weights, which are then part of `state_dict()`.
        config_overrides: Their sizes, see `rl_lightning.llm.load.load_backbone`.
        truncation_side: See `rl_lightning.llm.tokens.Tokens`, as for `split_special_tokens`.
        trust_remote_code: See `rl_lightning.llm.load.load_backbone`.
        head: Keep what predicts the next token, for `logits`; `forward` is for models without.

    Attributes:
        tokens: The tokenizer, see `rl_lightning.llm.tokens.Tokens`.
        hidden_size: Width of the hidden states.
        encoder_decoder: Whether it reads by one half and writes by the other.
        positions: Tokens it can read, or None without limit.
        embedding_size: Width of what it knows tokens by; 0 without head.
    """

    def __init__(
        self,
        model: str,
        *,
        tune: Tune = "frozen",
        layers: int | None = None,
        dtype: Dtype = "float32",
        max_length: int = 128,
        lora_rank: int = 8,
        lora_alpha: int = 16,
        lora_targets: list[str] | None = None,
        gradient_checkpointing: bool = False,
        pretrained: bool = True,
        config_overrides: Mapping[str, Any] | None = None,
        truncation_side: TruncationSide | None = None,
        split_special_tokens: bool = True,
        trust_remote_code: bool = False,
        head: bool = False,
    ) -> None:
        super().__init__()
        self.source = {"model": model, "layers": str(layers), "dtype": dtype}
        self.tune = tune
        self.reloadable = pretrained and tune != "full"
        self.config_overrides = dict(config_overrides or {})
        self._key: Any = None  # by which `sharing` knows what was loaded

        def load() -> tuple[Any, Any]:
            return load_backbone(
                model,
                layers=layers,
                dtype=dtype,
                pretrained=pretrained,
                config_overrides=config_overrides,
                trust_remote_code=trust_remote_code,
                head=head,
            )

        if self.reloadable and not config_overrides:
            self._key = (load_backbone, model, layers, dtype, trust_remote_code, head)
            loaded, tokenizer = shared(self._key, load, None if tune == "frozen" else _twin)
        elif tune != "full" and not pretrained and has_no_weights(model):
            # Their weights are equal once the checkpoint is loaded. Not by `_key`: what else reads
            # with this folder may be of another checkpoint.
            own = (has_no_weights, model, layers, dtype, head)
            loaded, tokenizer = shared(own, load, None if tune == "frozen" else _twin)
        else:
            loaded, tokenizer = load()
        self.hidden_size: int = loaded.config.hidden_size
        self.encoder_decoder = head and bool(loaded.config.is_encoder_decoder)
        self.positions = _positions(loaded)
        self.embedding_size = int(loaded.get_input_embeddings().weight.shape[-1]) if head else 0
        self.tokens = Tokens(
            tokenizer, max_length, self.positions, truncation_side, split_special_tokens
        )
        self.model: Any = tune_backbone(
            loaded,
            tune,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            gradient_checkpointing=gradient_checkpointing,
        )
        # Of now: an owner may set `requires_grad` of a target network's adapters to False.
        self._trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        self._digest: str | None = None
        self.register_state_dict_post_hook(_leave_out_fixed)
        self.register_load_state_dict_pre_hook(_fill_in_fixed)
        self.register_load_state_dict_post_hook(_forget_digest)
        self.train(self.training)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states of right-padded texts.

        Args:
            ids: Token ids, any integer dtype, `[N, L]`.
            mask: Attention mask, `[N, L]`.

        Returns:
            The last layer's output `[N, L, D]`; what stands on padding means nothing.
        """
        return self.model(input_ids=ids.long(), attention_mask=mask.long()).last_hidden_state

    def logits(self, select: Tensor, **inputs: Any) -> Logits:
        """Hidden states and some positions' logits, see `rl_lightning.llm.logits.read_logits`."""
        return read_logits(self.model, select, **inputs)

    def embeddings(self, ids: Tensor) -> Tensor:
        """What the model knows tokens by, `[..., D]`, float32, without gradient."""
        return self.model.get_input_embeddings().weight.detach()[ids.long()].float()

    def digest(self) -> str:
        """A digest of the weights that training does not change (about a second per GB, once)."""
        if self._digest is None:
            hasher = hashlib.blake2b(digest_size=16)
            for name, fixed in self.fixed_tensors().items():
                tensor = fixed.detach().cpu()
                # The same weights have the same digest with and without adapters around them.
                plain = name_without_adapters(name)
                hasher.update(f"{plain} {tensor.dtype} {list(tensor.shape)}\n".encode())
                hasher.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            self._digest = hasher.hexdigest()
        return self._digest

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        self.model.eval()
        for layer in checkpointed_layers(self.model):
            layer.training = mode  # this layer only, not what is in it: there may be dropout
        return self

    def get_extra_state(self) -> dict[str, str]:
        return {**self.source, "weights": self.digest()} if self.reloadable else {}

    def set_extra_state(self, state: dict[str, str]) -> None:
        here = self.get_extra_state()
        if state.get("weights") == here.get("weights"):
            return
        if not here or not state:
            without, with_ = ("checkpoint", "model") if here else ("model", "checkpoint")
            raise ConfigurationError(
                f"the {with_} expects the backbone to be loaded by name, the {without} does not: "
                "construct the encoder with the `pretrained` and `tune` it was trained with"
            )
        raise ConfigurationError(
            "this checkpoint was trained on a backbone with other weights than the one loaded: "
            f"{_describe(state)} in the checkpoint, {_describe(here)} here"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Backbone":
        if self.tune == "full":
            return super()._apply(fn, recurse)

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backbone":
        if self.reloadable:
            for tensor in self.fixed_tensors().values():
                memo.setdefault(id(tensor), _same_storage(tensor))
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def fixed_tensors(self) -> dict[str, Tensor]:
        """What training does not change, by its name in `model` when nothing is compiled."""
        tensors = self.model.state_dict(keep_vars=True)
        named = {plain_name(name): tensor for name, tensor in tensors.items()}
        return {name: tensor for name, tensor in named.items() if name not in self._trained}

    def forget(self) -> None:
        """Told that its layers were changed: the digest is of other weights."""
        self._digest = None


def frozen_models(module: nn.Module) -> dict[Any, Any]:
    """Frozen language models inside a module, for `sharing`: who reads with the same one, and goes
    wherever the module goes, need not load it again."""
    return {
        part._key: (part.model, part.tokens.tokenizer)
        for part in module.modules()
        if isinstance(part, Backbone) and part.tune == "frozen" and part._key is not None
    }


def _same_storage(tensor: Tensor) -> Tensor:
    """The same memory by another object: moving one to a device leaves the other where it is."""
    alias = tensor.detach()
    return nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias


def _twin(loaded: tuple[Any, Any]) -> tuple[Any, Any]:
    """Modules of their own around the same weights, for adapters to be put into."""
    model, tokenizer = loaded
    return copy.deepcopy(model, {id(p): p for p in model.parameters()}), tokenizer


def _positions(model: nn.Module) -> int | None:
    """Tokens a model can read, or None without limit (T5)."""
    rows = getattr(model.config, "max_position_embeddings", None)
    for name, child in model.named_modules():
        # RoBERTa counts positions from behind the pad token's id.
        if rows and name.endswith("position_embeddings") and isinstance(child, nn.Embedding):
            return rows - (0 if child.padding_idx is None else child.padding_idx + 1)
    return rows if rows and rows > 0 else None  # XLNet says -1


def _describe(state: dict[str, str]) -> str:
    source = ", ".join(f"{key}={state.get(key)}" for key in ("model", "layers", "dtype"))
    return f"{state.get('weights')} ({source})"


# Hooks are functions of the module they are called with, so that they survive deep copies.


def _leave_out_fixed(
    backbone: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    assert isinstance(backbone, Backbone)
    if backbone.reloadable:
        for name in backbone.fixed_tensors():
            del state[f"{prefix}{name_inside(backbone, f'model.{name}')}"]


def _fill_in_fixed(
    backbone: nn.Module, state: dict[str, Any], prefix: str, *strictness: Any
) -> None:
    assert isinstance(backbone, Backbone)
    if backbone.reloadable:
        for name, tensor in backbone.fixed_tensors().items():
            state.setdefault(f"{prefix}{name_inside(backbone, f'model.{name}')}", tensor)


def _forget_digest(backbone: nn.Module, incompatible: Any) -> None:
    assert isinstance(backbone, Backbone)
    if not backbone.reloadable:
        backbone.forget()
