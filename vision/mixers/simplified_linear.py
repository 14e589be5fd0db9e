"""Simplified linear attention, https://arxiv.org/abs/2405.11582."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.linear_attention import linear_attention
from ..layers import Linear
from ..position import resize
from ..spec import Spec
from ..tokens import Probe, Tokens
from .convolution import convolve


class SimplifiedLinearAttention(nn.Module):
    """q_i' (sum_j k_j v_j') / (q_i' sum_j k_j + 1e-6) with q = relu(q), k = relu(k + table), plus a depthwise
    convolution of v that all heads share. No scale. The table (1 h*w C) was made for `grid` and is resized to others.
    """

    needs_grid, offers, projections, entries = True, (), ("qkv", "proj"), ("qkv",)

    def __init__(self, dim: int, heads: int, grid: tuple[int, int], kernel: int = 5):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel}: an odd one is wanted")
        self.heads, self.grid, width = heads, grid, dim // heads
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.dwc = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.table = nn.Parameter(torch.zeros(1, grid[0] * grid[1], dim))

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        h, w = t.map().shape[1:3]
        q, k, v = self.qkv(t.x).chunk(3, -1)  # B N C
        k = k + resize(self.table, self.grid, (h, w)).to(k.dtype)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous() for y in (F.relu(q), F.relu(k), v))
        y = linear_attention(q, k, v, 1e-6)  # B h N d
        local = convolve(self.dwc, v.view(-1, h, w, v.shape[-1]))  # B*h H W d
        y = y + local.reshape(v.shape)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published table made for another square grid, resampled to this one; None where it is none."""
        if name != "table" or value.ndim != 3 or value.shape[-1] != self.table.shape[-1]:
            return None
        side = round(value.shape[1] ** 0.5)
        return resize(value, (side, side), self.grid) if side * side == value.shape[1] else None

    def extra_repr(self) -> str:
        return f"heads={self.heads}, grid={self.grid}"


@dataclass(frozen=True)
class SimplifiedLinear(Spec):
    """Simplified linear attention of every token to every token, its table made for a (height, width) grid."""

    heads: int
    grid: tuple[int, int]
    kernel: int = 5

    def build(self, dim: int, index: int) -> nn.Module:
        return SimplifiedLinearAttention(dim, self.heads, self.grid, self.kernel)

    def sized(self, grid: tuple[int, int]) -> "SimplifiedLinear":
        return replace(self, grid=grid)
