"""What turns an image into the first tokens, and what halves a map between stages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.sizes import always, missing
from .affine import into_convolution, into_readers
from .layers import Linear, is_plain, unhooked
from .mixers.convolution import convolve
from .norm import Norm
from .position import Position
from .spec import Spec
from .tokens import Tokens, in_front

P = TypeVar("P", bound="Positioned")


class Convolution(nn.Module):
    """norm -> convolution -> norm, either norm optional, on a map. `pad`: zeros at right and bottom up to a multiple of
    the stride; otherwise the convolution's own padding and rounding."""

    projections = ("conv",)

    def __init__(self, conv: nn.Conv2d, before: nn.Module | None, after: nn.Module | None, pad: bool = False):
        super().__init__()
        self.before = nn.Identity() if before is None else before
        self.conv, self.pad = conv, pad
        self.kernel, self.border, self.stride = conv.kernel_size[0], int(conv.padding[0]), conv.stride
        self.norm = nn.Identity() if after is None else after

    def forward(self, m: Tensor) -> Tensor:  # B H W C
        m = self.before(m)
        down, right = self.stride
        if self.pad and not (always(m.shape[1] % down == 0) and always(m.shape[2] % right == 0)):
            m = F.pad(m, (0, 0, 0, missing(m.shape[2], right), 0, missing(m.shape[1], down)))
        h, w = m.shape[1:3]
        if h + 2 * self.border < self.kernel or w + 2 * self.border < self.kernel:
            raise ValueError(
                f"a {h}x{w} map is smaller than the {self.kernel}x{self.kernel} kernel: use a larger image"
            )
        return self.norm(convolve(self.conv, m))  # type: ignore[no-any-return]

    def fold_(self) -> None:
        if isinstance(self.conv, nn.Conv2d) and unhooked(self.conv):
            self.norm = into_convolution(self.norm, self.conv)


class MapStem(nn.Module):
    """image (B 3 H W) -> Tokens on the grid that a convolution leaves."""

    def __init__(self, convolution: Convolution, position: nn.Module | None = None):
        super().__init__()
        self.convolution = convolution
        self.position = nn.Identity() if position is None else position

    def forward(self, image: Tensor) -> Tokens:
        m = self.convolution(image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        return self.position(Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])))  # type: ignore[no-any-return]


class ConvTokens(nn.Module):
    """image -> n times (convolution, ReLU, 3x3 max pooling by 2) -> Tokens: CCT's tokenizer,
    https://arxiv.org/abs/2104.05704."""

    def __init__(self, channels: int, dim: int, kernel: int, layers: int, position: nn.Module):
        super().__init__()
        stride, padding = max(1, kernel // 2 - 1), max(1, kernel // 2)
        widths = [channels, *[64] * (layers - 1), dim]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, kernel, stride, padding, bias=False) for a, b in pairwise(widths))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)  # type: ignore[arg-type]
        self.position = position

    def forward(self, image: Tensor) -> Tokens:
        m = image.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            m = F.max_pool2d(F.relu(conv(m)), 3, 2, 1)
        m = m.permute(0, 2, 3, 1)
        return self.position(Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])))  # type: ignore[no-any-return]


