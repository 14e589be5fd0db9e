"""Images of any resolution as tiles of a tower's own size, and the whole image, smaller, before them."""

import math
from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def layout(size: tuple[int, int], tile: tuple[int, int], most: int) -> tuple[int, int]:
    """(rows, columns), at most `most` tiles in all, in which an image of `size` (H, W) keeps most of its pixels; of
    equals the one that wastes least (LLaVA-NeXT's choice, https://arxiv.org/abs/2310.03744)."""
    if most < 1:
        raise ValueError(f"most={most}: an image is cut into at least one tile")
    (h, w), (th, tw) = size, tile

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        high, wide = grid[0] * th, grid[1] * tw
        scale = min(high / h, wide / w)
        kept = min(int(h * scale) * int(w * scale), h * w)
        return kept, kept - high * wide

    return max(grids(most), key=worth)


def grids(most: int) -> Iterator[tuple[int, int]]:
    return ((a, b) for a, b in product(range(1, most + 1), repeat=2) if a * b <= most)


def tiled(image: Tensor, tile: int | tuple[int, int], most: int = 4) -> Tensor:
    """(3 H W) -> (T 3 h w): the whole image fitted into one tile, and, where more than one keeps more of its pixels,
    the tiles row by row. Images are scaled to fit and centred; what is left over is 0 (the mean, where normalised)."""
    th, tw = (tile, tile) if isinstance(tile, int) else tile
    rows, columns = layout((image.shape[-2], image.shape[-1]), (th, tw), most)
    parts = [fitted(image, (th, tw))[None]]
    if rows * columns > 1:
        m = fitted(image, (rows * th, columns * tw))
        cut = m.unflatten(1, (rows, th)).unflatten(3, (columns, tw))  # type: ignore[no-untyped-call]  # 3 R h S w
        parts.append(cut.permute(1, 3, 0, 2, 4).flatten(0, 1))
    return torch.cat(parts)


def fitted(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image scaled to lie within `size` (H, W), centred on zeros."""
    h, w = image.shape[-2:]
    scale = min(size[0] / h, size[1] / w)
    high, wide = (max(1, min(n, math.floor(s * scale + 0.5))) for s, n in zip((h, w), size, strict=True))
    small = F.interpolate(image[None].float(), (high, wide), mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (size[0] - high) // 2, (size[1] - wide) // 2
    return F.pad(small.to(image.dtype), (left, size[1] - wide - left, top, size[0] - high - top))
