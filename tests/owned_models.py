"""A language model of a few words on disk, and agents that read with it, for tests."""

from typing import Any

import text_probes  # noqa: F401  (registers the environments)
from training import make_trainer

from rl_lightning import RolloutDataModule

NAMED = "text_probes:TextNamed-v0"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "blue", "zebra", "there", "is", "a", "wall", "to"]
WORDS += ["the", "north", "east", "south", "west", "box", "w", "##all", ".", "door"]
SEEN = "There is a wall to the north."


def words_model(folder: Any, layers: int = 2) -> str:
    """Save a random BERT of `WORDS` and its WordPiece tokenizer; the folder's name."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(WORDS)}
    rules = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    rules.normalizer = normalizers.BertNormalizer()
    rules.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rules.add_special_tokens(WORDS[:4])
    rules.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=rules, sep_token="[SEP]", **roles)
    config = t.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=32, max_position_embeddings=128, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        t.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trained(make: Any, path: Any, data: Any = None, frames: int = 32) -> str:
    """The checkpoint of an agent that was trained for a moment.

    Args:
        make: Builds it from the environment's spaces.
        path: The file.
        data: Its data module; None: rollouts of `NAMED`.
        frames: Of training.
    """
    data = data or RolloutDataModule(
        env=NAMED, num_envs=2, rollout_steps=8, passes=1, total_frames=frames,
        val_episodes=4, val_num_envs=2,
    )  # fmt: skip
    trainer = make_trainer()
    trainer.fit(make(data.spec), data)
    trainer.save_checkpoint(path)
    return str(path)
