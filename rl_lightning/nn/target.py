"""Target networks: copies that follow slowly, of what is trained and of nothing else."""

import copy
from typing import TypeVar

import torch
from torch import nn

from rl_lightning.nn.compiled import plain_name
from rl_lightning.nn.insides import copy_all, lerp_all

M = TypeVar("M", bound=nn.Module)


def make_target(module: M) -> M:
    """A copy for bootstrapping, without gradient.

    Parts in which nothing is trained (a frozen language model, running statistics) are not copied
    but shared, so they cost no memory and are never out of date; so are frozen weights inside parts
    that are trained (the base of a LoRA model).
    """
    memo: dict[int, object] = {}
    for child in module.modules():
        if not any(p.requires_grad for p in child.parameters()):
            memo[id(child)] = child
    for parameter in module.parameters():
        if not parameter.requires_grad:
            memo[id(parameter)] = parameter
    target = copy.deepcopy(module, memo)
    for parameter in target.parameters():
        parameter.requires_grad_(False)
    return target


class TargetUpdate:
    """θ' ← θ' + τ (θ − θ') for all parameters at once.

    Args:
        online: What is trained.
        target: `make_target` of it, or a part of that.
    """

    def __init__(self, online: nn.Module, target: nn.Module) -> None:
        parameters = {plain_name(name): p for name, p in online.named_parameters()}
        buffers = {plain_name(name): p for name, p in online.named_buffers()}
        pairs = [(parameters[plain_name(name)], q) for name, q in target.named_parameters()]
        own = [(buffers[plain_name(name)], q) for name, q in target.named_buffers()]
        self.pairs = [(p, q) for p, q in pairs if p is not q]
        self.buffers = [(p, q) for p, q in own if p is not q]

    @torch.no_grad()
    def __call__(self, tau: float = 1.0) -> None:
        """Move by τ; buffers (such as batch statistics) are copied."""
        if not self.pairs:
            return
        online, target = zip(*self.pairs, strict=True)
        if tau == 1.0:
            copy_all(target, online)
        else:
            lerp_all(target, online, tau)
        for source, copied in self.buffers:
            copied.copy_(source)
