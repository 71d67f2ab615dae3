"""Make a small language model with random weights, whose tokens are characters.

    python examples/character_model.py --out checkpoints/models/characters

It knows nothing yet: `SFT` or reinforcement learning teaches it. The folder is an ordinary model:
`model: checkpoints/models/characters` in a configuration loads it, as
`AutoModelForCausalLM.from_pretrained` does.
"""

import argparse
import string
from pathlib import Path
from typing import Any

import torch
from small_language_model import make_model

CHARACTERS = string.digits + string.ascii_lowercase + " +-*=,.:;?>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--characters", default=CHARACTERS, help="all that it can read and write")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--positions", type=int, default=256, help="most tokens of a text")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} is there already, and checkpoints may need it: take another name")
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer(args.characters)
    model = make_model(len(tokenizer), args.layers, args.hidden, args.heads, args.positions)
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    size = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {size:,} parameters, {len(tokenizer)} tokens")


def make_tokenizer(characters: str) -> Any:
    """One token a character, a beginning and an end of texts, and one for all that is unknown."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", *dict.fromkeys(characters)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


if __name__ == "__main__":
    main()
