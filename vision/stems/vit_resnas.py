"""Patch embedding and spatial reduction of ViT-ResNAS, https://arxiv.org/abs/2109.00642."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.pool import means
from ..conv import ConvNorm
from ..layers import Linear
from ..mixers.convolution import convolve
from ..norm import Norm
from ..position import Position
from ..stem import Convolution, Down, Positioned
from ..tokens import Tokens


class ResidualConvTokens(nn.Module):
    """image -> y = conv1(image) at half its size -> conv3(conv2(y)) + y -> 7x7 patches of that -> Tokens."""

    def __init__(self, channels: int, dim: int, middle: int, position: nn.Module):
        super().__init__()
        self.conv1 = ConvNorm(channels, middle, 3, 2, act="relu")
        self.conv2, self.conv3 = (ConvNorm(middle, middle, 3, act="relu") for _ in range(2))
        self.convolution = Convolution(nn.Conv2d(middle, dim, 7, 7), None, None, pad=True)
        self.position = position

    def forward(self, image: Tensor) -> Tokens:
        m = self.conv1(image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        m = self.convolution(self.conv3(self.conv2(m)) + m)
        return self.position(Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])))  # type: ignore[no-any-return]


class ResidualReduce(nn.Module):
    """Tokens on an H x W grid -> on one of half its sides, C -> out channels; special tokens, in front, travel along.

    With y = norm(x), patches become conv3x3 by 2 of y + a position embedding of their own, special tokens a linear
    layer of y; to both is added x itself, patches averaged two by two, with zeros for the channels it lacks. At an odd
    side the last patches are averaged over those that are there.
    """

    projections = ("linear",)

    def __init__(self, dim: int, out: int, position: Position, norm: Norm):
        super().__init__()
        if out < dim:
            raise ValueError(f"a residual reduction keeps or adds channels; got {dim} to {out}")
        self.norm, self.linear = norm.build(dim), Linear(dim, out)
        self.conv = nn.Conv2d(dim, out, 3, 2, 1)
        self.position, self.wider = position.build(out), out - dim

    def forward(self, t: Tokens) -> Tokens:
        k = len(t.special)
        y = replace(t, x=self.norm(t.x))
        m = convolve(self.conv, y.map())
        fresh = self.position(Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])))
        pooled = means(t.map().permute(0, 3, 1, 2), 2)
        x = pooled.permute(0, 2, 3, 1).flatten(1, 2)
        new = fresh.x
        if k:
            first = list(t.special)
            new = torch.cat([self.linear(y.x[:, first]), new], 1)
            x = torch.cat([t.x[:, first], x], 1)
        return replace(t, x=new + F.pad(x, (0, self.wider)), grid=fresh.grid, special=tuple(range(k)))


@dataclass(frozen=True)
class ConvPatches(Positioned):
    """Patches of 14 pixels behind three 3x3 convolutions of `middle` channels, a residual around the last two."""

    position: Position
    middle: int = 24

    @property
    def stride(self) -> int:
        return 14

    def build(self, channels: int, dim: int) -> nn.Module:
        return ResidualConvTokens(channels, dim, self.middle, self.position.build(dim))


@dataclass(frozen=True)
class ResidualReduction(Down):
    """Half the sides by convolution and average together; `position` is that of the grid behind it."""

    position: Position
    norm: Norm = Norm(eps=1e-6)

    def sized(self, grid: tuple[int, int]) -> "ResidualReduction":
        return replace(self, position=replace(self.position, grid=grid))

    def build(self, dim: int, out: int) -> nn.Module:
        return ResidualReduce(dim, out, self.position, self.norm)


__all__ = ["ConvPatches", "ResidualReduction"]
