"""capscore's optimisers as PyTorch's own, which are fused; others run as they are, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import capscore.backends.torch as ops  # which imports this module last
from capscore.optim import SGD, Adam, AdamW, Optimiser

SLOTS = {"first": "exp_avg", "second": "exp_avg_sq", "momentum": "momentum_buffer"}  # our names, PyTorch's


def engine(optimiser: Optimiser, params: list[Tensor]) -> torch.optim.Optimizer:
    """Return what steps by PyTorch's means as the optimiser does by capscore's."""
    own: Any = optimiser
    match optimiser:
        case _ if type(optimiser) is Adam:
            return torch.optim.Adam(params, betas=(own.beta1, own.beta2), eps=own.epsilon, fused=True)
        case _ if type(optimiser) is AdamW:
            groups = _groups(params, own.decay)
            return torch.optim.AdamW(groups, betas=(own.beta1, own.beta2), eps=own.epsilon, fused=True)
        case _ if type(optimiser) is SGD:
            groups = _groups(params, own.decay)
            return torch.optim.SGD(groups, momentum=own.momentum, nesterov=own.nesterov, fused=True)
        case _:
            return Generic(optimiser, params)


def _groups(params: list[Tensor], decay: float) -> list[dict[str, Any]]:
    """Return the parameters that decay, and those that do not; see `AdamW`."""
    weights = [p for p in params if p.ndim > 1]
    others = [p for p in params if p.ndim <= 1]
    groups = {"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}
    return [group for group in groups if group["params"]]


class Generic(torch.optim.Optimizer):
    """Any optimiser of capscore, by its own arithmetic."""

    def __init__(self, optimiser: Optimiser, params: list[Tensor]) -> None:
        super().__init__(params, {"lr": 0.0})
        self.optimiser = optimiser

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Make one step with the gradients at hand."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state[p]
                kept["step"] = kept.get("step", torch.zeros(())) + 1
                slots = {slot: kept.get(SLOTS.get(slot, slot), torch.zeros_like(p)) for slot in self.optimiser.slots}
                new, slots = self.optimiser.update(ops, p, p.grad, slots, group["lr"], int(kept["step"]))
                p.copy_(new)
                kept |= {SLOTS.get(slot, slot): array for slot, array in slots.items()}
