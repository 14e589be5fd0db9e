"""Manhattan self-attention (MaSA) of RMT, https://arxiv.org/abs/2309.11523: scores fall off with the distance of the
tokens in rows and columns, at another rate in each head.

Shapes: B images, N = H * W tokens in raster order, C channels, n heads of d = C / n channels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from ...kernels.attend import attend
from ...kernels.rotary import rotate
from ...kernels.sizes import table as of_sizes
from ..depthwise import filtered
from ..layers import Linear
from ..tokens import Probe, Tokens


class ManhattanAttention(nn.Module):
    """proj(softmax(q k' / sqrt(d) + g (|dy| + |dx|)) v + conv(v)), g = ln(1 - 2^-(start + span h / n)) in head h, conv
    a depthwise 5x5 convolution; q and k are rotated by their place in the sequence (not by row and column).

    `decomposed`: attention inside each row with g |dx|, then of its results inside each column with g |dy|, both with
    the same q and k. The paper multiplies the weights by exp(g distance) behind the softmax; the authors' code, which
    the published weights belong to, adds the exponent before it.
    """

    needs_grid, offers, projections = True, ("keys",), ("qk", "v", "proj")

    def __init__(self, dim: int, heads: int, span: float, start: float = 2.0, decomposed: bool = False):
        super().__init__()
        if dim % (2 * heads):
            raise ValueError(f"dim {dim} does not divide into {heads} heads of an even number of channels")
        self.heads, self.span, self.start, self.decomposed = heads, span, start, decomposed
        self.qk, self.v, self.proj = Linear(dim, 2 * dim), Linear(dim, dim), Linear(dim, dim)
        self.local = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        assert t.grid is not None
        qk, v = self.qk(t.x).unflatten(-1, (2, self.heads, -1)), self.v(t.x)  # B N 2 n d, B N C
        turns = of_sizes(turns_of, t.x.shape[1], qk.shape[-1]).to(qk.device)[:, None, None]
        q, k = rotate(qk, turns).unbind(2)  # B N n d
        if probe is not None:
            probe["keys"] = k.transpose(1, 2)  # B h N d
        by_head = v.unflatten(-1, (self.heads, -1))
        y = (self.by_axes if self.decomposed else self.whole)(q, k, by_head, t.grid)  # B N C
        local = filtered(self.local, v.unflatten(1, t.grid)).flatten(1, 2)
        return self.proj(y + local)  # type: ignore[no-any-return]

    def whole(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        rows, columns, n = self.penalty(grid[0], q), self.penalty(grid[1], q), q.shape[1]
        bias = (rows[:, :, None, :, None] + columns[:, None, :, None, :]).reshape(-1, n, n)  # n N N
        return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias).transpose(1, 2).flatten(2)

    def by_axes(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
        b, (h, w), n = q.shape[0], grid, self.heads

        def in_rows(x: Tensor) -> Tensor:
            return x.reshape(b * h, w, n, -1).transpose(1, 2)  # B*H n W d

        def in_columns(x: Tensor) -> Tensor:
            return x.reshape(b, h, w, n, -1).permute(0, 2, 3, 1, 4).flatten(0, 1)  # B*W n H d

        v = attend(in_rows(q), in_rows(k), in_rows(v), self.penalty(w, q))  # B*H n W d
        v = v.reshape(b, h, n, w, -1).permute(0, 3, 2, 1, 4).flatten(0, 1)  # B*W n H d
        y = attend(in_columns(q), in_columns(k), v, self.penalty(h, q))
        return y.reshape(b, w, n, h, -1).permute(0, 3, 1, 2, 4).reshape(b, h * w, -1)

    def penalty(self, side: int, like: Tensor) -> Tensor:
        """(n side side): g |i - j|, in float32."""
        return of_sizes(penalties, side, self.heads, self.start, self.span).to(like.device)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, start={self.start:g}, span={self.span:g}, decomposed={self.decomposed}"


def turns_of(count: int, width: int, xp: Any = np) -> Any:
    """(N d/2 2): cosine and sine of the place times each pair's angle, rounded to float32 as the authors' are: a wave
    of some thousand turns shows the last digit of its angle."""
    angle = xp.arange(count, dtype=xp.float32)[:, None] * xp.asarray(angles(width))
    return xp.stack([xp.cos(angle), xp.sin(angle)], -1)


def angles(width: int) -> np.ndarray:
    """(d/2): 10000^-x for x from 0 to 1, both included (others stop short of 1)."""
    i, one = np.arange(width // 2, dtype=np.float32), np.float32(1)
    step = one / np.float32(max(1, width // 2 - 1))
    x = np.where(i < width // 4, step * i, one - step * i[::-1]) if width > 2 else i  # counted from both ends
    return np.asarray(one / np.float32(10000) ** x.astype(np.float32))


def decays(heads: int, start: float, span: float) -> np.ndarray:
    """(n): ln(1 - 2^-(start + span h / n)) for the heads h."""
    rates = np.float32(start) + np.float32(span) * np.arange(heads, dtype=np.float32) / np.float32(heads)
    return np.asarray(np.log(1 - np.float32(2) ** -rates))


def penalties(side: int, heads: int, start: float, span: float, xp: Any = np) -> Any:
    """(n side side): g |i - j|"""
    place = xp.arange(side, dtype=xp.float32)
    return abs(place[:, None] - place) * xp.asarray(decays(heads, start, span))[:, None, None]


@dataclass(frozen=True)
class Manhattan:
    """Manhattan self-attention; the heads' exponents go from `start` to `start + span`."""

    heads: int
    span: float
    start: float = 2.0
    decomposed: bool = False  # rows, then columns

    def build(self, dim: int, index: int) -> nn.Module:
        return ManhattanAttention(dim, self.heads, self.span, self.start, self.decomposed)
