"""Attention to averaged keys with a learned bias for every pair of places (PyramidTNT,
https://arxiv.org/abs/2201.00978)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.pool import means
from ..layers import Linear
from ..position import same
from ..spec import Spec
from ..tokens import Probe, Tokens
from .attention import attend_in


class PooledAttention(nn.Module):
    """softmax(q k' / sqrt(d) + bias) v, keys and values from norm(reduce(p)), p the means of r x r tokens (r = 1: from
    the tokens themselves). The bias `table` (1 h N M) belongs to one grid; on another it is resized bilinearly, in the
    places of keys and in those of queries."""

    needs_grid, offers, projections = True, (), ("q", "kv", "reduce", "proj")
    seams: tuple[str, ...] = ("attending",)

    def __init__(self, dim: int, heads: int, pool: int, grid: tuple[int, int]):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads, self.pool, self.grid = heads, pool, grid
        self.q, self.kv, self.proj = Linear(dim, dim, bias=False), Linear(dim, 2 * dim, bias=False), Linear(dim, dim)
        self.reduce: nn.Module = Linear(dim, dim) if pool > 1 else nn.Identity()
        self.norm: nn.Module = nn.LayerNorm(dim) if pool > 1 else nn.Identity()
        (h, w), (y, x) = grid, self.pooled(grid)
        self.table = nn.Parameter(nn.init.normal_(torch.empty(1, heads, h * w, y * x), std=0.02))
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m = t.map()
        q = self.q(t.x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B h N d
        k, v = self.kv(self.fewer(m)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # B h M d
        y = attend_in(self.attending, q, k, v, self.resized((m.shape[1], m.shape[2])).to(q.dtype), t)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def fewer(self, m: Tensor) -> Tensor:
        """(B M C)"""
        if self.pool == 1:
            return m.flatten(1, 2)
        p = means(m.permute(0, 3, 1, 2), self.pool)
        return self.norm(self.reduce(p.permute(0, 2, 3, 1).flatten(1, 2)))  # type: ignore[no-any-return]

    def pooled(self, grid: tuple[int, int]) -> tuple[int, int]:
        return (grid[0] + self.pool - 1) // self.pool, (grid[1] + self.pool - 1) // self.pool

    def resized(self, grid: tuple[int, int]) -> Tensor:
        """(1 h N M) for the given grid."""
        return self.table if same(grid, self.grid) else between(self.table, self.grid, grid, self.pooled)

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A table made for another square grid, resampled to this one; None where it is none."""
        side = round(value.shape[-2] ** 0.5) if value.ndim == 4 else 0
        keys = self.pooled((side, side))
        if name != "table" or value.shape != (1, self.heads, side * side, keys[0] * keys[1]):
            return None
        return between(value, (side, side), self.grid, self.pooled)


Grid = tuple[int, int]


def between(table: Tensor, grid: Grid, to: Grid, pooled: Callable[[Grid], Grid]) -> Tensor:
    """A table (1 h N M) of pairs on `grid` for the grid `to`."""
    heads, n = table.shape[1:3]
    y, x = pooled(to)
    a = F.interpolate(table.float().view(heads, n, *pooled(grid)), (y, x), mode="bilinear")  # h N y x
    a = a.view(heads, *grid, y * x).permute(0, 3, 1, 2)  # h M' H W
    a = F.interpolate(a, to, mode="bilinear").flatten(2)  # h M' N'
    return a.mT[None].to(table.dtype)


@dataclass(frozen=True)
class Pooled(Spec):
    """Attention to the means of `pool` x `pool` tokens; the biases are made for a (height, width) grid."""

    heads: int
    pool: int
    grid: tuple[int, int]

    def sized(self, grid: tuple[int, int]) -> "Pooled":
        return replace(self, grid=grid)

    def build(self, dim: int, index: int) -> nn.Module:
        return PooledAttention(dim, self.heads, self.pool, self.grid)
