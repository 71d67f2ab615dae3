"""Running a model once on two short texts, to know what it does before a run depends on it."""

from typing import Any

import torch
from torch import Tensor, nn

from rl_lightning.core.errors import ConfigurationError, shortened


def try_out(model: Any, tokenizer: Any, name: str) -> None:
    """Refuse a model that does not make hidden states of tokens, or for which padding is text.

    Args:
        model: A transformer stack in eval mode, on the CPU.
        tokenizer: Its tokenizer.
        name: How messages call the model.

    Raises:
        ConfigurationError: That names the model and its type.
    """
    kind = f"{name} is a {model.config.model_type}"
    try:
        together, alone = read_twice(model, tokenizer)
        width: int = model.config.hidden_size
    except Exception as error:  # whatever a foreign module may do
        reason = shortened(error)
        raise ConfigurationError(
            f"{kind}, which makes no hidden states of tokens alone ({reason}): give another model"
        ) from error
    if together.shape != (2, 2, width) or alone.shape != (1, 1, width):
        raise ConfigurationError(
            f"{kind}, which makes {list(together.shape)} of 2 texts of 2 tokens instead of "
            f"{[2, 2, width]}: give another model"
        )
    difference = (together[1, :1] - alone[0]).abs().max()
    if difference > 0.1 * alone.abs().max():
        raise ConfigurationError(
            f"{kind}, for which padding is text: what it makes of a text would depend on the texts "
            "beside it; give another model"
        )


@torch.no_grad()
def read_twice(model: Any, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Hidden states of two tokens and one with padding `[2, 2, D]`, and of the one `[1, 1, D]`."""
    ids = tokenizer("a b", add_special_tokens=False, verbose=False)["input_ids"] or [0]
    first, second = ids[0], ids[-1]
    device = next(model.parameters()).device
    tokens = torch.tensor([[second, first], [first, second]], device=device)
    mask = torch.tensor([[1, 1], [1, 0]], device=device)
    with torch.random.fork_rng(devices=[]):  # a model may draw (Reformer), and must not be noticed
        together = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        alone = model(input_ids=tokens[1:, :1], attention_mask=mask[1:, :1]).last_hidden_state
    return together.float(), alone.float()


@torch.no_grad()
def is_causal(model: Any) -> bool:
    """Whether what a model with a head says of a token does not depend on the token after it."""
    device = next(model.parameters()).device
    tokens = torch.tensor([[1, 2], [1, 3]], device=device)
    first, second = model(input_ids=tokens).logits[:, 0].float()
    return bool((first - second).abs().max() <= 1e-3 * first.abs().max())


def called_layers(model: Any) -> set[str]:
    """Names of the modules that run when a text is read.

    Some models only read the weights of a linear layer (Mamba's `dt_proj`), or need it for other
    input (Longformer's global attention): an adapter around such a layer would do nothing.
    """
    called: set[str] = set()

    def note(name: str) -> Any:
        return lambda module, args: called.add(name)

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Module)
    ]
    ids = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    return called
