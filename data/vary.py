"""`Varied`: a scene through albumentations; what is no longer there is dropped and counted, the rest stays true."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import albumentations as A
import numpy as np

from .scene import Category, Objects, Scene, tight_boxes

CUT = 1 - 1e-3  # a box of which less is left was cut, and shrinks to what is left of its mask


class Varied:
    """scene, seed -> scene, {reason: objects dropped}.

    steps         albumentations transforms, applied in order; draws come from the seed alone
    min_side      pixels; a box that is narrower or lower afterwards is dropped ("small"); 0 keeps whatever is there
    min_visible   the part of its box that must be left in the picture; else it is dropped ("hidden")
    categories    whose keypoints called left_... and right_... change places in a mirrored picture

    Dropped besides: "outside", of which nothing is left in the picture; "mask", whose mask is empty. A box that was cut
    or turned shrinks to what is left of its mask. Areas change by the scale, and by the part of the box that is left.
    Keypoints outside the picture become absent: 0 0 0.
    """

    def __init__(
        self, steps: Sequence[Any], min_side: float = 1.0, min_visible: float = 0.0, categories: Sequence[Category] = ()
    ) -> None:
        self.min_side, self.min_visible, self.partners = min_side, min_visible, partners(categories)
        self.compose = A.Compose(
            list(steps),
            bbox_params=A.BboxParams("pascal_voc", clip=True),
            keypoint_params=A.KeypointParams("xy", remove_invisible=False),
        )

    def __call__(self, scene: Scene, seed: int) -> tuple[Scene, dict[str, int]]:
        had, (h, w) = scene.objects, scene.size
        given: dict[str, Any] = {"image": scene.image}
        if scene.semantic is not None:
            given["mask"] = scene.semantic
        marks = np.array([[0, 0], [w, 0], [0, h]], np.float32)  # where these go tells scale and mirroring
        points = marks
        if had is not None:
            given["bboxes"] = np.concatenate([had.boxes, np.arange(len(had), dtype=np.float32)[:, None]], 1)
            if had.masks is not None and len(had):
                given["masks"] = had.masks
            if had.keypoints is not None:
                points = np.concatenate([marks, had.keypoints[..., :2].reshape(-1, 2)])
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        made = self.compose(**given, keypoints=points)
        image = made["image"]
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
            kind = f"{type(image).__name__} of {image.dtype}, {tuple(image.shape)}"
            raise ValueError(f"the steps make a {kind} of a picture: leave normalising and tensors to the data module")
        scene = replace(scene, image=image, semantic=made.get("mask"))
        if had is None:
            return scene, {}
        moved = np.asarray(made["keypoints"], np.float32)[:, :2]
        matrix = (moved[1:3] - moved[0]) / np.array([[w], [h]], np.float32)
        found, dropped = self._objects(had, made, scene.size, matrix, moved[3:])
        return replace(scene, objects=found), dropped

    def _objects(
        self, had: Objects, made: dict[str, Any], size: tuple[int, int], matrix: np.ndarray, moved: np.ndarray
    ) -> tuple[Objects, dict[str, int]]:
        boxes = np.asarray(made["bboxes"], np.float32).reshape(-1, 5)
        kept, boxes = boxes[:, 4].astype(np.int64), boxes[:, :4]
        now, scale = replace(had, masks=None, keypoints=None).pick(kept), float(np.linalg.det(matrix))
        whole = (now.boxes[:, 2:] - now.boxes[:, :2]).prod(1) * abs(scale)
        visible = np.minimum((boxes[:, 2:] - boxes[:, :2]).prod(1) / whole, 1)
        masks = None
        empty = np.zeros(len(kept), bool)
        if had.masks is not None:
            masks = made["masks"] if len(had) else np.zeros((0, *size), np.uint8)
            masks = masks if len(kept) == len(had) else masks[kept]
            there = masks.any((1, 2))
            askew = bool((np.abs(matrix) > 1e-3).sum() > 2)  # a box around a turned box is too large
            cut = np.flatnonzero(((visible < CUT) | askew) & there)
            tight = tight_boxes(masks[cut])
            boxes[cut, :2] = np.maximum(boxes[cut, :2], tight[:, :2])
            boxes[cut, 2:] = np.minimum(boxes[cut, 2:], tight[:, 2:])
            empty = ~there & (self.min_side > 0)
        small = ((boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) < self.min_side) & ~empty
        hidden = (visible < self.min_visible) & ~small & ~empty
        good = ~(empty | small | hidden)
        counts = {"outside": len(had) - len(kept), "mask": empty.sum(), "small": small.sum(), "hidden": hidden.sum()}
        keypoints = None
        if had.keypoints is not None:
            keypoints = self._keypoints(had, moved, size, scale < 0)[kept]
        found = replace(now, boxes=boxes, area=now.area * abs(scale) * visible, masks=masks, keypoints=keypoints)
        return found if good.all() else found.pick(good), {name: int(n) for name, n in counts.items() if n}

    def _keypoints(self, had: Objects, moved: np.ndarray, size: tuple[int, int], mirrored: bool) -> np.ndarray:
        assert had.keypoints is not None
        points = had.keypoints.copy()
        points[..., :2] = moved.reshape(*points.shape[:2], 2)
        inside = ((points[..., :2] >= -0.5) & (points[..., :2] < np.array(size[::-1]) - 0.5)).all(-1)
        points[~(inside & (points[..., 2] > 0))] = 0
        if mirrored and self.partners is not None:
            points = np.take_along_axis(points, self.partners[had.labels][:, : points.shape[1], None], 1)
        return points


def partners(categories: Sequence[Category]) -> np.ndarray | None:
    """(labels + 1, K): for each keypoint of a label the one that it is in a mirror; None without keypoints."""
    most = max((len(c.keypoints) for c in categories), default=0)
    if not most:
        return None
    table = np.tile(np.arange(most), (len(categories) + 1, 1))
    for label, c in enumerate(categories, 1):
        for i, name in enumerate(c.keypoints):
            other = name.replace("left", "\0").replace("right", "left").replace("\0", "right")
            if other in c.keypoints:
                table[label, i] = c.keypoints.index(other)
    return table
