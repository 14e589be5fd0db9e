"""`CropScaled`: albumentations' door for a part of a picture brought to a size, with its boxes, masks and keypoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import ALL_TARGETS


class Window(NamedTuple):
    """Whole pixels of the picture from (x0, y0) to before (x1, y1), to become height x width."""

    x0: int
    y0: int
    x1: int
    y1: int
    height: int
    width: int


Choose = Callable[[np.random.Generator, int, int, "np.ndarray | None"], Window]


class CropScaled(A.DualTransform):
    """The window that `choose(generator, H, W, semantic map or None)` names, scaled; one interpolation of what is kept
    where a scaled picture that is then cropped would cost up to four times as many pixels as the crop has.

    Pictures are averaged over pixels where they shrink (no aliasing), bilinear where they grow; masks take the nearest.
    """

    _targets = ALL_TARGETS

    def __init__(self, choose: Choose) -> None:
        super().__init__(p=1.0)
        self.choose = choose

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        return {"window": self.choose(self.random_generator, height, width, data.get("mask"))}

    def apply(self, img: np.ndarray, window: Window, **params: Any) -> np.ndarray:
        part = img[window.y0 : window.y1, window.x0 : window.x1]
        if part.shape[:2] == (window.height, window.width):
            return part
        shrinks = window.height < part.shape[0] or window.width < part.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(part, (window.width, window.height), interpolation=how)

    def apply_to_mask(self, mask: np.ndarray, window: Window, **params: Any) -> np.ndarray:
        part = mask[window.y0 : window.y1, window.x0 : window.x1]
        if part.shape[:2] == (window.height, window.width):
            return part
        return cv2.resize(part, (window.width, window.height), interpolation=cv2.INTER_NEAREST_EXACT)

    def apply_to_masks(self, masks: np.ndarray, window: Window, **params: Any) -> np.ndarray:
        made = np.empty((len(masks), window.height, window.width), masks.dtype)
        for row, mask in zip(made, masks, strict=True):
            row[:] = self.apply_to_mask(mask, window)
        return made

    def apply_to_bboxes(self, bboxes: np.ndarray, window: Window, **params: Any) -> np.ndarray:
        """(n, 4+) as parts of the picture's sides."""
        height, width = params["shape"][:2]
        moved = bboxes.copy()
        moved[:, [0, 2]] = (bboxes[:, [0, 2]] * width - window.x0) / (window.x1 - window.x0)
        moved[:, [1, 3]] = (bboxes[:, [1, 3]] * height - window.y0) / (window.y1 - window.y0)
        return moved

    def apply_to_keypoints(self, keypoints: np.ndarray, window: Window, **params: Any) -> np.ndarray:
        """(n, 2+) numbers of pixels, whose middles are half a pixel further."""
        moved = keypoints.copy()
        moved[:, 0] = (keypoints[:, 0] + 0.5 - window.x0) * window.width / (window.x1 - window.x0) - 0.5
        moved[:, 1] = (keypoints[:, 1] + 0.5 - window.y0) * window.height / (window.y1 - window.y0) - 0.5
        return moved
