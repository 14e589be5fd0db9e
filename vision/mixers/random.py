"""A frozen random matrix over the tokens (RandFormer, https://arxiv.org/abs/2210.13452)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..position import resize_pairs, same
from ..tokens import Probe, Tokens


class RandomMixing(nn.Module):
    """y_m = sum_n R_mn x_n with a matrix R that was drawn once (row-wise softmax of uniform numbers) and never trained.

    R belongs to one grid. On another it is read as a map over (y, x, y', x'), resized bilinearly, and rescaled so
    that its rows keep their mean sum.
    """

    needs_grid, offers, projections = True, (), ()
    matrix: Tensor

    def __init__(self, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        n = grid[0] * grid[1]
        self.register_buffer("matrix", torch.rand(n, n).softmax(-1))

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        if t.grid is None:
            raise ValueError("these tokens no longer fill a grid, and RandomMixing weighs them by their place in it")
        return self.resized(t.grid).to(t.x.dtype) @ t.x

    def resized(self, grid: tuple[int, int]) -> Tensor:
        """(H*W, H*W) for the given grid."""
        if same(grid, self.grid):
            return self.matrix
        r = resize_pairs(self.matrix.float(), self.grid, grid)
        return r * (self.matrix.sum() / self.matrix.shape[0] / r.sum() * r.shape[0])


@dataclass(frozen=True)
class Random:
    """Mixing by a frozen random matrix that was drawn for a grid of `height` x `width` tokens."""

    height: int
    width: int

    def build(self, dim: int, index: int) -> nn.Module:
        return RandomMixing((self.height, self.width))
