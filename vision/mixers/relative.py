"""Global attention with a learned bias for each offset between two places, as CoAtNet and its kin have it
(https://arxiv.org/abs/2106.04803)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels.sizes import table as of_sizes
from ..layers import Linear
from ..position import resize
from ..spec import Spec
from ..tokens import Probe, Tokens
from .attention import attend_in

Grid = tuple[int, int]


class RelativeAttention(nn.Module):
    """softmax(q k' / sqrt(d) + bias of the offset) v over the whole map, C -> `out` channels.

    The table ((2H-1)(2W-1) h) is made for `grid`; on another map it is resampled bicubically as a map of offsets.
    """

    needs_grid, offers, projections, entries = True, (), ("qkv", "proj"), ("qkv",)
    seams: tuple[str, ...] = ("attending",)

    def __init__(self, dim: int, out: int, width: int, grid: Grid):
        super().__init__()
        if out % width:
            raise ValueError(f"dim {out} does not divide into heads of {width} channels")
        self.heads, self.grid = out // width, grid
        self.qkv, self.proj = Linear(dim, 3 * out), Linear(out, out)
        h, w = span(grid)
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(h * w, self.heads), std=0.02))
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        if t.grid is None:
            raise ValueError("relative positions need a full grid; unmerge the tokens first")
        q, k, v = self.qkv(t.x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # B h N d
        y = attend_in(self.attending, q, k, v, self.bias(t.grid), t)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # B N C

    def bias(self, grid: Grid) -> Tensor:
        """(1 h N N) on a map of `grid`."""
        table = resize(self.table[None], span(self.grid), span(grid), antialias=False)[0]
        return table[of_sizes(offsets, *grid)].permute(2, 0, 1)[None]

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published table of another square map, resampled to this one; None where it is none."""
        if name != "table" or value.ndim != 2 or value.shape[1] != self.heads:
            return None
        side = round(value.shape[0] ** 0.5)
        if side * side != value.shape[0] or side % 2 == 0:
            return None
        return resize(value[None], (side, side), span(self.grid), antialias=False)[0]

    def extra_repr(self) -> str:
        return f"heads={self.heads}, grid={self.grid}"


def span(grid: Grid) -> Grid:
    """How many offsets there are along each side."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def offsets(h: int, w: int, xp: Any = np) -> Any:
    """(h*w h*w): the row of the table that holds the bias of each pair, query minus key."""
    row, column = xp.arange(h)[:, None], xp.arange(w)[None]
    y, x = (row + 0 * column).reshape(-1), (0 * row + column).reshape(-1)
    dy, dx = (p[:, None] - p[None, :] for p in (y, x))
    return (dy + h - 1) * (2 * w - 1) + dx + w - 1


@dataclass(frozen=True)
class Relative(Spec):
    """Attention of every token to every token with relative positions; heads of `width` channels, tables for `grid`."""

    width: int = 32
    grid: Grid = (7, 7)

    def sized(self, grid: Grid) -> "Relative":
        return replace(self, grid=grid)

    def build(self, dim: int, index: int) -> nn.Module:
        return RelativeAttention(dim, dim, self.width, self.grid)
