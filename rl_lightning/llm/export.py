"""A tuned language model as a folder that others load."""

import copy
from pathlib import Path

from rl_lightning.llm.backbone import Backbone


def save_merged(backbone: Backbone, folder: str | Path) -> None:
    """Write a model, its adapters merged into the weights, with its tokenizer.

    `AutoModelForCausalLM.from_pretrained(folder)` (of a model without head: `AutoModel`) loads it,
    and so does `model: folder` here.

    Args:
        backbone: It; left as it is.
        folder: Made, with what it lies in.
    """
    model = backbone.model
    if backbone.tune == "lora":
        model = copy.deepcopy(model).merge_and_unload()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    backbone.tokens.tokenizer.save_pretrained(folder)
