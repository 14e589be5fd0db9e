"""The first half of Segment Anything's neck, https://arxiv.org/abs/2304.02643: fewer channels, then a norm."""

from dataclasses import dataclass

from torch import nn

from ..norm import Norm
from ..stem import Convolution, Down, DownConv


@dataclass(frozen=True)
class Narrow(Down):
    """A 1x1 convolution without bias and a norm; the map keeps its size."""

    norm: Norm = Norm(eps=1e-6)

    @property
    def stride(self) -> int:
        return 1

    def build(self, dim: int, out: int) -> nn.Module:
        return DownConv(Convolution(nn.Conv2d(dim, out, 1, bias=False), None, self.norm.build(out)))
