"""Whole pictures as detectors and segmenters take them in evaluation: brought to size as the data modules do it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.augment import fitting, whole
from ...data.folders import quoted
from ...data.transforms import Preprocessing
from ...data.windows import CropScaled

PARTIAL = "only the others are judged: not the official number"


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


def present(names: Sequence[str], folder: Path, source: str, on_error: str) -> tuple[list[int], list[str]]:
    """(positions of the images whose file is there, a note on the others); without `skip` a missing one raises."""
    gone = [i for i, name in enumerate(names) if not (folder / name).is_file()]
    if not gone:
        return list(range(len(names))), []
    listed = quoted([names[i] for i in gone], 3)
    text = f"{len(gone)} of {len(names)} images of {source} are not in {folder} ({listed})"
    if on_error == "stop" or len(gone) == len(names):
        raise FileNotFoundError(
            f"{text}: name the right folder" + (" (--on-error skip judges the others)" if on_error == "stop" else "")
        )
    return sorted(set(range(len(names))) - set(gone)), [f"{text}; {PARTIAL}"]


def unread(count: int) -> list[str]:
    """A note on images whose file could not be read, if any."""
    return [f"{count} images could not be read; {PARTIAL}"] if count else []
