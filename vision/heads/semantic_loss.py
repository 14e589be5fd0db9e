"""What a network that classifies pixels learns by."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .semantic import SemanticLogits


@dataclass(frozen=True)
class SemanticLosses:
    """Cross entropy over the pixels that are not `ignore`; the auxiliary head's counts `auxiliary` times as much.

    weights: one for each class, where thin or rare things are to count more than their few pixels; the mean is weighted
        by them, as ENet's is (https://arxiv.org/abs/1606.02147), whose weights are 1 / log(1.02 + share of the pixels).
    """

    ignore: int = 255
    auxiliary: float = 0.4
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and min(self.weights, default=0) <= 0:
            raise ValueError(f"weights {list(self.weights)}: one above 0 for each class is wanted")

    def __call__(self, logits: SemanticLogits, target: Tensor) -> dict[str, Tensor]:
        """target (B H W) of whole numbers -> {"main", "auxiliary"} whose sum is the loss; the latter is absent where
        there is no such head. 0 where all pixels are ignored. Raises ValueError where size, a label or the number of
        weights does not fit."""
        found = {"main": self.of(logits.main, target)}
        if logits.auxiliary is not None:
            found["auxiliary"] = self.auxiliary * self.of(logits.auxiliary, target)
        return found

    def of(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean of a single head's."""
        classes, wanted = logits.shape[1], (logits.shape[0], *logits.shape[2:])
        if target.shape != wanted:
            raise ValueError(f"label maps of {tuple(target.shape)} for logits of {wanted}, images, height and width")
        if target.is_floating_point():
            raise ValueError(f"label maps hold whole numbers; got {target.dtype}")
        if self.weights is not None and len(self.weights) != classes:
            raise ValueError(f"{len(self.weights)} weights; the model knows {classes} classes")
        target = target.long()
        judged = target != self.ignore
        wrong = target[judged & ((target < 0) | (target >= classes))]
        if len(wrong):
            raise ValueError(
                f"label {int(wrong[0])}: the model knows the classes 0 to {classes - 1}, and {self.ignore} is ignored"
            )
        logits, weights = logits.float(), None
        if self.weights is not None:
            weights = logits.new_tensor(self.weights)
        total = F.cross_entropy(logits, target, weights, ignore_index=self.ignore, reduction="sum")
        if weights is None:
            return total / judged.sum().clamp(min=1)
        return total / weights[target[judged]].sum().clamp(min=weights.min())
