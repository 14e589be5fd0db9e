"""`Segment`: a network that classifies pixels with its losses, judged by mean IoU."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from PIL import Image
from torch import Tensor, nn

from ..vision.heads.mask_tasks import SemanticSegmenter
from ..vision.heads.semantic import Segmenter
from ..vision.heads.semantic_loss import SemanticLosses
from .dense import Dense
from .drawing import with_classes
from .ema import Ema
from .evaluation.dense_metrics import SemanticScores
from .optim import Schedule


class Segment(Dense):
    """Trains and judges `model`, UPerNet or Semantic FPN (heads/semantic.py) or a network of masks (heads/
    mask_tasks.py), on images (B, 3, H, W) and maps of classes (B, H, W), as `data.dense_modules` give them.

    `loss`: of UPerNet and Semantic FPN, None for `SemanticLosses()`; networks of masks have their own. Logged: train/
    loss and its parts; val/ and test/ miou, macc and aacc as fractions of 1, in the pixels of the pictures as they are
    brought to size (`patchloom eval ade20k` judges in their own). Optimiser, schedule, rates, `ema` and `adapter` as in
    `Trained`.
    """

    kind = "segmenter"

    def __init__(
        self,
        model: nn.Module,
        loss: SemanticLosses | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.05, fused=True),
        schedule: Schedule | LRSchedulerCallable | None = None,
        layer_decay: float | None = None,
        lr_scales: dict[str, float] | None = None,
        ema: Ema | None = None,
        adapter: Any = None,
    ):
        super().__init__(model, optimizer, schedule, layer_decay, lr_scales, ema, adapter)
        if loss is not None and not isinstance(model, Segmenter):
            raise ValueError("loss: a network of masks has its own losses; give them to SemanticSegmenter")
        self.loss = SemanticLosses() if loss is None else loss
        self.ignore = model.ignore if isinstance(model, SemanticSegmenter) else self.loss.ignore

    def check_network(self, model: nn.Module) -> None:
        super().check_network(model)
        if not isinstance(model, (Segmenter, SemanticSegmenter)):
            raise ValueError(f"{type(model).__name__} gives no class for each pixel: UPerNet, SemanticFpn and "
                             "SemanticSegmenter (of a Mask2Former, say) do")  # fmt: skip

    def adopt(self, classes: list[str]) -> None:
        if not self.judges or classes != self.classes:
            judges = {kind: SemanticScores(len(classes), self.ignore) for kind in ("val", "test")}
            self.judges = nn.ModuleDict(judges).to(self.device)
        super().adopt(classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of the network that is judged."""
        return self.judged(image)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        image, target = batch
        if isinstance(self.model, Segmenter):
            return self.learnt(self.loss(self.model.both(image), target), len(image))
        return self.learnt(self.model(image, target), len(image))

    def run_again(self, batch: tuple[Tensor, Tensor]) -> Any:
        return self.model(batch[0]) if isinstance(self.model, Segmenter) else super().run_again(batch)

    def judge_step(self, kind: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, target = batch
        found = self(image).argmax(1)
        self.judges[kind].update(found, target)
        return found

    def predict_step(self, batch: Any, index: int) -> Tensor:
        """Classes (B, H, W)."""
        return self(batch[0] if isinstance(batch, (tuple, list)) else batch).argmax(1)

    def pictured(self, batch: tuple[Tensor, Tensor], outputs: Tensor) -> Iterator[tuple[Image.Image, Image.Image]]:
        for image, target, found in zip(*batch, outputs, strict=True):
            picture = self.seen(image)
            found = found.cpu().masked_fill(target.cpu() == self.ignore, self.ignore)  # what is not judged
            yield with_classes(picture, target, self.ignore), with_classes(picture, found, self.ignore)
