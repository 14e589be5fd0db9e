"""What predicted classes and masks say of an image: a class for each pixel, objects, or both
(https://arxiv.org/abs/2112.01527).

Shapes: N queries, K classes, H W the image as it came, or another size that is asked for.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask2former import Predictions
from .segments import Instances, Panoptic, Segment, boxes_of

Sizes = Sequence[tuple[int, int]] | None


def each(predictions: Predictions, to: Sizes) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each image: class probabilities (N K+1), mask logits (N H W) on the image as it came, or resized to `to`."""
    sizes = predictions.sizes if to is None else to
    if len(sizes) != len(predictions.sizes):
        raise ValueError(f"{len(sizes)} sizes for {len(predictions.sizes)} images")
    last = predictions.last
    for classes, masks, (h, w), size in zip(last.classes, last.masks, predictions.sizes, sizes, strict=True):
        m = resize(masks.float(), predictions.size)[:, :h, :w]
        yield classes.float().softmax(-1), resize(m, size)


def resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(masks.shape[1:]) == tuple(size):
        return masks
    return F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]


def semantic(predictions: Predictions, to: Sizes = None) -> list[Tensor]:
    """(K H W) of each image: the sum over the queries of class probability · mask probability."""
    found = []
    for chances, masks in each(predictions, to):
        by = chances[:, :-1].mT @ masks.sigmoid().flatten(1)
        found.append(by.unflatten(1, masks.shape[1:]))  # type: ignore[no-untyped-call]
    return found


def instances(
    predictions: Predictions, to: Sizes = None, *, limit: int = 100, things: Collection[int] | None = None
) -> list[Instances]:
    """The `limit` best pairs of query and class of each image; a score is the class's probability times the mean mask
    probability inside of the mask. `things`: the classes that are objects, None for all."""
    return [objects(chances, masks, limit, things) for chances, masks in each(predictions, to)]


def objects(chances: Tensor, masks: Tensor, limit: int, things: Collection[int] | None) -> Instances:
    chances = chances[:, :-1]
    classes = chances.shape[1]
    best = chances.flatten().topk(min(limit, chances.numel()))
    query, label = best.indices // classes, best.indices % classes
    value = best.values
    if things is not None:
        wanted = torch.isin(label, torch.tensor(sorted(things), device=label.device))
        value, query, label = value[wanted], query[wanted], label[wanted]
    used, where = torch.unique(query, return_inverse=True)  # a mask may stand in several pairs
    logits = masks[used]
    inside = logits > 0
    area = inside.flatten(1).sum(1)
    sure = (logits.sigmoid() * inside).flatten(1).sum(1) / area.clamp(min=1)
    scores = value * sure[where]
    order = scores.argsort(descending=True, stable=True)
    order = order[area[where[order]] > 0]
    found = inside[where[order]]
    return Instances(boxes_of(found), scores[order], label[order], found)


def panoptic(
    predictions: Predictions, things: Collection[int], to: Sizes = None, *, score: float = 0.8, overlap: float = 0.8
) -> list[Panoptic]:
    """Every pixel goes to the query of the highest class score · mask probability among those whose best class scores
    over `score`; what is left of a mask counts if it is `overlap` of it. `things`: classes of which each query is one
    segment; those of another class are one together."""
    return [whole(chances, masks, set(things), score, overlap) for chances, masks in each(predictions, to)]


def whole(chances: Tensor, masks: Tensor, things: set[int], least: float, overlap: float) -> Panoptic:
    numbers = torch.zeros(masks.shape[1:], dtype=torch.long, device=masks.device)
    scores, labels = chances.max(-1)
    kept = (labels < chances.shape[1] - 1) & (scores > least)
    scores, labels, probability = scores[kept], labels[kept], masks[kept].sigmoid()
    found: list[Segment] = []
    if not len(scores):
        return Panoptic(numbers, found)
    owner = (scores[:, None, None] * probability).argmax(0)
    stuff: dict[int, int] = {}
    for i, (label, chance) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
        mine, mask = owner == i, probability[i] >= 0.5
        part = mine & mask
        if not part.any() or int(mine.sum()) / int(mask.sum()) < overlap:
            continue
        if label in stuff:
            numbers[part] = stuff[label]
            continue
        found.append(Segment(len(found) + 1, label, chance))
        numbers[part] = len(found)
        if label not in things:
            stuff[label] = len(found)
    return Panoptic(numbers, found)
