"""How a picture is prepared for a tower."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import fitted, tiled

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Eye:
    """A picture in RGB (PIL's, or uint8 (H W 3)) -> (3 h w), normalised, or tiles (T 3 h w).

    fit: `crop` scales the shorter side to that of `size` and cuts the middle out (CLIP's), `pad` fits the whole picture
        in, on grey (LLaVA-1.5's), `stretch` ignores its shape, `tiles` cuts it into up to `tiles` of `size` behind the
        whole of it, `keep` leaves its size.
    """

    size: tuple[int, int] = (336, 336)
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    fit: Literal["crop", "pad", "stretch", "tiles", "keep"] = "crop"
    tiles: int = 4

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "pad", "stretch", "tiles", "keep"):
            raise ValueError(f"fit={self.fit!r}: crop, pad, stretch, tiles or keep")
        if min(self.size) < 1:
            raise ValueError(f"size={self.size}: sides of at least 1 pixel are wanted")

    def __call__(self, picture: Any) -> Tensor:
        pixels = torch.from_numpy(np.array(picture))
        if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != torch.uint8:
            raise ValueError(f"a picture of shape {tuple(pixels.shape)} and type {pixels.dtype}: RGB of 8 bits (H, W, "
                             "3) is wanted; patchloom.data.read.read_image makes it of any file")  # fmt: skip
        image = pixels.permute(2, 0, 1) / 255
        h, w = image.shape[-2:]
        if self.fit == "crop":
            scale = max(self.size[0] / h, self.size[1] / w)
            high, wide = (max(s, round(n * scale)) for s, n in zip(self.size, (h, w), strict=True))
            top, left = (high - self.size[0]) // 2, (wide - self.size[1]) // 2
            image = scaled(image, (high, wide))[:, top : top + self.size[0], left : left + self.size[1]]
        elif self.fit == "stretch":
            image = scaled(image, self.size)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        image = (image - mean) / std
        if self.fit == "pad":
            return fitted(image, self.size)
        return tiled(image, self.size, self.tiles) if self.fit == "tiles" else image


def scaled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3 H W) in [0, 1] -> `size`, rounded to 8 bits as image files are."""
    y = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
    return (y.clamp(0, 1) * 255).round() / 255


def open_eye(folder: str | Path, fit: Literal["crop", "pad"] = "crop") -> Eye:
    """As a folder's preprocessor_config.json (or processor_config.json) says."""
    folder = Path(folder)
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text())
            found = found.get("image_processor", found)
            size = found["crop_size"] if "crop_size" in found else found["size"]
            height, width = (size["height"], size["width"]) if isinstance(size, dict) and "height" in size else (
                (size["shortest_edge"],) * 2 if isinstance(size, dict) else (size, size))  # fmt: skip
            return Eye((height, width), tuple(found["image_mean"]), tuple(found["image_std"]), fit)
    raise FileNotFoundError(f"{folder} holds no preprocessor_config.json: say how pictures are prepared with an Eye")
