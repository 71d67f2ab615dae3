"""A language model, or its tokenizer, as files that others load."""

import contextlib
import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rl_lightning.core.errors import ConfigurationError, RunError, shortened
from rl_lightning.llm.backbone import Backbone
from rl_lightning.llm.find import NO_WEIGHTS
from rl_lightning.llm.tokens import Tokens, control_tokens


def save_merged(backbone: Backbone, folder: str | Path) -> None:
    """Write a model, its adapters merged into the weights, with its tokenizer.

    `AutoModelForCausalLM.from_pretrained(folder)` (of a model without head: `AutoModel`) loads it,
    and so does `model: folder` here.

    Args:
        backbone: It; left as it is.
        folder: Made, with what it lies in, once all of it is written; an empty one may be there.

    Raises:
        RunError: If it cannot be written, or is there and holds something.
    """
    model = backbone.model
    if backbone.tune == "lora":
        model = copy.deepcopy(model).merge_and_unload()
    with _written(folder) as beside:
        model.save_pretrained(beside)
        backbone.tokens.tokenizer.save_pretrained(beside)


def save_without_weights(config: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write a model's config and tokenizer, for weights that are in an agent's checkpoint.

    `model: folder` with `pretrained: false` builds the model; its weights are random until the
    checkpoint is loaded.

    Args:
        config: A `PreTrainedConfig`.
        tokenizer: Of that model.
        folder: As of `save_merged`.

    Raises:
        RunError: As `save_merged` does.
    """
    with _written(folder) as beside:
        config.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        (beside / NO_WEIGHTS).write_text(
            "The weights of this language model are in the checkpoint of rl_lightning that was "
            "written with this folder, and names it. Keep both.\n"
        )


@contextlib.contextmanager
def _written(folder: str | Path) -> Iterator[Path]:
    """A folder that gets its name when all is in it; an empty one of that name may be there."""
    folder = Path(folder).resolve()
    beside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        if folder.is_dir():  # an empty one
            folder.rmdir()
        beside.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunError(f"{folder} cannot be written: {shortened(error)}") from error


def save_tokens(tokens: Tokens, path: Path) -> dict[str, Any]:
    """Write a tokenizer for the `tokenizers` library alone.

    Args:
        tokens: It.
        path: The file, `….json`.

    Returns:
        What else decides which ids a text becomes, as plain data: `max_length`,
        `truncation_side`, `pad`, `split_special_tokens`, how many tokens the template puts `before`
        and `behind` a text, which ids are `control` tokens, and which stands for the `unknown`.

    Raises:
        ConfigurationError: If transformers has the tokenizer in Python alone.
    """
    tokenizer = tokens.tokenizer
    if not tokenizer.is_fast:
        raise ConfigurationError(
            f"{type(tokenizer).__name__} is written in Python, and only transformers can run it; "
            "take a model with a tokenizer.json"
        )
    copied = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    copied.no_truncation()
    copied.no_padding()
    copied.save(str(path))
    unknown = tokenizer.unk_token_id
    ids = tokenizer.convert_tokens_to_ids(control_tokens(tokenizer))
    before, behind = tokens.around
    return {
        "file": path.name,
        "max_length": tokens.max_length,
        "truncation_side": tokens.truncation_side,
        "pad": tokens.pad_id,
        "split_special_tokens": tokens.split_special_tokens,
        "before": before,
        "behind": behind,
        "control": sorted(set(ids) - {unknown, None}),
        "unknown": unknown,
    }
