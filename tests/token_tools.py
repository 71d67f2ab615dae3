"""Small language models of characters, prompts and agents of tokens, for tests."""

import sys
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from rl_lightning import agents
from rl_lightning.data import CompletionDataModule, PromptDataModule

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import character_model


def characters(folder: Any, *, layers: int = 2, hidden: int = 32, positions: int = 64) -> str:
    """Save a random model of characters to `folder` and return the folder's name."""
    torch.manual_seed(0)
    tokenizer = character_model.make_tokenizer("abcdefghij0123456789 :=\n")
    model = character_model.make_model(len(tokenizer), layers, hidden, 4, positions)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make(name: str, model: str, **kwargs: Any) -> Any:
    """An agent of tokens, tuned as a whole unless told otherwise."""
    torch.manual_seed(0)
    known = {"tune": "full", "optimizer": lambda groups: torch.optim.Adam(groups, lr=1e-3)}
    return getattr(agents, name)(SPEC, model, **{**known, **kwargs})


def letters_in(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The share of a's in a completion: the simplest thing to learn."""
    return [text.count("a") / 6 for text in completions]


SPEC = PromptDataModule(["a"], rewards=[letters_in]).spec


def prompts(**kwargs: Any) -> PromptDataModule:
    """Prompts whose completions are rewarded for a's."""
    rows = [f"{i}:" for i in range(10)]
    known: dict[str, Any] = {
        "rewards": [letters_in],
        "val_share": 0.2,
        "prompts_per_step": 4,
        "group_size": 4,
        "steps_per_epoch": 2,
        "total_prompts": 16,
        "max_new_tokens": 6,
    }
    return PromptDataModule(rows, **{**known, **kwargs})


def recorded(**kwargs: Any) -> CompletionDataModule:
    """Prompts with completions and pairs of them."""
    rows = [
        {"prompt": f"{i}:", "completion": f"ab{i}", "chosen": f"a{i}", "rejected": f"bb{i}"}
        for i in range(10)
    ]
    known: dict[str, Any] = {
        "val_share": 0.2,
        "batch_size": 4,
        "updates_per_epoch": 5,
        "total_updates": 10,
        "max_new_tokens": 6,
    }
    return CompletionDataModule(rows, **{**known, **kwargs})


def batch(agent: Any, p: int = 3, g: int = 4, t: int = 5, seed: int = 0) -> TensorDict:
    """Completions of random tokens with random rewards, as a data module makes them."""
    random = torch.Generator().manual_seed(seed)
    size = agent.backbone.model.config.vocab_size
    length = torch.randint(1, t + 1, (p, g), generator=random)
    return TensorDict(
        {
            "prompt": torch.randint(3, size, (p, 4), generator=random).int(),
            "prompt_length": torch.randint(1, 5, (p,), generator=random),
            "ids": torch.randint(3, size, (p, g, t), generator=random).int(),
            "length": length,
            "own": torch.arange(t) < length[..., None],
            "said": -torch.rand(p, g, t, generator=random),
            "reward": torch.rand(p, g, generator=random),
            "temperature": torch.ones(p),
            "most": torch.full((p,), t),
        },
        batch_size=[p],
    )
