"""Scenes without annotation files: drawn ones, which know the truth, and loose pictures, of which none is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .folders import Files
from .read import read_image
from .sample import KINDS
from .scene import Category, Scene, objects
from .shapes import Shapes

GROUND = "ground"


class DrawnScenes:
    """`Shapes` of 2 to 6 objects as scenes: boxes and masks of what is visible of each kind, or (semantic) a map of the
    ground, 0, and the kinds from 1. `fresh`: every epoch draws pictures never seen before."""

    notes = ()

    def __init__(self, shapes: Shapes, *, masks: bool = True, semantic: bool = False, fresh: bool = False) -> None:
        if shapes.task != "boxes":
            raise ValueError(f"drawn scenes are of task boxes, not {shapes.task!r}")
        self.shapes, self.masks, self.semantic, self.steady = shapes, masks, semantic, not fresh
        self.classes = [GROUND, *KINDS] if semantic else list(KINDS)
        self.categories = [] if semantic else [Category(i, name) for i, name in enumerate(KINDS, 1)]

    def __len__(self) -> int:
        return len(self.shapes)

    def load(self, index: int, epoch: int = 0) -> Scene:
        drawn = self.shapes.draw(index if self.steady else epoch * len(self.shapes) + index)
        masks = drawn.masks.view(np.uint8)
        if self.semantic:
            numbers = np.arange(1, len(KINDS) + 1, dtype=np.uint8)[drawn.labels]
            return Scene(drawn.image, index, semantic=(masks * numbers[:, None, None]).sum(0, dtype=np.uint8))
        area = masks.sum((1, 2))
        return Scene(
            drawn.image, index, objects(drawn.boxes, drawn.labels + 1, area=area, masks=masks if self.masks else None)
        )

    def name(self, index: int) -> str:
        return f"{self.shapes.split}[{index}]"

    def names(self) -> list[str]:
        return [self.name(index) for index in range(len(self))]


class LooseScenes:
    """Picture files, and folders searched to any depth, as scenes without a truth; `id` is the place in `files`."""

    steady, notes = True, ()

    def __init__(self, paths: str | Path | Sequence[str | Path]) -> None:
        self.files = Files(paths).files
        self.classes: list[str] = []
        self.categories: list[Category] = []

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int, epoch: int = 0) -> Scene:
        return Scene(np.asarray(read_image(self.files[index])), index)

    def name(self, index: int) -> str:
        return self.files[index]
