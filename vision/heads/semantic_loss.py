"""What a network that classifies pixels learns by."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .semantic import SemanticLogits


@dataclass(frozen=True)
class SemanticLosses:
    """Cross entropy over the pixels that are not `ignore`; the auxiliary head's counts `auxiliary` times as much."""

    ignore: int = 255
    auxiliary: float = 0.4

    def __call__(self, logits: SemanticLogits, target: Tensor) -> dict[str, Tensor]:
        """target (B H W) of whole numbers -> {"main", "auxiliary"} whose sum is the loss; the latter is absent where
        there is no such head. 0 where all pixels are ignored. Raises ValueError where size or a label does not fit."""
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
        target = target.long()
        judged = target != self.ignore
        wrong = target[judged & ((target < 0) | (target >= classes))]
        if len(wrong):
            raise ValueError(
                f"label {int(wrong[0])}: the model knows the classes 0 to {classes - 1}, and {self.ignore} is ignored"
            )
        total = F.cross_entropy(logits.float(), target, ignore_index=self.ignore, reduction="sum")
        return total / judged.sum().clamp(min=1)
