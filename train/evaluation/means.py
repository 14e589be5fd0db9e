"""Means of named numbers over all that was judged."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """Means over all samples of named numbers, over all processes."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, names: tuple[str, ...] = ("loss", "error", "bound")):
        super().__init__()
        self.names, self.batches = names, 0
        self.add_state("total", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Mapping[str, Tensor]) -> None:
        self.batches += 1
        for name, value in values.items():
            at = self.names.index(name)
            self.total[at] += value.detach().double().sum().to(self.total)
            self.count[at] += len(value)

    def compute(self) -> dict[str, Tensor]:
        return {n: t / c for n, t, c in zip(self.names, self.total, self.count, strict=True) if c > 0}

    def reset(self) -> None:
        super().reset()
        self.batches = 0
