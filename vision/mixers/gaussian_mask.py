"""Masks on attention scores that depend on where two tokens stand, https://arxiv.org/abs/2309.05375: a mixture of
Gaussians of their distance, and its element-wise alternative (SLM).

A mask is a module grid -> (h or 1 N N), float32, and a spec with `build(heads)`; scores are multiplied by it. h heads,
K Gaussians, N = H*W places in raster order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.sizes import table as of_sizes
from ..position import resize_pairs
from ..spec import Spec

Grid = tuple[int, int]


class GaussianMixture(nn.Module):
    """sum_k alpha_k G^(1 / (sigma_k² + 1e-5)) with G = exp(-r²)^(1/2), r the distance of two tokens; sigma and alpha
    (K h 1 1). Computed for any grid."""

    def __init__(self, heads: int, kernels: int):
        super().__init__()
        self.sigma = nn.Parameter(10 + 10 * torch.randn(kernels, heads, 1, 1))
        self.alpha = nn.Parameter(2 * torch.randn(kernels, heads, 1, 1))

    def forward(self, grid: Grid) -> Tensor:
        wide = torch.promote_types(self.sigma.dtype, torch.float32)
        log, near = of_sizes(log_distance, *grid).to(self.sigma.device, wide).unbind(0)  # H W
        power = 1 / (self.sigma.to(wide).square() + 1e-5)
        by_offset = (self.alpha.to(wide) * (power * log).exp()).sum(0) * near  # h H W: few against N N
        rows, columns = (of_sizes(offsets, n).to(log.device) for n in grid)
        h, w = grid
        m = by_offset.index_select(2, columns).index_select(1, rows).view(-1, h, h, w, w)
        return m.transpose(2, 3).reshape(-1, h * w, h * w)


class ElementMask(nn.Module):
    """A learned number for each pair of tokens of one grid, shared by the heads; 0 to begin with. On another grid it is
    read as a map over (y, x, y', x') and resized bilinearly."""

    def __init__(self, grid: Grid):
        super().__init__()
        self.grid = grid
        self.matrix = nn.Parameter(torch.zeros(grid[0] * grid[1], grid[0] * grid[1]))

    def forward(self, grid: Grid) -> Tensor:
        wide = torch.promote_types(self.matrix.dtype, torch.float32)
        return resize_pairs(self.matrix.to(wide), self.grid, grid)[None]

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published matrix of another square grid, resized to this one; None where it is none."""
        side = round(value.shape[-1] ** 0.5)
        if name != "matrix" or value.shape != (side * side, side * side):
            return None
        return resize_pairs(value, (side, side), self.grid)


def beside_special(mask: Tensor, special: tuple[int, ...]) -> Tensor:
    """mask (h N N) for patches -> (h k+N k+N), 1 in the rows and columns of the special tokens at those positions."""
    k = len(special)
    if not k:
        return mask
    whole = F.pad(mask, (k, 0, k, 0), value=1.0)
    if sorted(special) == list(range(k)):
        return whole
    places = [*special, *(i for i in range(whole.shape[1]) if i not in set(special))]
    order = torch.tensor(places, device=mask.device).argsort()
    return whole[:, order][:, :, order]


def distance(height: int, width: int, xp: Any = np) -> Any:
    """(H W) float32: G of two places that many rows and columns apart. As published in float32 before the root, it has
    few digits from r² = 88 on and is 0 from r² = 104 on, however wide a Gaussian is."""
    r2 = xp.asarray(xp.arange(height)[:, None] ** 2 + xp.arange(width) ** 2, dtype=xp.float64)
    return xp.sqrt(xp.asarray(xp.exp(-r2), dtype=xp.float32))


def log_distance(height: int, width: int, xp: Any = np) -> Any:
    """(2 H W): log G where G > 0, else 0; and whether G > 0."""
    g = xp.asarray(distance(height, width, xp), dtype=xp.float64)
    return xp.asarray(
        xp.stack([xp.log(xp.where(g > 0, g, 1.0)), xp.asarray(g > 0, dtype=xp.float64)]), dtype=xp.float32
    )


def offsets(n: int, xp: Any = np) -> Any:
    """(n*n): |i - j| for i, j < n."""
    i = xp.arange(n)
    return abs(i[:, None] - i).reshape(-1)


@dataclass(frozen=True)
class Gaussians(Spec):
    """A mixture of so many Gaussians of the distance for each head."""

    kernels: int = 5

    def build(self, heads: int) -> nn.Module:
        return GaussianMixture(heads, self.kernels)


@dataclass(frozen=True)
class Elementwise(Spec):
    """A learned matrix over the tokens of a (height, width) grid (SLM)."""

    grid: Grid

    def sized(self, grid: Grid) -> "Elementwise":
        return Elementwise(grid)

    def build(self, heads: int) -> nn.Module:
        return ElementMask(self.grid)


Mask = Gaussians | Elementwise
