"""Language models inside agents whose weights are part of the checkpoint, and may be changed."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from rl_lightning.compress.vocabulary import CutVocabulary, cut_vocabulary, vocabulary_tensors
from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.names import present_path, public_path
from rl_lightning.encoders.reading import ReadingEncoder
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.export import save_without_weights
from rl_lightning.llm.find import has_no_weights
from rl_lightning.llm.load import load_config

_EXTRA = "_extra_state"  # torch's name for it in a state dict


def the_language_model(agent: L.LightningModule) -> Backbone:
    """The language model that all encoders of an agent read with.

    Raises:
        ConfigurationError: If there is none, or if there are several.
    """
    models = [part for part in agent.modules() if isinstance(part, Backbone)]
    if not models:
        raise ConfigurationError(
            f"the checkpoint's {type(agent).__name__} has no language model: take a method "
            "that is not of one, or leave --part out"
        )
    kinds = {_identity(model): model for model in models}
    if len(kinds) > 1:
        described = "; ".join(", ".join(f"{k}={v}" for k, v in key[:4]) for key in kinds)
        raise ConfigurationError(
            f"the checkpoint's {type(agent).__name__} has several language models ({described}), "
            "and only one that all encoders read with can be compressed: distil the policy "
            "(Distill)"
        )
    return models[0]


def _identity(model: Backbone) -> tuple[tuple[str, str], ...]:
    own = [*model.source.items(), ("tune", model.tune), ("tokens", model.tokens.fingerprint())]
    return (*own, ("weights", "" if model.tune == "full" else model.digest()))


def own_language_model(
    agent: L.LightningModule,
    checkpoint: Mapping[str, Any],
    folder: str | Path,
    used: Iterable[str | int] | None = None,
) -> dict[str, Any]:
    """A checkpoint that holds the weights of its language model, so that they may be changed.

    The agent that is built from it acts as before, and what was frozen is frozen. It needs a folder
    with the model's config and tokenizer, which `folder` becomes, and loads no weights by name. A
    cache on disk (`keep_on_disk`) is no longer used.

    Args:
        agent: Of the checkpoint; left as it is.
        checkpoint: As `read_checkpoint` returns it.
        folder: Where to write config and tokenizer.
        used: Texts and ids of tokens that the vocabulary is cut to, see
            `rl_lightning.compress.cut_vocabulary`; None leaves it whole.

    Returns:
        The checkpoint.

    Raises:
        ConfigurationError: If the agent has no language model or several, if its vocabulary cannot
            be cut, or if the checkpoint does not say by which encoder it reads.
        RunError: If the folder cannot be written.
    """
    backbone = the_language_model(agent)
    hyper = _described_anew(agent, checkpoint.get("hyper_parameters") or {}, folder)
    config = load_config(backbone.source["model"], backbone.config_overrides)
    tokenizer, kept = backbone.tokens.tokenizer, None
    if used is not None:
        cut, smaller = _cut(backbone, used)
        tokenizer, kept = cut.tokenizer, cut.kept
        for name, value in smaller.to_dict().items():
            if name == "vocab_size" or name.endswith("_token_id"):
                setattr(config, name, value)
    save_without_weights(config, tokenizer, folder)
    owned = {**checkpoint, "hyper_parameters": hyper, "state_dict": whole_state(agent, kept)}
    if kept is not None and checkpoint.get("optimizer_states"):
        states = [_cut_moments(agent, state, kept) for state in checkpoint["optimizer_states"]]
        owned["optimizer_states"] = states
    return owned


def whole_state(agent: L.LightningModule, kept: list[int] | None = None) -> dict[str, Any]:
    """An agent's state dict with all weights of its language models.

    Args:
        agent: Not compiled.
        kept: Rows of the vocabulary that stay; None: all.
    """
    state: dict[str, Any] = dict(agent.state_dict())
    for prefix, part in agent.named_modules(remove_duplicate=False):
        if not isinstance(part, Backbone):
            continue
        for name, tensor in part.fixed_tensors().items():
            state[f"{prefix}.model.{name}"] = tensor.detach()
        state[f"{prefix}.{_EXTRA}"] = {}
        if kept is not None:
            for name in _vocabulary_names(part):
                key = f"{prefix}.model.{name}"
                state[key] = _rows(state[key], kept)
    return state


def check_own_models(agent: L.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with weights of its own for a language model that is loaded by name.

    Raises:
        ConfigurationError: That says what the encoder has to be given.
    """
    state = checkpoint.get("state_dict") or {}
    for name, part in agent.named_modules():
        if not isinstance(part, Backbone) or not part.reloadable:
            continue
        if state.get(f"{name}.{_EXTRA}") == {}:
            folder = _own_folder(checkpoint.get("hyper_parameters"))
            raise ConfigurationError(
                f"the checkpoint holds the weights of its language model, and {name} of this "
                f"{type(agent).__name__} is {part.source['model']}, loaded by name: give its "
                f"encoder `pretrained: false`{folder and f' and `model: {folder}`'}, or build the "
                "agent from the checkpoint alone (load_from_checkpoint)"
            )


