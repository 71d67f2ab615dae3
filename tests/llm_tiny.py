"""Tiny random language models on disk, with a real tokenizer: `tiny_model("bert", folder)`."""

import os
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Kind = Literal["bert", "gpt2", "llama", "t5", "qwen3", "gemma2", "mamba"]
KINDS: tuple[Kind, ...] = ("bert", "gpt2", "llama", "t5")
WRITERS: tuple[Kind, ...] = ("gpt2", "llama", "qwen3", "gemma2")  # decoders that choose actions

CORPUS = [
    "go to the red ball",
    "pick up the green key and open the yellow door",
    "You see a wall 2 steps forward",
    "You see a grey box 1 step left and 3 steps forward",
    "You carry a blue key",
    "There is a wall to the north. The goal is to the east.",
]


def _like(kind: Kind) -> str:
    """The kind whose tokenizer it has."""
    return kind if kind in KINDS else "llama"


def _tokenizer(kind: Kind) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {
        "bert": ["[PAD]", "[CLS]", "[SEP]"],
        "gpt2": ["<|endoftext|>"],
        "llama": ["<s>", "</s>"],
        "t5": ["<pad>", "</s>"],
    }[_like(kind)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    template, roles = {
        "bert": ("[CLS] $A [SEP]", {"pad_token": "[PAD]"}),
        "gpt2": (None, {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}),
        "llama": ("<s> $A", {"bos_token": "<s>", "eos_token": "</s>"}),
        "t5": ("$A </s>", {"pad_token": "<pad>", "eos_token": "</s>"}),
    }[_like(kind)]
    if template:
        used = [(t, tokenizer.token_to_id(t)) for t in special if t in template.split()]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=used
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def tiny_model(
    kind: Kind,
    folder: Any,
    *,
    layers: int = 3,
    hidden: int = 32,
    seed: int = 0,
    window: int = 4096,
) -> str:
    """Save a random model and its tokenizer to `folder` and return the folder's name.

    Any text can be tokenised; known words are few tokens. Dropout probabilities are 0.1, weights
    are larger than is usual, so that features of different texts differ clearly.

    Args:
        kind: `"bert"` (encoder), `"gpt2"`, `"llama"` (decoders, no pad token), `"t5"`, `"qwen3"`,
            `"gemma2"` (soft caps, a window) or `"mamba"` (no attention).
        folder: Where to save.
        layers: Transformer layers.
        hidden: Width.
        seed: Of the weights; torch's own state is left as it was.
        window: Tokens that every other layer of a gemma2 looks back.
    """
    import torch
    import transformers as t

    tokenizer = _tokenizer(kind)
    size = len(tokenizer)
    if kind == "bert":
        model_class, config = (
            t.BertForMaskedLM,
            t.BertConfig(
                vocab_size=size,
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=2 * hidden,
                max_position_embeddings=256,
                initializer_range=0.2,
            ),
        )
    elif kind == "gpt2":
        model_class, config = (
            t.GPT2LMHeadModel,
            t.GPT2Config(
                vocab_size=size,
                n_embd=hidden,
                n_layer=layers,
                n_head=4,
                n_positions=256,
                initializer_range=0.2,
                bos_token_id=0,
                eos_token_id=0,
            ),
        )
    elif kind == "llama":
        model_class, config = (
            t.LlamaForCausalLM,
            t.LlamaConfig(
                vocab_size=size,
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=2 * hidden,
                max_position_embeddings=256,
                initializer_range=0.2,
                bos_token_id=0,
                eos_token_id=1,
            ),
        )
    elif kind in ("qwen3", "gemma2"):
        sizes = {
            "vocab_size": size,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": hidden // 4,
            "intermediate_size": 2 * hidden,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": None,
        }
        if kind == "qwen3":
            model_class, config = t.Qwen3ForCausalLM, t.Qwen3Config(**sizes)
        else:
            model_class = t.Gemma2ForCausalLM
            config = t.Gemma2Config(**sizes, sliding_window=window, query_pre_attn_scalar=8)
    elif kind == "mamba":
        model_class, config = (
            t.MambaForCausalLM,
            t.MambaConfig(
                vocab_size=size, hidden_size=hidden, num_hidden_layers=layers, state_size=4,
                initializer_range=0.5, bos_token_id=0, eos_token_id=1, pad_token_id=0,
            ),
        )  # fmt: skip
    else:
        model_class, config = (
            t.T5ForConditionalGeneration,
            t.T5Config(
                vocab_size=size,
                d_model=hidden,
                num_layers=layers,
                num_heads=4,
                d_kv=hidden // 4,
                d_ff=2 * hidden,
                pad_token_id=0,
                eos_token_id=1,
                decoder_start_token_id=0,
            ),
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    Path(folder).mkdir(parents=True, exist_ok=True)
    bars = t.utils.logging.is_progress_bar_enabled()
    t.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if bars:
        t.utils.logging.enable_progress_bar()
    return str(folder)


def stirred(backbone: Any, seed: int = 0) -> Any:
    """A backbone whose adapters do something."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return backbone
