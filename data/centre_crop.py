"""The crop that diffusion models are trained on: halved by boxes, then bicubic, then the middle; mirrored at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .keyed import uniform
from .transforms import Augmentation, Grey, Pipeline, Preprocessing


def centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of the picture at `size` (H, W): sides are halved by boxes while both are at least twice as long, then
    resized (bicubic) until the picture covers the size. As ADM and DiT crop ImageNet."""
    height, width = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    whole = max(round(image.width * scale), width), max(round(image.height * scale), height)
    image = image.resize(whole, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_tensor(image: Image.Image) -> Tensor:
    """(C, H, W) uint8."""
    array = np.array(image, np.uint8)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class CentreCrop(Augmentation):
    """`centre_crop` at the input's size, mirrored with probability `hflip`."""

    hflip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.hflip <= 1:
            raise ValueError(f"hflip = {self.hflip}: from 0 to 1")

    def pipeline(self, cfg: Mapping[str, Any]) -> Pipeline:
        p = Preprocessing.of(cfg)
        return Pipeline(_Crop(p), _Mirror(p, self.hflip), (p.channels, p.height, p.width))


class _Crop:
    def __init__(self, p: Preprocessing) -> None:
        self.size, self.grey = (p.height, p.width), p.channels == 1

    def __call__(self, image: Image.Image) -> Tensor:
        cropped = centre_crop(image, self.size)
        return to_tensor(Grey()(cropped) if self.grey else cropped)


class _Mirror:
    def __init__(self, p: Preprocessing, hflip: float) -> None:
        self.p, self.hflip = p, hflip

    def __call__(self, x: Tensor, seed: int, epochs: np.ndarray, indices: np.ndarray) -> Tensor:
        flip = torch.from_numpy(uniform(seed, epochs, indices, 1)[:, 0] < self.hflip)
        return self.p.normalise(torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x))
