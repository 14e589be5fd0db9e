"""What a classifier is judged by, with torchmetrics: sums over all processes, so two give the numbers of one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)

CONFUSION_LIMIT = 2000  # classes: beyond, the matrix would take more memory than the model


class OneLabel(nn.Module):
    """loss, top1, and top5 from six classes on; with `confusion` also counts (C, C), true class by predicted one.
    Fractions of 1."""

    def __init__(self, classes: int, confusion: bool = False):
        super().__init__()
        self.loss = MeanMetric(nan_strategy="ignore")
        self.top = nn.ModuleDict(
            {
                f"top{k}": MulticlassAccuracy(classes, top_k=k, average="micro", validate_args=False)
                for k in (1, 5)
                if k < classes
            }
        )
        self.confusion = (
            MulticlassConfusionMatrix(classes, validate_args=False)
            if confusion and classes <= CONFUSION_LIMIT
            else None
        )

    def update(self, logits: Tensor, target: Tensor) -> None:
        """logits (B, C), target (B,)"""
        logits = logits.float()
        self.loss.update(F.cross_entropy(logits, target, reduction="none"))
        for metric in self.top.values():
            metric.update(logits, target)
        if self.confusion is not None:
            self.confusion.update(logits.argmax(1), target)

    def compute(self) -> dict[str, Tensor]:
        return {"loss": self.loss.compute(), **{k: m.compute() for k, m in self.top.items()}}

    def reset(self) -> None:
        reset(self)


class ManyLabels(nn.Module):
    """loss (binary cross-entropy), map (mean over classes of the average precision), f1 (over all labels, at
    probability 1/2)."""

    confusion = None

    def __init__(self, classes: int):
        super().__init__()
        self.loss = MeanMetric(nan_strategy="ignore")
        self.map = MultilabelAveragePrecision(classes, validate_args=False)
        self.f1 = MultilabelF1Score(classes, average="micro", validate_args=False)

    def update(self, logits: Tensor, target: Tensor) -> None:
        """logits (B, C), target (B, C) of 0 and 1"""
        logits = logits.float()
        self.loss.update(F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none").mean(1))
        chance, target = logits.sigmoid(), target.long()
        self.map.update(chance, target)
        self.f1.update(chance, target)

    def compute(self) -> dict[str, Tensor]:
        return {"loss": self.loss.compute(), "map": self.map.compute(), "f1": self.f1.compute()}

    def reset(self) -> None:
        reset(self)


def reset(metrics: nn.Module) -> None:
    for metric in metrics.modules():
        if metric is not metrics and hasattr(metric, "reset"):
            metric.reset()


def metrics(classes: int, labels: str, confusion: bool = False) -> OneLabel | ManyLabels:
    return ManyLabels(classes) if labels == "many" else OneLabel(classes, confusion)


def row_shares(matrix: Tensor) -> Tensor:
    """Counts (C, C) -> shares of each true class's images; a class without images gives zeros."""
    return matrix / matrix.sum(1, keepdim=True).clamp(min=1).to(torch.float64)
