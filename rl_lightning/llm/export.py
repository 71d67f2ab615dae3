"""A tuned language model as a folder that others load."""

import copy
import shutil
from pathlib import Path

from safetensors import SafetensorError

from rl_lightning.core.errors import RunError, shortened
from rl_lightning.llm.backbone import Backbone


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
    folder = Path(folder).resolve()
    beside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        model.save_pretrained(beside)
        backbone.tokens.tokenizer.save_pretrained(beside)
        if folder.is_dir():  # an empty one
            folder.rmdir()
        beside.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunError(f"{folder} cannot be written: {shortened(error)}") from error
