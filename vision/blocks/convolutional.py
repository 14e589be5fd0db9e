"""Blocks that hold convolutions with batch norms, as TinyViT and EfficientFormer have them: no norm before a branch, a
convolution on the stream itself, an activation behind the sum."""

from dataclasses import dataclass, replace

from torch import nn

from ..block import BlockSpec, Seams
from ..conv import ConvNorm, InvertedBottleneck
from ..layers import ACTIVATIONS, Mlp
from ..norm import Norm
from ..residual import Add, join
from ..tokens import Tokens


class ResidualBlock(Seams):
    """act(add(x, mixer(x)))."""

    def __init__(self, mixer: nn.Module, add: Add, act: str | None):
        super().__init__()
        self.mixer, self.add = mixer, add
        self.act = nn.Identity() if act is None else ACTIVATIONS[act]()

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, t.x)
        t = replace(t, x=self.act(self.add(t.x, y)))
        return t if self.after_mixer is None else self.after_mixer(t, probe)


class ConvBlock(Seams):
    """mixer -> add1 -> [after_mixer] -> ffn on the map -> [on_ffn] -> add2; what norms there are stand inside the
    branches."""

    seams, needs_grid = (*Seams.seams, "on_ffn"), True

    def __init__(self, mixer: nn.Module, ffn: nn.Module, adds: tuple[Add, Add]):
        super().__init__()
        self.mixer, self.ffn = mixer, ffn
        self.add1, self.add2 = adds

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, t.x)
        t = replace(t, x=self.add1(t.x, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        y = self.ffn(t.map()).flatten(1, 2)
        return replace(t, x=self.add2(t.x, y if self.on_ffn is None else self.on_ffn(t, y)))


class LocalBlock(Seams):
    """mixer -> add1 -> [after_mixer] -> 3x3 depthwise convolution, which replaces the stream -> norm2 -> ffn -> add2.
    The norm before the mixer is the mixer's own."""

    seams, needs_grid = (*Seams.seams, "around_ffn"), True

    def __init__(self, mixer: nn.Module, conv: nn.Module, norm: nn.Module, ffn: nn.Module, adds: tuple[Add, Add]):
        super().__init__()
        self.mixer, self.conv, self.norm2, self.ffn = mixer, conv, norm, ffn
        self.add1, self.add2 = adds

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, t.x)
        t = replace(t, x=self.add1(t.x, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        t = t.with_map(self.conv(t.map()))
        return self.feed(t, t.x, self.norm2(t.x), self.add2, self.ffn)


@dataclass(frozen=True)
class Residual(BlockSpec):
    """One residual around the mixer and no MLP; `act` behind the sum."""

    act: str | None = None

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        return ResidualBlock(mixer, join(dim, scale, False, drop_path), self.act)


@dataclass(frozen=True)
class Convolutional(BlockSpec):
    """Mixer and an MLP of 1x1 convolutions with batch norms, `middle`: a depthwise 3x3 one between them."""

    middle: bool = False

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        ffn = InvertedBottleneck(dim, int(dim * ratio), dim, 1 if self.middle else None, bias=True)
        return ConvBlock(mixer, ffn, (join(dim, scale, False, drop_path), join(dim, scale, False, drop_path)))


@dataclass(frozen=True)
class LocalConv(BlockSpec):
    """TinyViT's block."""

    norm: Norm = Norm()

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        adds = join(dim, scale, False, drop_path), join(dim, scale, False, drop_path)
        conv = ConvNorm(dim, dim, 3, groups=dim)
        return LocalBlock(mixer, conv, self.norm.build(dim), Mlp(dim, int(dim * ratio)), adds)
