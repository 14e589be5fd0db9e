"""AdaLoRA (https://arxiv.org/abs/2303.10512): ranks fall where they matter least while the adapter learns."""

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...vision.adapters import adapter_of
from ...vision.adapters.lora import AdaLora
from ...vision.adapters.lora_house import NAME

AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of each number's importance and of how sure that is


class AdaLoraRanks(L.Callback):
    """Lets the ranks of an `AdaLora` fall as it says, by peft's allocator, and adds its `orthogonal` term's gradient.

    After each optimiser step the averages of importance are brought up to date, and every so many steps those E that
    matter least become 0; in the last share of the run they stay so. A run resumed goes on exactly. `Classify` brings
    it along with such an adapter.
    """

    def __init__(self) -> None:
        self.allocator: Any = None
        self.pattern: dict[str, list[bool]] | None = None
        self.seen = 0  # optimiser steps that have been counted
        self.saved: dict[str, dict[str, Tensor]] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        from peft.tuners.adalora.layer import RankAllocator

        adapter, steps = adapter_of(module.model), trainer.estimated_stepping_batches
        if not isinstance(adapter, AdaLora):
            raise ValueError("AdaLoraRanks: the model has no AdaLoRA; give it one with adapter='adalora:r=8'")
        if steps == float("inf"):
            raise ValueError("AdaLoraRanks: ranks that fall by the step take a run that has an end")
        config = adapter.config(["any"])
        for name, value in adapter.scheduled(int(steps)).items():
            setattr(config, name, value)
        self.adapter, self.config, self.allocator = adapter, config, RankAllocator(module.model, config, NAME)
        for name, values in self.saved.items():
            setattr(self.allocator, name, {n: t.to(module.device) for n, t in values.items()})
        self.saved = {}
        self.seen = trainer.global_step

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Optimizer) -> None:
        if self.allocator is not None and self.adapter.orthogonal:
            with torch.enable_grad():
                (self.adapter.orthogonal * orthogonality(module.model)).backward()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs, batch, batch_idx) -> None:
        step, config, model = trainer.global_step, self.config, module.model
        if step == self.seen or not finite(
            model
        ):  # gradients are being accumulated, or the loss scaler left the step out
            return
        self.seen, last = step, config.total_step - config.tfinal
        if step < last:
            self.keep(self.allocator.update_and_allocate(model, step)[1])
        elif self.pattern is not None and step > last:
            self.allocator.mask_using_rank_pattern(model, self.pattern)
        elif self.allocator.ipt:
            self.keep(self.allocator.update_and_allocate(model, step, force_mask=True)[1])
            self.allocator.reset_ipt()

    def keep(self, pattern: dict[str, list[bool]] | None) -> None:
        self.pattern = self.pattern if pattern is None else pattern

    def state_dict(self) -> dict[str, Any]:
        made = {name: dict(getattr(self.allocator, name)) for name in AVERAGES} if self.allocator else self.saved
        return {"averages": made, "pattern": self.pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved, self.pattern = state["averages"], state["pattern"]


def ranks_that_fall(model: nn.Module) -> list[L.Callback]:
    """The callback, where the model has such an adapter."""
    return [AdaLoraRanks()] if isinstance(adapter_of(model), AdaLora) else []


def orthogonality(model: nn.Module) -> Tensor:
    """The mean of |A A' - 1| and |B' B - 1| over all layers of an AdaLoRA."""
    parts = []
    for name, p in model.named_parameters():
        if f"lora_A.{NAME}" in name or f"lora_B.{NAME}" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            parts.append(torch.linalg.norm(gram - torch.eye(len(gram), device=p.device, dtype=p.dtype)))
    return torch.stack(parts).mean()


def finite(model: nn.Module) -> bool:
    found = [p.grad for n, p in model.named_parameters() if "lora_" in n and p.grad is not None]
    return bool(found) and all(bool(g.isfinite().all()) for g in found)
