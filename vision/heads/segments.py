"""Segments of an image, each a class and a mask: as targets of mask classification, and as its results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """What is in an image: `labels` (n) counted from 0, `masks` (n H W) bool."""

    labels: Tensor
    masks: Tensor

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or len(self.labels) != len(self.masks):
            raise ValueError(
                f"segments take one mask (H W) a label; got {tuple(self.masks.shape)} for {len(self.labels)} labels"
            )

    def padded(self, size: Sequence[int]) -> "Segments":
        """With masks of `size`, empty at right and bottom; raises ValueError where they are larger."""
        down, right = (n - have for n, have in zip(size, self.masks.shape[1:], strict=True))
        if down < 0 or right < 0:
            raise ValueError(f"masks of {tuple(self.masks.shape[1:])} for an image of {tuple(size)}")
        return Segments(self.labels, F.pad(self.masks, (0, right, 0, down)))

    def check(self, classes: int) -> None:
        """Raises ValueError where a label is none of 0 to `classes` - 1."""
        wrong = self.labels[(self.labels < 0) | (self.labels >= classes)]
        if len(wrong):
            raise ValueError(f"label {int(wrong[0])}: the model knows the classes 0 to {classes - 1}")


def of_instances(target: Mapping[str, Tensor]) -> Segments:
    """A target as torchvision's detectors want it ("labels" counted from 1, "masks" (n H W)); crowds are left out."""
    kept = slice(None) if "iscrowd" not in target else target["iscrowd"] == 0
    return Segments(target["labels"][kept] - 1, target["masks"][kept].bool())


def of_semantic(labels: Tensor, ignore: int = 255) -> Segments:
    """A label map (H W): one segment for each class that is there; `ignore` is none."""
    present = torch.unique(labels)
    present = present[present != ignore]
    return Segments(present.long(), labels[None] == present[:, None, None])


def ready(
    targets: Sequence[Segments], sizes: Sequence[tuple[int, int]], size: tuple[int, int], classes: Tensor
) -> list[Segments]:
    """Targets of images of `sizes`, padded to `size` as those are, beside the class logits (B N K+1); raises ValueError
    where number, size or a label does not fit."""
    if len(targets) != len(sizes):
        raise ValueError(f"{len(targets)} targets for {len(sizes)} images")
    found = []
    for target, own in zip(targets, sizes, strict=True):
        if tuple(target.masks.shape[1:]) != own:
            raise ValueError(f"masks of {tuple(target.masks.shape[1:])} for an image of {own}")
        target.check(classes.shape[-1] - 1)
        found.append(Segments(target.labels.to(classes.device), target.masks.to(classes.device)).padded(size))
    return found


@dataclass(frozen=True)
class Instances:
    """Objects found: `boxes` (n 4) x0 y0 x1 y1 in pixels, x1 and y1 exclusive, of the masks; `scores` (n); `labels` (n)
    counted from 0; `masks` (n H W) bool. Best first; none is empty."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor

    def as_target(self) -> dict[str, Tensor]:
        """As torchvision's detectors answer: labels counted from 1."""
        return {"boxes": self.boxes, "scores": self.scores, "labels": self.labels + 1, "masks": self.masks}


@dataclass(frozen=True)
class Segment:
    """A part of a panoptic map: the number that it has there, its class, counted from 0, and how sure."""

    number: int
    label: int
    score: float


@dataclass(frozen=True)
class Panoptic:
    """`numbers` (H W): of each pixel's segment, 0 where there is none."""

    numbers: Tensor
    segments: list[Segment]


def boxes_of(masks: Tensor) -> Tensor:
    """(n H W) bool, none of them empty -> (n 4) float: the tight boxes, x1 and y1 exclusive."""
    sides = []
    for axis in (2, 1):  # y, x
        seen = masks.any(axis).to(torch.uint8)
        sides.append((seen.argmax(1), seen.shape[1] - seen.flip(1).argmax(1)))
    (y0, y1), (x0, x1) = sides
    return torch.stack([x0, y0, x1, y1], 1).float()