class Interleave(nn.Module):
    """Four neighbours become one token of another width (Swin's patch merging): norm(4C), then a linear layer. The
    lower left comes before the upper right, as published; odd sides get a row or column of zeros. Special tokens, in
    front of the patches, are four neighbours each."""

    projections: tuple[str, ...] = ("reduction",)
    takes_special = True
    reduction: nn.Module

    def __init__(self, dim: int, out: int, norm: Norm):
        super().__init__()
        self.norm, self.reduction = norm.build(4 * dim), Linear(4 * dim, out, bias=False)

    def forward(self, t: Tokens) -> Tokens:
        m = t.map()
        b, h, w, c = m.shape
        if not (always(h % 2 == 0) and always(w % 2 == 0)):
            m = F.pad(m, (0, 0, 0, missing(w, 2), 0, missing(h, 2)))
        h, w = m.shape[1] // 2, m.shape[2] // 2
        x = m.view(b, h, 2, w, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(b, h * w, 4 * c)  # columns outside, rows inside
        if t.special:
            x = torch.cat([in_front(t).repeat(1, 1, 4), x], 1)
        return replace(t, x=self.reduction(self.norm(x)), grid=(h, w))

    def fold_(self) -> None:
        self.norm = into_readers(self.norm, [self.reduction] if is_plain(self.reduction) else [])


class DownConv(nn.Module):
    """A strided convolution between two stages."""

    def __init__(self, convolution: Convolution):
        super().__init__()
        self.convolution = convolution

    def forward(self, t: Tokens) -> Tokens:
        return t.with_map(self.convolution(t.map()))


# ------------------------------------------------------------------------------------------------------------- specs


class Stem(Spec):
    """Makes the first tokens: `build` gives a module image (B channels H W) -> Tokens of `dim` channels.

    `stride` is how many pixels a token is apart from the next; `special` are the positions of class tokens and their
    kin in the sequence (negative: from its end). A stem whose positions belong to a grid gives others in `sized`.
    """

    @property
    def stride(self) -> int:
        raise AssertionError(f"{type(self).__name__} does not state its stride")

    @property
    def special(self) -> tuple[int, ...]:
        return ()

    def places(self, length: int) -> tuple[int, ...]:
        """`special` in a sequence of `length` tokens."""
        return tuple(p % length for p in self.special)

    def build(self, channels: int, dim: int) -> nn.Module:
        raise AssertionError(f"{type(self).__name__} does not say what it builds")


class Down(Spec):
    """The step to the next stage: `build` gives a module Tokens of `dim` channels -> Tokens of `out`, `stride` times
    fewer on each side. `special` are the special tokens of what comes out, None if they are as before."""

    @property
    def stride(self) -> int:
        return 2

    @property
    def special(self) -> tuple[int, ...] | None:
        return None

    def build(self, dim: int, out: int) -> nn.Module:
        raise AssertionError(f"{type(self).__name__} does not say what it builds")


class Positioned(Stem):
    """A stem with a `position`, which says what special tokens there are, or with none."""

    position: Position | None

    @property
    def special(self) -> tuple[int, ...]:
        return () if self.position is None else self.position.places

    def places(self, length: int) -> tuple[int, ...]:
        if self.position is None or self.position.where != "middle":
            return super().places(length)
        first = (length - self.position.special) // 2
        return tuple(range(first, first + self.position.special))

    def sized(self: P, grid: tuple[int, int]) -> P:
        if self.position is None:
            return self
        return replace(self, position=replace(self.position, grid=grid))  # type: ignore[type-var]


@dataclass(frozen=True)
class Patchify(Positioned):
    """patch x patch patches by one convolution, with a norm behind it (or none), special tokens and positions.
    `pad`: an image that does not divide is padded with zeros at right and bottom; else its remainder is left out."""

    patch: int = 4
    norm: Norm | None = Norm()
    pad: bool = True
    position: Position | None = None

    @property
    def stride(self) -> int:
        return self.patch

    def build(self, channels: int, dim: int) -> nn.Module:
        conv = nn.Conv2d(channels, dim, self.patch, self.patch)
        norm = None if self.norm is None else self.norm.build(dim)
        position = None if self.position is None else self.position.build(dim)
        return MapStem(Convolution(conv, None, norm, self.pad), position)


@dataclass(frozen=True)
class ConvStem(Positioned):
    """One strided convolution with overlap: kernel x kernel by `stride`, padded by `padding`, then a norm or none."""

    kernel: int = 7
    stride: int = 4
    padding: int = 2
    norm: Norm | None = None
    position: Position | None = None

    def build(self, channels: int, dim: int) -> nn.Module:
        conv = nn.Conv2d(channels, dim, self.kernel, self.stride, self.padding)
        position = None if self.position is None else self.position.build(dim)
        return MapStem(Convolution(conv, None, None if self.norm is None else self.norm.build(dim)), position)


@dataclass(frozen=True)
class ConvTokenizer(Positioned):
    """CCT's tokenizer: `layers` times kernel x kernel convolution, ReLU and pooling."""

    position: Position
    kernel: int = 3
    layers: int = 1

    @property
    def stride(self) -> int:
        return int((2 * max(1, self.kernel // 2 - 1)) ** self.layers)

    def build(self, channels: int, dim: int) -> nn.Module:
        return ConvTokens(channels, dim, self.kernel, self.layers, self.position.build(dim))


@dataclass(frozen=True)
class Merge2x2(Down):
    """Swin's patch merging."""

    norm: Norm = Norm()

    def build(self, dim: int, out: int) -> nn.Module:
        return Interleave(dim, out, self.norm)


@dataclass(frozen=True)
class Strided(Down):
    """norm (or none), then a kernel x kernel convolution by `stride`, then another norm (or none)."""

    kernel: int = 3
    stride: int = 2
    padding: int = 1
    norm: Norm | None = None
    after: Norm | None = None
    depthwise: bool = False  # each channel (or group of them) becomes out / dim by itself

    def build(self, dim: int, out: int) -> nn.Module:
        groups = math.gcd(dim, out) if self.depthwise else 1
        conv = nn.Conv2d(dim, out, self.kernel, self.stride, self.padding, groups=groups)
        before, after = (None if n is None else n.build(d) for n, d in ((self.norm, dim), (self.after, out)))
        return DownConv(Convolution(conv, before, after))


__all__: Sequence[str] = ["ConvStem", "ConvTokenizer", "Down", "Merge2x2", "Patchify", "Stem", "Strided"]
