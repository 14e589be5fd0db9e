"""Whole pictures as detectors and segmenters take them in evaluation: brought to size as the data modules do it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.augment import fitting, whole
from ...data.transforms import Preprocessing
from ...data.windows import CropScaled


@dataclass(frozen=True)
class Fitted:
    """image (3, h, w) float32, normalised, of a picture of `size` (H, W)."""

    image: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class FitPicture:
    """An RGB picture -> `Fitted`: its shorter side becomes `shortest`, or less where the longer would exceed `longest`;
    without either it stays as it is. What a worker process calls."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shortest: int | None = None
    longest: int | None = None

    @classmethod
    def of(
        cls, preprocessing: Mapping[str, Any], shortest: int | None = None, longest: int | None = None
    ) -> "FitPicture":
        """From a checkpoint's preprocessing: mean, std and, where pictures are brought to size, shortest and longest; a
        side that is named here goes before its own."""
        kept = Preprocessing.of({"input_size": (3, 1, 1), **preprocessing})
        own = (preprocessing.get("shortest"), preprocessing.get("longest"))
        return cls(kept.mean, kept.std, shortest or own[0], longest or own[1])

    def __call__(self, picture: Any, scale: float = 1.0) -> Fitted:
        """`scale`: of the sides that the picture gets."""
        image = np.asarray(picture)
        height, width = image.shape[:2]
        window = whole(height, width, scale * fitting(height, width, self.shortest, self.longest))
        image = CropScaled(lambda *_: window).apply(image, window)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return Fitted((torch.tensor(image).permute(2, 0, 1).float() / 255 - mean) / std, (height, width))
