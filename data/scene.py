"""One picture with what is true of it: objects with boxes, masks and keypoints, or a class for each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

IGNORE = 255  # of a semantic map: a pixel that is neither trained nor judged


@dataclass(frozen=True)
class Category:
    """A class of objects (thing) or of ground (stuff); `id` is the data's own number, a label is the position + 1."""

    id: int
    name: str
    thing: bool = True
    keypoints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Objects:
    """n objects of one picture, in pixels of it."""

    boxes: np.ndarray  # (n, 4) float32, x0 y0 x1 y1, edges of pixels
    labels: np.ndarray  # (n,) int64, from 1
    crowd: np.ndarray  # (n,) bool: a region of many, neither trained nor judged
    area: np.ndarray  # (n,) float32, as annotated
    masks: np.ndarray | None = None  # (n, H, W) uint8, 0 or 1
    keypoints: np.ndarray | None = None  # (n, K, 3) float32: x, y, visibility (0 absent, 1 hidden, 2 seen)

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, which: np.ndarray) -> Objects:
        """Those at these indices, or where this is True."""
        return Objects(**{name: None if value is None else value[which] for name, value in vars(self).items()})


def objects(
    boxes: Any, labels: Any, crowd: Any = None, area: Any = None, masks: np.ndarray | None = None, keypoints: Any = None
) -> Objects:
    """Objects in the right types; without `area` that of the boxes."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return Objects(
        boxes,
        np.asarray(labels, np.int64).reshape(n),
        np.zeros(n, bool) if crowd is None else np.asarray(crowd, bool).reshape(n),
        sides if area is None else np.asarray(area, np.float32).reshape(n),
        masks,
        None if keypoints is None else np.asarray(keypoints, np.float32),
    )


@dataclass(frozen=True)
class Scene:
    image: np.ndarray  # (H, W, 3) uint8
    id: int  # COCO's image_id, elsewhere the index
    objects: Objects | None = None
    semantic: np.ndarray | None = None  # (H, W) uint8, class index or IGNORE

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[0], self.image.shape[1]


class SceneSource(Protocol):
    """What `Scenes` reads from. `load` raises UnreadableImage for a file that is broken, or not what is said of it."""

    classes: list[str]
    categories: list[Category]
    notes: tuple[str, ...]  # what is worth knowing, and no fault
    steady: bool

    def __len__(self) -> int: ...
    def load(self, index: int, epoch: int) -> Scene: ...
    def name(self, index: int) -> str: ...


def tensors(scene: Scene, original: tuple[int, int]) -> dict[str, np.ndarray]:
    """What torchvision's detectors want to know of a picture, all but the masks (they travel apart)."""
    target = {"image_id": np.array(scene.id, np.int64), "original_size": np.array(original, np.int64)}
    found = scene.objects
    if found is not None:
        target |= {"boxes": found.boxes, "labels": found.labels, "iscrowd": found.crowd.astype(np.int64)}
        target |= {"area": found.area} | ({} if found.keypoints is None else {"keypoints": found.keypoints})
    return target


def as_tensors(target: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in target.items()}


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    """(n, H, W) -> (n, 4) float32 x0 y0 x1 y1, x1 and y1 exclusive; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
