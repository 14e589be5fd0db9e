"""What a detector of torchvision's parts is given: normalised images, padded to a batch, and targets that are right."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

Target = Mapping[str, Tensor]


class Padded(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Images as they come, with zeros at right and bottom to sides that are multiples: the data is normalised and
    brought to size before, by the preprocessing that the model names."""

    def __init__(self, multiple: int):
        super().__init__(min_size=0, max_size=0, image_mean=[], image_std=[], size_divisible=multiple)

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target

    def __repr__(self) -> str:
        return f"Padded({self.size_divisible})"


def check_images(images: Sequence[Tensor], channels: int) -> None:
    """Raises ValueError for none, and for what is no floating image of that many channels."""
    if not len(images):
        raise ValueError("no images: a detector takes at least one")
    for i, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != channels or not image.is_floating_point() or 0 in image.shape:
            raise ValueError(
                f"image {i} is {image.dtype} {tuple(image.shape)}; normalised floating ones "
                f"({channels}, H, W) are wanted"
            )


def checked(
    images: Sequence[Tensor], targets: Sequence[Target] | None, classes: int, masks: bool
) -> list[dict[str, Tensor]]:
    """What is learnt of the targets: {"boxes", "labels"} and, where `masks`, {"masks"}, of all objects but crowds.

    Raises ValueError, naming the image and the object: no targets, another number of them than of images, a missing
    part, parts of different lengths, a label outside 1 to `classes`, a box without area or (by over a pixel) outside
    its image, masks of another size than the image.
    """
    if targets is None or len(targets) != len(images):
        what = "none" if targets is None else str(len(targets))
        raise ValueError(f"a detector in training mode takes a target for each of {len(images)} images; got {what}")
    return [one(i, image, t, classes, masks) for i, (image, t) in enumerate(zip(images, targets, strict=True))]


def one(i: int, image: Tensor, target: Target, classes: int, masks: bool) -> dict[str, Tensor]:
    wanted = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    missing = [name for name in wanted if name not in target]
    if missing:
        raise ValueError(f"target {i} has no {' and no '.join(missing)}; it has {', '.join(target) or 'nothing'}")
    boxes, labels, (high, wide) = target["boxes"], target["labels"], image.shape[-2:]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(f"boxes of target {i} are {boxes.dtype} {tuple(boxes.shape)}; floating (n, 4) are wanted")
    if labels.shape != boxes.shape[:1] or labels.is_floating_point():
        raise ValueError(f"labels of target {i} are {labels.dtype} {tuple(labels.shape)} for {len(boxes)} boxes")
    if masks and target["masks"].shape != (len(boxes), high, wide):
        raise ValueError(
            f"masks of target {i} are {tuple(target['masks'].shape)}; its image and boxes want "
            f"{(len(boxes), high, wide)}"
        )
    limit = boxes.new_tensor([wide, high, wide, high], dtype=torch.float32) + 1
    faults = {
        f"is labelled {{label}}, and labels are from 1 to {classes}": (labels < 1) | (labels > classes),
        "has the box {box}, which is no x0 < x1, y0 < y1": ~(boxes[:, 2:] > boxes[:, :2]).all(1),
        f"has the box {{box}} outside its image of {wide} x {high}": ~((boxes >= -1) & (boxes <= limit)).all(1),
    }
    for text, fault in zip(faults, torch.stack(list(faults.values())), strict=True):
        if fault.any():
            k = int(fault.nonzero()[0, 0])
            said = text.format(label=int(labels[k]), box=[round(v, 2) for v in boxes[k].tolist()])
            raise ValueError(f"object {k} of target {i} {said}")
    kept = slice(None) if "iscrowd" not in target else target["iscrowd"] == 0
    chosen = {name: target[name][kept] for name in wanted}
    return {**chosen, "boxes": chosen["boxes"].float(), "labels": chosen["labels"].long()}
