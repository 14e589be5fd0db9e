"""The exponential moving average of a model's weights, by which it is judged where it is on."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..vision.adapters import book, unadapted


@dataclass(frozen=True)
class Ema:
    """average <- d * average + (1 - d) * weights after every optimiser step; d = min(decay, (1 + t) / (10 + t)) while
    `warmup`.

    t counts optimiser steps, so the average of a short run does not remember the random start.
    """

    decay: float = 0.9998
    warmup: bool = True

    def at(self, step: int) -> float:
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


class Average(nn.Module):
    """A copy of `model` that follows it, in the checkpoint as `ema.module.…`. What an adapter froze they share."""

    def __init__(self, model: nn.Module, spec: Ema):
        super().__init__()
        if not 0 <= spec.decay < 1:
            raise ValueError(f"ema.decay={spec.decay}: give a number in [0, 1)")
        shared = frozen_trunk(model)
        low = {p.dtype for p in model.parameters() if id(p) not in shared} & {torch.float16, torch.bfloat16}
        if low:
            raise ValueError(
                f"ema of weights in {low.pop()}: its small steps round away; use precision bf16-mixed or 16-mixed"
            )
        self.spec, self.module = spec, deepcopy(model, shared).requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        return self.module(image)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Parameters and floating buffers follow; counters and index tables are copied. `step` counts from 1."""
        ours = [*self.module.parameters(), *self.module.buffers()]
        theirs = [*model.parameters(), *model.buffers()]
        apart = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not b]
        moving = [(a, b.detach()) for a, b in apart if a.is_floating_point()]
        for in_parts in (False, True):  # FSDP's parameters and plain buffers do not mix
            some = [(a, b) for a, b in moving if hasattr(a, "full_tensor") == in_parts]
            if some:
                torch._foreach_lerp_([a for a, _ in some], [b for _, b in some], 1 - self.spec.at(step))
        for a, b in apart:
            if not a.is_floating_point():
                a.copy_(b)


def frozen_trunk(model: nn.Module) -> dict[int, Any]:
    """The parameters below an adapter, by their ids: a copy with this memo has them in common with the model."""
    if book(model) is None:
        return {}
    with unadapted(model):
        return {id(p): p for p in model.parameters()}
