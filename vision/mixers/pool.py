"""Average pooling as a token mixer (PoolFormer, https://arxiv.org/abs/2111.11418)."""

from dataclasses import dataclass

from torch import Tensor, nn

from ...kernels.pool import pool_minus_identity
from ..tokens import Probe, Tokens


class Pooling(nn.Module):
    """The mean over the size x size neighbours that exist, minus the token itself."""

    needs_grid, offers, projections = True, (), ()

    def __init__(self, size: int):
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"pooling size {size}: it must be odd, so that a token has a middle")
        self.size = size

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        return pool_minus_identity(t.map(), self.size).flatten(1, 2)


@dataclass(frozen=True)
class Pool:
    """Mean over a size x size neighbourhood, minus identity."""

    size: int = 3

    def build(self, dim: int, index: int) -> nn.Module:
        return Pooling(self.size)
