"""Stems and steps between stages of convolutions with batch norms."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..conv import ConvNorm, InvertedBottleneck
from ..stem import Down, Stem
from ..tokens import Tokens


class TwoConvs(nn.Module):
    """image (B 3 H W) -> two 3x3 convolutions by 2, a batch norm behind each -> Tokens on a quarter of its sides."""

    def __init__(self, channels: int, dim: int, bias: bool, acts: tuple[str | None, str | None]):
        super().__init__()
        self.conv1 = ConvNorm(channels, dim // 2, 3, 2, bias=bias, act=acts[0])
        self.conv2 = ConvNorm(dim // 2, dim, 3, 2, bias=bias, act=acts[1])

    def forward(self, image: Tensor) -> Tokens:
        m = self.conv1(image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        m = self.conv2(m)
        return Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2]))


class MapDown(nn.Module):
    """A step between stages by a module on maps (B H W C)."""

    def __init__(self, convolution: nn.Module):
        super().__init__()
        self.convolution = convolution

    def forward(self, t: Tokens) -> Tokens:
        return t.with_map(self.convolution(t.map()))


@dataclass(frozen=True)
class TwoConvStem(Stem):
    """Two 3x3 convolutions by 2 with batch norms, `act` behind the first, `last` behind the second."""

    act: str = "gelu"
    last: str | None = None
    bias: bool = False  # of the convolutions

    @property
    def stride(self) -> int:
        return 4

    def build(self, channels: int, dim: int) -> nn.Module:
        return TwoConvs(channels, dim, self.bias, (self.act, self.last))


@dataclass(frozen=True)
class ConvNormDown(Down):
    """A 3x3 convolution by 2 with bias, then a batch norm."""

    def build(self, dim: int, out: int) -> nn.Module:
        return MapDown(ConvNorm(dim, out, 3, 2, bias=True))


@dataclass(frozen=True)
class InvertedDown(Down):
    """1x1, depthwise 3x3 by 2 and 1x1 convolution, all `out` wide, GELU between them."""

    def build(self, dim: int, out: int) -> nn.Module:
        return MapDown(InvertedBottleneck(dim, out, out, 2))
