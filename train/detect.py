"""`Detect`: a detector with its losses, judged by COCO's numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from PIL import Image
from torch import Tensor, nn

from .dense import Dense
from .drawing import with_objects
from .ema import Ema
from .evaluation.dense_metrics import DetectionScores
from .evaluation.detector import Detections, at_size
from .optim import Schedule

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class Detect(Dense):
    """Trains and judges `model`, by torchvision's contract of detectors (heads/detection.py, yolo.py, cascade.py,
    mask_tasks.py), on lists of images (3, H, W) and of targets as `data.dense_modules` give them.

    Logged: train/ loss and its parts; val/ and test/ COCO's numbers as fractions of 1, in the pixels of the pictures
    themselves: map, map50, …, and mask_map … where the network finds masks. `score`: what is less likely is not drawn
    in predictions.png; it is judged all the same. Optimiser, schedule, rates, `ema` and `adapter` as in `Trained`.
    """

    kind, example = "detector", "patchloom.vision.heads.detection.FCOS"
    headline = ("map", "map50", "mask_map", "mask_map50")

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.05, fused=True),
        schedule: Schedule | LRSchedulerCallable | None = None,
        layer_decay: float | None = None,
        lr_scales: dict[str, float] | None = None,
        ema: Ema | None = None,
        adapter: Any = None,
        score: float = 0.3,
    ):
        super().__init__(model, optimizer, schedule, layer_decay, lr_scales, ema, adapter)
        self.masks, self.score = bool(getattr(model, "masks", False)), score

    def adopt(self, classes: list[str]) -> None:
        if not self.judges or classes != self.classes:
            self.judges = nn.ModuleDict({kind: DetectionScores(classes, self.masks) for kind in ("val", "test")})
        super().adopt(classes)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """What the network that is judged finds."""
        return self.judged(images)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, targets = batch
        return self.learnt(self.model(images, targets), len(images))

    def judge_step(self, kind: str, batch: Batch) -> list[Detections]:
        images, targets = batch
        sizes = [original(image, target) for image, target in zip(images, targets, strict=True)]
        found = [
            detections(answer, image, size) for answer, image, size in zip(self(images), images, sizes, strict=True)
        ]
        if self.masks and any("masks" not in target for target in targets):
            raise ValueError(
                "the network finds masks, and the data has boxes alone: take data with masks (task: instance)"
            )
        true = [in_pixels_of(t, image, size) for t, image, size in zip(targets, images, sizes, strict=True)]
        self.judges[kind].update(found, true)
        return found

    def predict_step(self, batch: Any, index: int) -> list[dict[str, Tensor]]:
        return self(batch[0] if isinstance(batch, tuple) else batch)

    def pictured(self, batch: Batch, outputs: Sequence[Detections]) -> Iterator[tuple[Image.Image, Image.Image]]:
        for image, target, found in zip(*batch, outputs, strict=True):
            picture = Image.fromarray(self.seen(image))
            height, width = found.size or picture.size[::-1]
            pixels = self.seen(image) if picture.size == (width, height) else resized(picture, (width, height))
            true = in_pixels_of(target, image, (height, width))
            truth = Detections(
                true["boxes"],
                torch.ones(len(true["labels"])),
                true["labels"],
                true.get("masks") if self.masks else None,
            )
            yield (
                with_objects(pixels, truth, self.classes, scores=False),
                with_objects(pixels, surer(found, self.score), self.classes),
            )


def resized(picture: Image.Image, size: tuple[int, int]) -> Any:
    import numpy as np

    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def surer(found: Detections, least: float) -> Detections:
    """Those of at least this score."""
    kept = found.scores >= least
    masks = None if found.masks is None else found.masks[kept]
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept], masks, found.size)


def original(image: Tensor, target: Mapping[str, Tensor]) -> tuple[int, int]:
    """(H, W) of a picture before it was brought to size."""
    height, width = target["original_size"].tolist() if "original_size" in target else image.shape[-2:]
    return int(height), int(width)


def detections(answer: Mapping[str, Tensor], image: Tensor, size: tuple[int, int]) -> Detections:
    """What a network found in an image, on the CPU, in the pixels of its picture."""
    kept = {name: answer[name].detach().cpu() for name in ("boxes", "scores", "labels", "masks") if name in answer}
    given = int(image.shape[-2]), int(image.shape[-1])
    return Detections.of({**kept, "boxes": kept["boxes"].float()}, given, size)


def in_pixels_of(target: Mapping[str, Tensor], image: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """A target on the CPU, in the pixels of its picture (H, W)."""
    (h, w), (height, width) = image.shape[-2:], size
    moved = {name: value.cpu() for name, value in target.items()}
    if (h, w) == size:
        return moved
    scale = torch.tensor([width / w, height / h, width / w, height / h])
    moved["boxes"] = moved["boxes"] * scale
    if "area" in moved:
        moved["area"] = moved["area"] * (width * height) / (w * h)
    if "masks" in moved:
        moved["masks"] = at_size(moved["masks"].bool(), size)
    return moved
