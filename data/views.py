"""Several views of each picture, one for each of several sizes, each varied by itself: multi-resolution training
(https://arxiv.org/abs/2212.00776)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .transforms import Augmentation, Pipeline, Recrop

STEP = 0x2545F4914F6CDD1D  # sets the draws of one view apart from those of the next; the first has the plain seed


@dataclass(frozen=True)
class Views(Augmentation):
    """One view of a picture for each of `sizes` (square, the largest first as published), varied by `augment`; the
    batch is then a tuple of images (B, C, s, s) in that order."""

    sizes: tuple[int, ...] = (224, 160, 128)
    augment: Augmentation = Recrop()

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(f"sizes = {self.sizes}: two or more sides of at least 1 pixel")

    def pipeline(self, cfg: Mapping[str, Any]) -> Pipeline:
        channels = cfg["input_size"][0]
        parts = tuple(self.augment.pipeline({**cfg, "input_size": (channels, s, s)}) for s in self.sizes)
        length = sum(int(np.prod(p.shape)) for p in parts)
        return Pipeline(_Picture(parts), _Finish(parts), (length, 1, 1), parts[0].random)


class _Picture:
    """A picture's views travel as one vector (n, 1, 1), so that a batch and a cache hold them like any picture."""

    def __init__(self, parts: tuple[Pipeline, ...]) -> None:
        self.parts = parts

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.cat([p.picture(image).flatten() for p in self.parts]).view(-1, 1, 1)


class _Finish:
    """(B, n, 1, 1) -> the views."""

    def __init__(self, parts: tuple[Pipeline, ...]) -> None:
        self.parts = parts

    def __call__(self, x: Tensor, seed: int, epochs: np.ndarray, indices: np.ndarray) -> tuple[Tensor, ...]:
        packed = x.flatten(1).split([int(np.prod(p.shape)) for p in self.parts], 1)
        return tuple(
            p.finish(v.reshape(-1, *p.shape), seed + i * STEP, epochs, indices)
            for i, (p, v) in enumerate(zip(self.parts, packed, strict=True))
        )
