"""The scattering mixer of SVT, https://arxiv.org/abs/2311.01310: a gate on the low band of a wavelet transform and an
MLP over the channels of its high bands.

Shapes: B images, an H x W grid, C channels in n blocks of b.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.dtcwt import analyse, synthesise
from ..position import resize, same
from ..spec import Spec
from ..tokens import Probe, Tokens

BLOCKS = 4  # of channels, each with an MLP of its own


def even(grid: tuple[int, int]) -> tuple[int, int]:
    """The grid of the transform's low band."""
    return grid[0] + grid[0] % 2, grid[1] + grid[1] % 2


class Scattering(nn.Module):
    """inverse(gate * low, mlp(high)) of low, high = the dual-tree complex wavelet transform of the map, one level.

    The gate has one number for each channel and place of `grid`; on other grids it is resampled, bicubically, as a
    table of positions is (the authors' runs on its own grid only). The MLP has complex weights: relu(z W1 + b1) W2 + b2
    within each block of channels, the relu on real and imaginary parts alone, at every place and orientation.
    """

    needs_grid, offers, projections = True, (), ()

    def __init__(self, dim: int, grid: tuple[int, int]):
        super().__init__()
        if dim % BLOCKS:
            raise ValueError(f"dim {dim} does not divide into {BLOCKS} blocks")
        self.grid, width = even(grid), dim // BLOCKS
        self.gate = nn.Parameter(0.02 * torch.randn(*self.grid, dim))
        self.weight1, self.weight2 = (nn.Parameter(0.02 * torch.randn(2, BLOCKS, width, width)) for _ in range(2))
        self.bias1, self.bias2 = (nn.Parameter(0.02 * torch.randn(2, BLOCKS, width)) for _ in range(2))

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m = t.map()
        low, high = analyse(m)
        y = synthesise(low * self.resized((low.shape[1], low.shape[2])), self.mlp(high))
        return y[:, : m.shape[1], : m.shape[2]].flatten(1, 2)

    def mlp(self, high: Tensor) -> Tensor:
        """(6 2 B H/2 W/2 C) -> the same shape."""
        shape = (*high.shape[:-1], BLOCKS, high.shape[-1] // BLOCKS)
        x = high.view(shape).permute(5, 0, 2, 3, 4, 1, 6)  # n 6 B H/2 W/2 2 b
        places = x.shape[:-2]
        y = x.reshape(BLOCKS, -1, 2 * shape[-1])
        y = F.relu(torch.baddbmm(stacked(self.bias1), y, real(self.weight1)))
        y = torch.baddbmm(stacked(self.bias2), y, real(self.weight2))
        return y.view(*places, 2, shape[-1]).permute(1, 5, 2, 3, 4, 0, 6).reshape(high.shape)

    def resized(self, grid: tuple[int, int]) -> Tensor:
        """(H W C)"""
        if same(grid, self.grid):
            return self.gate
        return resize(self.gate.flatten(0, 1)[None], self.grid, grid).view(*grid, -1)

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published gate of another grid, resampled to this one; None where it is none."""
        if name != "gate" or value.ndim != 3 or value.shape[-1] != self.gate.shape[-1]:
            return None
        flat = value.flatten(0, 1)[None]
        return resize(flat, (value.shape[0], value.shape[1]), self.grid).view(self.gate.shape)

    def extra_repr(self) -> str:
        return f"grid={self.grid[0]}x{self.grid[1]}"


def real(weight: Tensor) -> Tensor:
    """Complex weights (2 n b b) as the real matrices (n 2b 2b) by which rows [real, imaginary] are multiplied."""
    a, b = weight
    return torch.cat([torch.cat([a, b], -1), torch.cat([-b, a], -1)], -2)


def stacked(bias: Tensor) -> Tensor:
    """(2 n b) -> (n 1 2b)"""
    return bias.transpose(0, 1).flatten(1)[:, None]


@dataclass(frozen=True)
class Scatter(Spec):
    """The scattering mixer, with a gate for the (height, width) `grid`."""

    grid: tuple[int, int]

    def sized(self, grid: tuple[int, int]) -> "Scatter":
        return replace(self, grid=grid)

    def build(self, dim: int, index: int) -> nn.Module:
        return Scattering(dim, self.grid)
