"""`Region`: what of a picture is known and what is to be made, in pixels and as the network sees it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.centre_crop import centre_crop, to_tensor
from ..data.read import read_image
from ..vision.generation.inpainting import Inpaint


@dataclass(frozen=True)
class Region:
    """picture (3, H, W) uint8, keep (H, W) bool: True where it is known. `repeats` goes back and forth so often
    (RePaint)."""

    picture: Tensor
    keep: Tensor
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.keep.all():
            raise ValueError("the mask is black everywhere, so there is nothing to make: white is what is to be made")

    def pasted(self, made: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, with the known pixels as they are."""
        return torch.where(self.keep, self.picture, made)

    def inpaint(self, maker: Any) -> Inpaint:
        """As `maker`'s network sees it: a latent is known where all of its pixels are."""
        x = self.picture[None].float() / 127.5 - 1
        keep = self.keep[None, None]
        if maker.autoencoder is not None:
            mean, _ = maker.autoencoder.encode(x.to(maker.device))
            keep = 1 - F.max_pool2d(1 - keep.float(), maker.factor) > 0.5
            return Inpaint(mean, keep.to(maker.device), self.repeats)
        if maker.model.in_channels == 1:
            x = x.mean(1, keepdim=True)
        return Inpaint(x.to(maker.device), keep.to(maker.device), self.repeats)


def read_region(picture: str | Path, mask: str | Path, size: tuple[int, int], repeats: int = 1) -> Region:
    """The picture and the mask (white: to be made), both cropped to the middle at `size` (H, W)."""
    found, hole = read_image(picture), read_image(mask)
    if found.size != hole.size:
        raise ValueError(
            f"{mask} is {hole.width} x {hole.height} pixels, {picture} is {found.width} x {found.height}: give one of "
            "that size"
        )
    white = to_tensor(centre_crop(hole, size)).float().mean(0) > 127.5
    return Region(to_tensor(centre_crop(found, size)), ~white, repeats)
