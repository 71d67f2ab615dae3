"""A model's config: what a user may change in it, and what its author may not."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from rl_lightning.core.errors import ConfigurationError


def override(config: Any, overrides: Mapping[str, Any]) -> None:
    """Set entries of a loaded config; nothing but its own fields, and plain data only.

    transformers' own way, keyword arguments of `from_pretrained`, takes switches such as
    `trust_remote_code` among them.

    Args:
        config: A `PreTrainedConfig`, changed in place.
        overrides: Values by field. Of a config inside it, a dictionary of its fields.

    Raises:
        ConfigurationError: For what is no field of that config, or no plain data.
    """
    fields = _fields(config)
    unknown = [name for name in overrides if name not in fields]
    if unknown:
        raise ConfigurationError(
            f"config_overrides: the model's config has no {', '.join(map(repr, unknown))}; it has "
            f"{_cut(', '.join(sorted(fields)), 400)}"
        )
    for name, value in overrides.items():
        inner = getattr(config, name)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            override(inner, value)
        elif _plain(value):
            setattr(config, name, value)
        else:
            raise ConfigurationError(
                f"config_overrides: {name} is a {type(value).__name__}; give plain data"
            )


def _fields(config: Any) -> set[str]:
    """What a model's config has of its own; every config's own entries say how to load it."""
    from transformers import PreTrainedConfig

    names = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map)
    if not type(config).__module__.startswith("transformers."):
        names |= set(vars(config))  # code that the user trusts; it need not declare its fields
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"auto_map"}
    return {name for name in names - common if not name.startswith("_")}


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str | int) and _plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def without_code(config: Any, model: str) -> None:
    """Refuse or remove what would let a model's config bring in code from elsewhere.

    Its author may name Python files (`auto_map`; also inside, where transformers asks on a terminal
    instead of refusing), compiled kernels on the hub, and quantisers, which import packages.

    Raises:
        ConfigurationError: If the model cannot be had without.
    """
    for each in _configs(config):
        if "auto_map" in vars(each):
            del each.auto_map
        implementations = {
            "attn_implementation": (each._attn_implementation, ("eager", "sdpa")),
            "experts_implementation": (
                each._experts_implementation,
                ("eager", "batched_mm", "grouped_mm"),
            ),
        }
        asked = {k: v for k, (v, known) in implementations.items() if v and v not in known}
        for name in ("quantization_config", "fusion_config"):
            if getattr(each, name, None) is not None:
                asked[name] = getattr(each, name)
        if asked:
            name, value = next(iter(asked.items()))
            raise ConfigurationError(
                f"model={model!r}: its config.json asks for {name}={_cut(str(value), 120)}, which "
                "loads code or packages that the model's author chose; remove that entry, take a "
                "model without it, or, if you trust it, set trust_remote_code: true"
            )


def check_reads_text(config: Any, model: str) -> None:
    """Refuse a model that reads something else, or something else besides.

    Raises:
        ConfigurationError: That names the type of the model.
    """
    from transformers import MODEL_MAPPING

    inside = type(config).sub_configs
    other = next((n for n in inside if n not in ("text_config", "encoder", "decoder")), None)
    if other is not None and "text_config" in inside:
        raise ConfigurationError(
            f"model={model!r} is a {config.model_type}, which reads text and more "
            f"({other.removesuffix('_config')}): give a model of text alone, such as its text "
            "tower saved by itself (for CLIP: transformers' "
            "CLIPTextModel.from_pretrained(...).save_pretrained(folder))"
        )
    if type(config) not in MODEL_MAPPING:
        return  # of its author's own code, or none: loading it says so
    kind: Any = MODEL_MAPPING[type(config)]
    reads = list(inspect.signature(kind.forward).parameters)[1:]
    if "input_ids" not in reads:
        raise ConfigurationError(
            f"model={model!r} is a {config.model_type}, which reads {reads[0]} and no text: give a "
            "language model"
        )


def _configs(config: Any) -> Iterator[Any]:
    """A config and all configs inside it."""
    from transformers import PreTrainedConfig

    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _configs(value)


def no_dropout(config: Any) -> None:
    """Set every dropout probability to 0, and keep no cache of keys and values."""
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float) and value > 0:
            setattr(config, key, 0.0)
    if getattr(config, "use_cache", False):
        config.use_cache = False


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} …"
