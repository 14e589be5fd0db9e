"""Pictures with a mask in which every object has a number of its own (0 is ground): Penn-Fudan's layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .findings import Findings, OnError
from .folders import existing, quoted
from .label_maps import read_numbers, stems
from .read import read_image
from .scene import Category, Scene, objects, tight_boxes
from .scene_files import check_size, matched


class InstanceMasks:
    """images/<name> with masks/<name>, or <name>_mask as Penn-Fudan writes it -> scenes of objects of one class, their
    boxes tight around their masks."""

    steady, notes = True, ()

    def __init__(
        self, images: str | Path, masks: str | Path, classes: Sequence[str] = ("object",), on_error: OnError = "stop"
    ) -> None:
        self.folder, place = existing(images), existing(masks)
        if len(classes) != 1:
            raise ValueError(f"classes {list(classes)}: these masks tell objects apart, not classes; name one")
        self.classes, self.categories, self.findings = list(classes), [Category(1, classes[0])], Findings()
        pictures, maps = stems(self.folder), {k.removesuffix("_mask"): v for k, v in stems(place).items()}
        self.pairs = matched(pictures, maps, self.findings)
        if not self.pairs:
            raise ValueError(f"{self.folder}: no picture with a mask in {place} (pictures: {quoted(sorted(pictures))})")
        self.findings.settle(self.folder, on_error)

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int, epoch: int = 0) -> Scene:
        picture, file = self.pairs[index]
        image, numbers = np.asarray(read_image(picture)), read_numbers(file)
        check_size(file, numbers, picture, image)
        there = np.unique(numbers[numbers > 0])
        masks = (numbers == there[:, None, None]).view(np.uint8)
        boxes = tight_boxes(masks)
        return Scene(image, index, objects(boxes, np.ones(len(there)), area=masks.sum((1, 2)), masks=masks))

    def name(self, index: int) -> str:
        return self.pairs[index][0]

    def names(self) -> list[str]:
        return [os.path.relpath(picture, self.folder) for picture, _ in self.pairs]
