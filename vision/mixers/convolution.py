"""Depthwise, separable and dense convolutions as token mixers, on channels-last maps without a copy."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..layers import Linear, StarReLU
from ..tokens import Probe, Tokens


def convolve(conv: nn.Module, m: Tensor) -> Tensor:
    """conv on a map B H W C -> B H' W' C'; both are NCHW tensors in channels_last memory to it."""
    return conv(m.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class DepthwiseConv(nn.Module):
    """A size x size convolution of each channel by itself."""

    needs_grid, offers, projections = True, (), ()

    def __init__(self, dim: int, size: int, bias: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim, bias=bias)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        return convolve(self.conv, t.map()).flatten(1, 2)


class SeparableConv(nn.Module):
    """fc2(depthwise(StarReLU(fc1(x)))), MobileNetV2's inverted convolution as ConvFormer has it
    (https://arxiv.org/abs/2210.13452); no biases."""

    needs_grid, offers, projections = True, (), ("fc1", "fc2")

    def __init__(self, dim: int, size: int, ratio: float):
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1, self.act, self.fc2 = Linear(dim, hidden, bias=False), StarReLU(), Linear(hidden, dim, bias=False)
        self.conv = nn.Conv2d(hidden, hidden, size, padding=size // 2, groups=hidden, bias=False)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m = convolve(self.conv, self.act(self.fc1(t.map())))
        return self.fc2(m.flatten(1, 2))  # type: ignore[no-any-return]


class DenseConv(nn.Module):
    """A size x size convolution of all channels."""

    needs_grid, offers, projections = True, (), ()

    def __init__(self, dim: int, size: int, bias: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, size, padding=size // 2, bias=bias)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        return convolve(self.conv, t.map()).flatten(1, 2)


@dataclass(frozen=True)
class Dense:
    """A size x size convolution of all channels."""

    size: int = 3
    bias: bool = True

    def build(self, dim: int, index: int) -> nn.Module:
        return DenseConv(dim, self.size, self.bias)


@dataclass(frozen=True)
class Depthwise:
    """A depthwise size x size convolution."""

    size: int = 7
    bias: bool = True

    def build(self, dim: int, index: int) -> nn.Module:
        return DepthwiseConv(dim, self.size, self.bias)


@dataclass(frozen=True)
class Separable:
    """Pointwise to ratio * dim, StarReLU, depthwise size x size, pointwise back."""

    size: int = 7
    ratio: float = 2.0

    def build(self, dim: int, index: int) -> nn.Module:
        return SeparableConv(dim, self.size, self.ratio)
