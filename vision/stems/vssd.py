"""VSSD's convolutions (https://arxiv.org/abs/2407.18559): its stem, and the step between its stages."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..conv import ConvNorm, LinearNorm
from ..layers import Linear
from ..mixers.convolution import convolve
from ..stem import Down, Stem
from ..tokens import Tokens


class ResidualStem(nn.Module):
    """image -> 3x3 by 2, two 3x3 with a residual around them, 3x3 by 2 and 1x1, batch norms behind each -> Tokens."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        half = dim // 2
        self.conv1 = ConvNorm(channels, half, 3, 2, act="relu")
        self.conv2 = nn.Sequential(ConvNorm(half, half, 3, act="relu"), ConvNorm(half, half, 3))
        self.conv3 = nn.Sequential(ConvNorm(half, 4 * dim, 3, 2, act="relu"), LinearNorm(4 * dim, dim))

    def forward(self, image: Tensor) -> Tokens:
        m = self.conv1(image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        m = self.conv3(m + self.conv2(m))
        return Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2]))


class BottleneckDown(nn.Module):
    """Pointwise to 4 out, depthwise 3x3 by 2, a ReLU behind each, pointwise to out and a batch norm."""

    projections = ("widen",)

    def __init__(self, dim: int, out: int):
        super().__init__()
        wide = 4 * out
        self.widen, self.act = Linear(dim, wide), nn.ReLU()
        self.conv = nn.Conv2d(wide, wide, 3, 2, 1, groups=wide)
        self.narrow = LinearNorm(wide, out, bias=True)

    def forward(self, t: Tokens) -> Tokens:
        m = self.act(self.widen(t.map()))
        return t.with_map(self.narrow(self.act(convolve(self.conv, m))))


@dataclass(frozen=True)
class VssdStem(Stem):
    """A stride of 4 in five convolutions."""

    @property
    def stride(self) -> int:
        return 4

    def build(self, channels: int, dim: int) -> nn.Module:
        return ResidualStem(channels, dim)


@dataclass(frozen=True)
class Bottleneck(Down):
    """An inverted bottleneck by 2."""

    def build(self, dim: int, out: int) -> nn.Module:
        return BottleneckDown(dim, out)
