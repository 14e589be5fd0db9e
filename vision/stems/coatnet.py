"""The first blocks of CoAtNet's stages, which halve the map and widen it (https://arxiv.org/abs/2106.04803)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...kernels.pool import means
from ..conv import ConvNorm
from ..layers import Linear, Mlp
from ..mixers.convolution import convolve
from ..mixers.mbconv import MBConv
from ..mixers.relative import Grid, RelativeAttention
from ..norm import Norm
from ..residual import Add, add_mlp
from ..stem import Down, Stem
from ..tokens import Tokens


def halved(m: Tensor) -> Tensor:
    """The mean of each 2x2 places of a map B H W C; at odd sides of what is there."""
    n = means(m.permute(0, 3, 1, 2), 2)
    return n.permute(0, 2, 3, 1)


class MBConvStep(nn.Module):
    """add(expand(halved(m)), MBConv by 2)."""

    projections = ("expand",)

    def __init__(self, dim: int, out: int, ratio: float):
        super().__init__()
        self.expand: nn.Module = Linear(dim, out) if dim != out else nn.Identity()
        self.branch, self.add = MBConv(dim, out, 2, ratio), Add()

    def forward(self, t: Tokens) -> Tokens:
        m = t.map()
        return t.with_map(self.add(self.expand(halved(m)), self.branch(m)))


class AttentionStep(nn.Module):
    """add1(expand(halved(m)), mixer(halved(norm1(m)))), then norm2 -> ffn -> add2."""

    projections = ("expand",)

    def __init__(self, dim: int, out: int, mixer: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module]):
        super().__init__()
        self.expand: nn.Module = Linear(dim, out) if dim != out else nn.Identity()
        self.norm1, self.norm2 = norms
        self.mixer, self.ffn, self.add1, self.add2 = mixer, ffn, Add(), Add()

    def forward(self, t: Tokens) -> Tokens:
        m = t.map()
        short = t.with_map(self.expand(halved(m)))
        y = self.mixer(t.with_map(halved(self.norm1(m))))
        x = self.add1(short.x, y)
        return replace(short, x=add_mlp(self.add2, self.ffn, x, self.norm2(x)))


class ConvsThenStep(nn.Module):
    """image (B 3 H W) -> conv1 3x3 by 2 with norm and GELU -> conv2 3x3 -> the first step -> Tokens on a quarter of the
    image's sides."""

    def __init__(self, channels: int, width: int, step: nn.Module):
        super().__init__()
        self.conv1 = ConvNorm(channels, width, 3, 2, act="gelu")
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.step = step

    def forward(self, image: Tensor) -> Tokens:
        m = convolve(self.conv2, self.conv1(image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)))
        return self.step(Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MBConvDown(Down):
    """A block of MBConv that halves the map."""

    ratio: float = 4.0

    def build(self, dim: int, out: int) -> nn.Module:
        return MBConvStep(dim, out, self.ratio)


@dataclass(frozen=True)
class AttentionDown(Down):
    """A block of relative attention and MLP that halves the map; `grid` is the halved one."""

    width: int = 32
    grid: Grid = (7, 7)
    ratio: float = 4.0
    norm: Norm = Norm(eps=1e-6)

    def sized(self, grid: Grid) -> "AttentionDown":
        return replace(self, grid=grid)

    def build(self, dim: int, out: int) -> nn.Module:
        mixer = RelativeAttention(dim, out, self.width, self.grid)
        return AttentionStep(dim, out, mixer, Mlp(out, int(out * self.ratio)),
                             (self.norm.build(dim), self.norm.build(out)))  # fmt: skip


@dataclass(frozen=True)
class CoAtStem(Stem):
    """Two convolutions of `width` channels, then the first stage's MBConv block that halves their map."""

    width: int = 64
    ratio: float = 4.0

    @property
    def stride(self) -> int:
        return 4

    def build(self, channels: int, dim: int) -> nn.Module:
        return ConvsThenStep(channels, self.width, MBConvStep(self.width, dim, self.ratio))
