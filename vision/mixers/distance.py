"""Attention with a learned bias for how far query and key lie apart, |dy| rows and |dx| columns: inside windows
(TinyViT, https://arxiv.org/abs/2207.10666) or over the whole map (EfficientFormer, https://arxiv.org/abs/2206.01191).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.distance_bias import distance_bias
from ...kernels.sizes import always, missing
from ...kernels.windows import attend_beside, attend_windows
from ..layers import Linear
from ..norm import Norm
from ..position import resize, same
from ..spec import Spec
from ..tokens import Probe, Tokens
from .attention import attend_in

Grid = tuple[int, int]


class DistanceBias(nn.Module):
    """A table (h H*W) over the distances on an H x W grid of keys -> the bias (h n H*W) of all pairs.

    On another grid the table is resized bicubically; with `spread_first` what it spreads to is, as a map of queries by
    keys (the detection form of EfficientFormer).
    """

    def __init__(self, heads: int, grid: Grid, spread_first: bool = False):
        super().__init__()
        self.grid, self.spread_first = grid, spread_first
        self.table = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))

    def forward(self, grid: Grid, step: int = 1) -> Tensor:
        """For keys on `grid` and queries on every `step`-th row and column of it."""
        if same(grid, self.grid) or not self.spread_first:
            return distance_bias(self.resized(self.table, self.grid, grid), grid, step)
        n = grid[0] * grid[1]
        return F.interpolate(distance_bias(self.table, self.grid)[None], (n, n), mode="bicubic")[0]

    def resized(self, table: Tensor, grid: Grid, to: Grid) -> Tensor:
        return table if same(grid, to) else resize(table.mT[None], grid, to, antialias=False)[0].mT.contiguous()

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published table of another square grid, resampled to this one; None where it is none."""
        side = round(value.shape[-1] ** 0.5)
        if name != "table" or value.ndim != 2 or len(value) != len(self.table) or side * side != value.shape[1]:
            return None
        return self.resized(value, (side, side), self.grid)


class WindowDistanceAttention(nn.Module):
    """softmax(q k' / sqrt(d) + bias of the distance) v inside s x s windows of the map, with a norm before it.

    A map whose sides are no multiples of s is padded with zeros at right and bottom BEFORE the norm, as published: what
    is padded becomes the norm's bias and takes part as keys.
    """

    needs_grid, offers, projections = True, (), ("qkv", "proj")
    seams: tuple[str, ...] = ("attending",)

    def __init__(self, dim: int, heads: int, size: int, norm: Norm):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        if size < 1:
            raise ValueError(f"window size {size}: it takes at least 1")
        self.heads, self.size = heads, size
        self.norm, self.qkv, self.proj = norm.build(dim), Linear(dim, 3 * dim), Linear(dim, dim)
        self.bias = DistanceBias(heads, (size, size))
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m = t.map()  # B H W C
        (h, w), s = m.shape[1:3], self.size
        whole = always(h % s == 0) and always(w % s == 0)
        if not whole:
            m = F.pad(m, (0, 0, 0, missing(w, s), 0, missing(h, s)))
        qkv, bias = self.qkv(self.norm(m)), self.bias((s, s))[None]
        if self.attending is None:
            y = attend_windows(qkv, bias, self.heads, s)
        else:
            y, _ = attend_beside(qkv, qkv[:, 0, :0], bias, self.heads, s, partial(self.attending, t=t))
        if not whole:
            y = y[:, :h, :w]
        return self.proj(y.flatten(1, 2))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"heads={self.heads}, size={self.size}"


class DistanceAttention(nn.Module):
    """softmax(q k' / sqrt(d) + bias of the distance) v over the whole map; d channels of q and k and `value` of v a
    head, whatever C is. `qkv` gives all q, then all k, then all v."""

    needs_grid, offers, projections = True, ("keys",), ("qkv", "proj")
    seams: tuple[str, ...] = ("attending",)

    def __init__(self, dim: int, heads: int, key: int, value: int, bias: DistanceBias):
        super().__init__()
        self.heads, self.key, self.value, self.bias = heads, key, value, bias
        self.qkv, self.proj = Linear(dim, heads * (2 * key + value)), Linear(heads * value, dim)
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        if t.grid is None:
            raise ValueError("these tokens no longer fill a grid, and DistanceAttention weighs pairs by their places")
        wide = self.heads * self.key
        parts = self.qkv(t.x).split((wide, wide, self.heads * self.value), -1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)  # B h N d
        if probe is not None:
            probe["keys"] = k  # B h N d
        y = attend_in(self.attending, q, k, v, self.bias(t.grid)[None], t)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def by_part(value: Tensor, heads: int, parts: tuple[int, ...]) -> Tensor:
    """Rows of a qkv layer in the order (heads, parts) -> all heads of the first part, then of the second, …"""
    by_head = value.unflatten(0, (heads, sum(parts)))  # type: ignore[no-untyped-call]
    return torch.cat([p.flatten(0, 1) for p in by_head.split(parts, 1)])


@dataclass(frozen=True)
class WindowDistance:
    """Attention inside size x size windows, biased by distance, with its own norm."""

    heads: int
    size: int = 7
    norm: Norm = Norm()

    def build(self, dim: int, index: int) -> nn.Module:
        return WindowDistanceAttention(dim, self.heads, self.size, self.norm)


@dataclass(frozen=True)
class Distance(Spec):
    """Attention over a map of `grid`, biased by distance. On another one: `resize` the table, or what it spreads to."""

    grid: Grid
    heads: int = 8
    key: int = 32  # channels of q and k a head
    value: int = 128
    resize: Literal["table", "spread"] = "table"

    def sized(self, grid: Grid) -> "Distance":
        return replace(self, grid=grid)

    def build(self, dim: int, index: int) -> nn.Module:
        if self.resize not in ("table", "spread"):
            raise ValueError(f"resize {self.resize!r} of Distance: it is table or spread")
        bias = DistanceBias(self.heads, self.grid, self.resize == "spread")
        return DistanceAttention(dim, self.heads, self.key, self.value, bias)
