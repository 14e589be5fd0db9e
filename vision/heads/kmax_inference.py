"""What kMaX-DeepLab's clusters say of an image, https://arxiv.org/abs/2207.04044.

Shapes: N clusters, K classes, H W the image as it came, or another size that is asked for.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from .kmax import KMaxPredictions
from .kmax_pixel_decoder import resized
from .mask_inference import Sizes, resize
from .segments import Panoptic, Segment


@dataclass(frozen=True)
class Thresholds:
    """pixel: the probability over which a pixel is a cluster's; thing, stuff: the class probability over which a
    cluster counts; free: the part of its pixels that none before it has. As for COCO; the other two are below."""

    pixel: float = 0.4
    thing: float = 0.7
    stuff: float = 0.5
    free: float = 0.8


CITYSCAPES, ADE20K = Thresholds(thing=0.5, stuff=0.3, free=0.9), Thresholds(thing=0.4, stuff=0.4)


def each(predictions: KMaxPredictions, to: Sizes) -> list[tuple[Tensor, Tensor]]:
    """Of each image: class probabilities (N K+1), the probability that a pixel is a cluster's (N H W)."""
    sizes = predictions.sizes if to is None else to
    if len(sizes) != len(predictions.sizes):
        raise ValueError(f"{len(sizes)} sizes for {len(predictions.sizes)} images")
    last, found = predictions.last, []
    for classes, masks, (h, w), size in zip(last.classes, last.masks, predictions.sizes, sizes, strict=True):
        m = resized(masks.float()[None], predictions.size)[0, :, :h, :w]
        found.append((classes.float().softmax(-1), resize(m, size).softmax(0)))
    return found


def semantic(predictions: KMaxPredictions, to: Sizes = None) -> list[Tensor]:
    """(K H W) of each image: the sum over the clusters of class probability · mask probability."""
    return [
        (chances[:, :-1].mT @ masks.flatten(1)).unflatten(1, masks.shape[1:])  # type: ignore[no-untyped-call]
        for chances, masks in each(predictions, to)
    ]


def panoptic(
    predictions: KMaxPredictions, things: Collection[int], to: Sizes = None, thresholds: Thresholds | None = None
) -> list[Panoptic]:
    """Clusters in order of class score · mean mask score take the pixels that are still free. `things`: classes of
    which each cluster is one segment; those of another class are one together."""
    limits = Thresholds() if thresholds is None else thresholds
    return [whole(chances, masks, set(things), limits) for chances, masks in each(predictions, to)]


def whole(chances: Tensor, masks: Tensor, things: set[int], limits: Thresholds) -> Panoptic:
    numbers = torch.zeros(masks.shape[1:], dtype=torch.long, device=masks.device)
    scores, labels = chances[:, :-1].max(-1)
    inside = masks > limits.pixel
    area = inside.flatten(1).sum(1)
    sure = (masks * inside).flatten(1).sum(1) / area.clamp(min=1)
    found: list[Segment] = []
    stuff: dict[int, int] = {}
    for i in (scores * sure).argsort(descending=True, stable=True).tolist():
        label, score, count = int(labels[i]), float(scores[i]), int(area[i])
        if not count or score <= (limits.thing if label in things else limits.stuff):
            continue
        part = inside[i] & (numbers == 0)
        if int(part.sum()) / count <= limits.free:
            continue
        if label not in stuff:
            found.append(Segment(len(found) + 1, label, score))
            if label not in things:
                stuff[label] = len(found)
        numbers[part] = stuff.get(label, len(found))
    return Panoptic(numbers, found)
