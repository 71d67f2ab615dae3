"""One of two ranks: gradients by its half of the completions: `... RANK MODEL FOLDER`."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict

sys.path.insert(0, str(Path(__file__).parents[1]))
from token_tools import batch, make

from rl_lightning.core.ranks import gather
from rl_lightning.data.prompt_module import _mean

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo by its batch": ("GRPO", {"scale": "batch"}),
    "grpo by its groups": ("GRPO", {"loss_type": "grpo"}),
    "grpo by constant length": ("GRPO", {"loss_type": "dr_grpo", "scale": "none"}),
    "grpo with a reference": ("GRPO", {"kl_coef": 0.1}),
    "rloo": ("RLOO", {}),
    "plus plus": ("REINFORCEPlusPlus", {}),
    "plus plus with a baseline": ("REINFORCEPlusPlus", {"baseline": "group", "kl_coef": 0.0}),
    "critic": ("TokenPPO", {}),
    "the best": ("SFT", {"keep": "best"}),
    "preferences": ("DPO", {}),
}


def completions(agent: Any, pairs: bool) -> TensorDict:
    """Four prompts; those of the second half have short completions."""
    rows = batch(agent, p=4, g=2 if pairs else 4, t=7)
    rows["length"][2:] = rows["length"][2:].clamp(max=3)
    rows["own"] = torch.arange(7) < rows["length"][..., None]
    return rows


def gradient(name: str, model: str, half: slice) -> torch.Tensor:
    """Of an agent's loss on some of the prompts, as one minibatch."""
    kind, given = CASES[name]
    agent = make(kind, model, **given)
    rows = completions(agent, kind == "DPO")[half]
    longest = int(rows["length"].max())
    for key in ("ids", "own", "said"):
        rows[key] = rows[key][..., :longest]
    with torch.no_grad():
        for p in agent.backbone.parameters():  # away from the reference
            p.add_(0.02 * torch.arange(p.numel()).sin().view_as(p))
        rows = agent.prepare_completions(rows, len(rows), once=False)
    agent.loss(rows).value.backward()
    return torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None])


def main() -> None:
    rank, model, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    half = slice(2 * rank, 2 * rank + 2)
    found: dict[str, Any] = {name: gradient(name, model, half) for name in CASES}
    own = {"reward": float(rank), **({"reward/rare": 3.0} if rank else {})}
    found["means"] = _mean(gather(own))
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