def with_moved_models(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """A checkpoint that finds its language model's config and tokenizer where they lie beside it.

    Args:
        checkpoint: As it was read; left as it is.
        path: From where.

    Returns:
        A checkpoint in which folders that are gone, and have one of that name beside the file, are
        that one.
    """

    def found(value: Any) -> Any:
        if isinstance(value, Mapping):
            new = {key: found(entry) for key, entry in value.items()}
            named = new.get("model")
            if new.get("pretrained") is False and isinstance(named, str):
                beside = Path(path).resolve().parent / Path(named).name
                if not Path(named).is_dir() and has_no_weights(str(beside)):
                    new["model"] = str(beside)
            return new
        return [found(entry) for entry in value] if isinstance(value, list) else value

    hyper = checkpoint.get("hyper_parameters")
    return {**checkpoint, "hyper_parameters": found(hyper)} if hyper else checkpoint


def _own_folder(hyper: Any) -> str:
    """Which model a checkpoint's encoder builds without weights; empty if it does not say."""
    if isinstance(hyper, Mapping):
        if hyper.get("pretrained") is False and isinstance(hyper.get("model"), str):
            return hyper["model"]
        hyper = list(hyper.values())
    return next(filter(None, map(_own_folder, hyper)), "") if isinstance(hyper, list) else ""


def _plain(backbone: Backbone) -> Any:
    """The model without what adapters put around it."""
    model = backbone.model
    return model.get_base_model() if backbone.tune == "lora" else model


def _cut(backbone: Backbone, used: Iterable[str | int]) -> tuple[CutVocabulary, Any]:
    """The smaller vocabulary, and the config of a model that has it."""
    model = copy.deepcopy(_plain(backbone))
    cut = cut_vocabulary(model, backbone.tokens.tokenizer, used)
    return cut, model.config


def _vocabulary_names(backbone: Backbone) -> list[str]:
    """Names in `backbone.model` of what has a row for each token."""
    rows = {id(tensor) for tensor in vocabulary_tensors(_plain(backbone))}
    every = backbone.model.state_dict(keep_vars=True)
    return [name for name, tensor in every.items() if id(tensor) in rows]


def _rows(tensor: Tensor, kept: list[int]) -> Tensor:
    return tensor.index_select(0, torch.tensor(kept, device=tensor.device))


def _cut_moments(agent: Any, state: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """An optimizer's state, of the rows that are kept alone where it is of a vocabulary."""
    groups = agent.configure_optimizers().param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    models = [part for part in agent.modules() if isinstance(part, Backbone)]
    sized = {id(tensor) for model in models for tensor in vocabulary_tensors(_plain(model))}
    own = dict(state["state"])
    for number, parameter in enumerate(parameters):
        if id(parameter) in sized and number in own:
            own[number] = {
                key: _rows(value, kept)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in own[number].items()
            }
    return {**state, "state": own}


def _described_anew(agent: Any, hyper: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Hyper-parameters whose encoders read with the model of a folder, and load no weights."""
    readers = {public_path(type(e)) for e in agent.modules() if isinstance(e, ReadingEncoder)}
    changed = {"model": str(Path(folder).resolve()), "pretrained": False}
    left_out = ("config_overrides", "keep_on_disk")  # one is in the config, one is for named models

    def anew(value: Any) -> Any:
        if isinstance(value, str) and present_path(value) in readers:
            value = {"class_path": value}
        if isinstance(value, Mapping):
            new = {key: anew(entry) for key, entry in value.items() if key != "class_path"}
            path = value.get("class_path")
            if isinstance(path, str) and present_path(path) in readers:
                init = {k: v for k, v in (new.get("init_args") or {}).items() if k not in left_out}
                new["init_args"] = {**init, **changed}
            return new if path is None else {"class_path": path, **new}
        return [anew(entry) for entry in value] if isinstance(value, list) else value

    described = {key: entry if key.startswith("_") else anew(entry) for key, entry in hyper.items()}
    if described == dict(hyper):
        raise ConfigurationError(
            f"the checkpoint's {type(agent).__name__} does not say by which encoder it reads with "
            "its language model: build it with encoder: LLMEncoder or TextActionEncoder"
        )
    return described
