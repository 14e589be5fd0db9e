"""Says before a run what learns in it, and after two steps whether it did."""

import logging

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.optim import Optimizer

from ...vision.adapters import adapter_of, host, in_words
from ..learning import outside_heads, summary

log = logging.getLogger("patchloom.train")
LOOKED_AT = 2  # optimiser steps: behind a neutral start the first gives half of an adapter no gradient


class Learning(L.Callback):
    """Tells what learns (`summary`). A run stops whose adapter got no gradient in its first two steps."""

    def __init__(self, summary: bool = True):
        self.summary, self.steps = summary, 0
        self.moved: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.steps, self.moved = 0, set()
        if self.summary and not trainer.fast_dev_run:
            tell(summary(getattr(module, "model", module)))

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer) -> None:
        model = getattr(module, "model", module)
        if self.steps >= LOOKED_AT or (adapter := adapter_of(model)) is None:
            return
        own = outside_heads(host(model))
        self.steps += 1
        self.moved |= {name for name, p in own.items() if p.grad is not None and bool(torch.count_nonzero(p.grad))}
        if self.steps < LOOKED_AT or not (still := [name for name in own if name not in self.moved]):
            return
        what = (
            f"adapter {in_words(adapter)}: {len(still)} of its {len(own)} tensors got no gradient in {LOOKED_AT} steps"
        )
        if not self.moved:
            raise ValueError(f"{what}, as {still[0]}: it would train nothing but the head")
        log.warning("%s, as %s", what, still[0])


@rank_zero_only
def tell(text: str) -> None:
    log.info(text)
