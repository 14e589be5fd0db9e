"""Attention with relative positions taken apart into rows and columns, https://arxiv.org/abs/2112.01526, over the whole
map or inside windows, as in ViTDet and Segment Anything (https://arxiv.org/abs/2304.02643)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.sizes import always, missing
from ...kernels.sizes import table as of_sizes
from ...kernels.windows import unwindow, windows
from ..layers import Linear
from ..spec import Spec
from ..tokens import Probe, Tokens
from .attention import attend_in

Grid = tuple[int, int]


class DecomposedAttention(nn.Module):
    """softmax(q k' / sqrt(d) + q·rows[dy] + q·columns[dx]) v for an offset of dy rows and dx columns.

    `size`: inside size x size windows, the map padded with zeros that take part; None: over the whole map. The tables
    ((2n-1) d) are made for the sides `grid` of the map or window, and interpolated linearly for others.
    """

    needs_grid, offers, projections = True, (), ("qkv", "proj")
    seams: tuple[str, ...] = ("attending",)
    rescales, dense = True, True  # on a coarser map that a plugin made: smaller windows, the tables interpolated

    def __init__(self, dim: int, heads: int, size: int | None, grid: Grid):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads, self.size = heads, size
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.rows, self.columns = (nn.Parameter(torch.zeros(2 * n - 1, dim // heads)) for n in grid)
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m = t.map()  # B H W C
        h, w = m.shape[1:3]
        if self.size is None:
            return self.proj(self.attend(t.patches(), (h, w), t))  # type: ignore[no-any-return]
        s = self.size if t.window is None else t.window
        m = F.pad(m, (0, 0, 0, missing(w, s), 0, missing(h, s)))
        y = unwindow(self.proj(self.attend(windows(m, s), (s, s), t)), m.shape[1], m.shape[2], s)
        return y[:, :h, :w].flatten(1, 2)

    def attend(self, x: Tensor, grid: Grid, t: Tokens) -> Tensor:
        """(B h*w C) -> (B h*w C), every token to every other."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # B h N d
        return attend_in(self.attending, q, k, v, self.bias(q.unflatten(2, grid)), t).transpose(1, 2).flatten(2)

    def bias(self, q: Tensor) -> Tensor:
        """(B h H W d) -> (B h N N): what each pair's offset adds to its score."""
        rows, columns = (of_pairs(table, n) for table, n in zip((self.rows, self.columns), q.shape[2:4], strict=True))
        y = torch.einsum("bhyxd,yjd->bhyxj", q, rows)
        x = torch.einsum("bhyxd,xid->bhyxi", q, columns)
        return (y[..., None] + x[..., None, :]).flatten(4, 5).flatten(2, 3)

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published table for another side, interpolated to this one; None where it is none."""
        if name not in ("rows", "columns") or value.ndim != 2 or value.shape[0] % 2 == 0:
            return None
        return fitted(value, (getattr(self, name).shape[0] + 1) // 2)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, size={self.size}"


def fitted(table: Tensor, n: int) -> Tensor:
    """A table of offsets along one side, (L d), interpolated to a side of n: (2n-1 d)."""
    if always(table.shape[0] == 2 * n - 1):
        return table
    return F.interpolate(table.mT[None].float(), 2 * n - 1, mode="linear")[0].mT.to(table.dtype)


def of_pairs(table: Tensor, n: int) -> Tensor:
    """(n n d): the row of each pair's offset, query minus key."""
    return fitted(table, n)[of_sizes(offsets, n)]


def offsets(n: int, xp: Any = np) -> Any:
    """(n n): a number for each pair's offset, from 0 on."""
    return xp.arange(n)[:, None] - xp.arange(n)[None] + n - 1


@dataclass(frozen=True)
class Decomposed(Spec):
    """Attention inside size x size windows, or over the whole map (None), with positions by rows and columns; without
    windows the tables are made for `grid`."""

    heads: int
    size: int | None = None
    grid: Grid = (64, 64)

    def sized(self, grid: Grid) -> "Decomposed":
        return replace(self, grid=grid)

    def build(self, dim: int, index: int) -> nn.Module:
        grid = self.grid if self.size is None else (self.size, self.size)
        return DecomposedAttention(dim, self.heads, self.size, grid)
