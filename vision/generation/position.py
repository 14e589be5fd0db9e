"""DiT's first tokens: patches of a latent by one convolution, and a fixed sine-cosine table of their places."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..position import same
from ..stem import Convolution, MapStem, Stem
from ..tokens import Tokens


def plane(grid: tuple[int, int], dim: int, scale: float = 1.0) -> Tensor:
    """(1 h*w C) float32, computed in float64: [code of the column, code of the row], where the code of a place a is
    [sin(a w_k), cos(a w_k)] / scale of a, w_k = 10000^(-k / Q) for k < Q = C / 4."""
    if dim % 4:
        raise ValueError(f"dim {dim}: a table of places in the plane takes a multiple of 4 channels")
    w = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = (torch.arange(n, dtype=torch.float64)[:, None] / scale * w for n in grid)
    codes = [torch.cat([a.sin(), a.cos()], 1) for a in (columns, rows)]  # w C/2, h C/2
    across = codes[0][None].expand(grid[0], -1, -1)
    down = codes[1][:, None].expand(-1, grid[1], -1)
    return torch.cat([across, down], -1).flatten(0, 1)[None].float()


class PlaneEmbedding(nn.Module):
    """Adds `plane` to tokens. The table of the grid that it was made for is stored, as published; for another grid it
    is computed, places further out included."""

    table: Tensor
    computed = ("table",)  # what a checkpoint may lack

    def __init__(self, dim: int, grid: tuple[int, int], scale: float = 1.0):
        super().__init__()
        self.grid, self.scale = grid, scale
        self.register_buffer("table", plane(grid, dim, scale))

    def forward(self, t: Tokens) -> Tokens:
        assert t.grid is not None
        return replace(t, x=t.x + self.of(t.grid))

    def of(self, grid: tuple[int, int]) -> Tensor:
        """(1 h*w C) for the given grid."""
        if same(self.grid, grid):
            return self.table
        return plane(grid, self.table.shape[-1], self.scale).to(self.table)

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published table that was made for another square grid is computed for this one; None for anything else."""
        side = round(value.shape[1] ** 0.5) if value.ndim == 3 else 0
        if name != "table" or side * side != value.shape[1] or value.shape[-1] != self.table.shape[-1]:
            return None
        return plane(self.grid, value.shape[-1], self.scale)

    def extra_repr(self) -> str:
        return f"{self.grid[0]}x{self.grid[1]}" + (f", scale={self.scale:g}" if self.scale != 1 else "")


@dataclass(frozen=True)
class LatentPatches(Stem):
    """patch x patch patches by one convolution without a norm, on which a sine-cosine table of `grid` is added; places
    count 1 / scale each. What the patch does not divide is padded with zeros at right and bottom."""

    patch: int = 2
    grid: tuple[int, int] = (16, 16)
    scale: float = 1.0

    @property
    def stride(self) -> int:
        return self.patch

    @property
    def special(self) -> tuple[int, ...]:
        return ()

    def sized(self, grid: tuple[int, int]) -> "LatentPatches":
        return replace(self, grid=grid)

    def build(self, channels: int, dim: int) -> nn.Module:
        conv = nn.Conv2d(channels, dim, self.patch, self.patch)
        return MapStem(Convolution(conv, None, None, pad=True), PlaneEmbedding(dim, self.grid, self.scale))
