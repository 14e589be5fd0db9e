"""Data of many kinds as sequences of tokens, after Meta-Transformer, https://arxiv.org/abs/2307.10802.

Only its abstract's facts were at hand: one frozen encoder reads what a tokeniser for each kind of data makes. What
each tokeniser is here is a sensible reading and claims no more: patches for what lies on a grid, groups for points,
words for text, columns for tables. Where a token stands is told by sines, so that any size and length is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..vision.layers import Linear
from ..vision.position import sinusoid
from .points import farthest, gathered, nearest


class Pieces(NamedTuple):
    """A batch of data as tokens x (B N C); `real` (B N) is False for padding, None where there is none."""

    x: Tensor
    real: Tensor | None = None


class Tokeniser(Protocol):
    """The spec of one; what it builds is a module, data -> Pieces."""

    def build(self, dim: int) -> nn.Module: ...


def axes(sizes: Sequence[int], dim: int) -> Tensor:
    """(1 n*m*… C): sines of where a token stands on each of the axes, which share the channels."""
    share = [dim // len(sizes) + (i < dim % len(sizes)) for i in range(len(sizes))]
    parts = []
    for i, (n, c) in enumerate(zip(sizes, share, strict=True)):
        shape = [1] * len(sizes) + [c]
        shape[i] = n
        parts.append(sinusoid(n, c)[0].view(shape).expand(*sizes, c))
    return torch.cat(parts, -1).flatten(0, -2)[None]


class Patches(nn.Module):
    """A convolution of `kernel` and `stride` over data (B channels …) on a grid of as many axes; sides that patches do
    not cover are filled up with zeros."""

    def __init__(self, channels: int, dim: int, kernel: tuple[int, ...], stride: tuple[int, ...], what: str):
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1]
        self.conv: Any = kind(channels, dim, kernel, stride)  # type: ignore[arg-type]
        self.what = what

    def forward(self, data: Tensor) -> Pieces:
        kernel, stride = self.conv.kernel_size, self.conv.stride
        if data.ndim != len(kernel) + 2 or data.shape[1] != self.conv.in_channels or 0 in data.shape:
            raise ValueError(f"{self.what} of shape {tuple(data.shape)}: (B, {self.conv.in_channels}, "
                             f"{', '.join('n' * len(kernel))}) is wanted")  # fmt: skip
        short = [max(k - n, -(n - k) % s) for n, k, s in zip(data.shape[2:], kernel, stride, strict=True)]
        if any(short):
            data = F.pad(data, [side for n in reversed(short) for side in (0, n)])
        y = self.conv(data)
        x = y.flatten(2).mT
        return Pieces(x + axes(y.shape[2:], x.shape[-1]).to(x))


@dataclass(frozen=True)
class Image:
    """(B channels H W) in patches."""

    patch: int = 16
    channels: int = 3

    def build(self, dim: int) -> nn.Module:
        return Patches(self.channels, dim, (self.patch,) * 2, (self.patch,) * 2, "images")


@dataclass(frozen=True)
class Spectrogram:
    """(B 1 F T), frequencies and times, in patches that overlap, as in the audio spectrogram transformer
    (https://arxiv.org/abs/2104.01778)."""

    patch: int = 16
    stride: int = 10

    def build(self, dim: int) -> nn.Module:
        return Patches(1, dim, (self.patch,) * 2, (self.stride,) * 2, "spectrograms")


@dataclass(frozen=True)
class Video:
    """(B channels T H W) in tubelets of `frames` frames (https://arxiv.org/abs/2103.15691)."""

    patch: int = 16
    frames: int = 2
    channels: int = 3

    def build(self, dim: int) -> nn.Module:
        tube = (self.frames, self.patch, self.patch)
        return Patches(self.channels, dim, tube, tube, "videos")


@dataclass(frozen=True)
class Series:
    """(B channels T): a time series in stretches of `patch` steps that overlap (https://arxiv.org/abs/2211.14730), all
    channels together."""

    channels: int = 1
    patch: int = 16
    stride: int = 8

    def build(self, dim: int) -> nn.Module:
        return Patches(self.channels, dim, (self.patch,), (self.stride,), "time series")


class Words(nn.Module):
    """ids (B L) -> their embeddings; `pad` is padding."""

    def __init__(self, vocabulary: int, dim: int, pad: int):
        super().__init__()
        self.words, self.pad = nn.Embedding(vocabulary, dim), pad

    def forward(self, ids: Tensor) -> Pieces:
        if ids.ndim != 2 or ids.is_floating_point():
            raise ValueError(f"texts of shape {tuple(ids.shape)} and type {ids.dtype}: ids (B, L) are wanted")
        if bool((wrong := (ids >= self.words.num_embeddings) | (ids < 0)).any()):
            raise ValueError(f"a word of id {int(ids[wrong][0])}: the vocabulary has {self.words.num_embeddings}")
        x, real = self.words(ids), ids != self.pad
        return Pieces(x + axes([ids.shape[1]], x.shape[-1]).to(x), None if bool(real.all()) else real)


@dataclass(frozen=True)
class Text:
    """Ids (B L) of a tokeniser of transformers, filled up with `pad`."""

    vocabulary: int
    pad: int = 0

    def build(self, dim: int) -> nn.Module:
        return Words(self.vocabulary, dim, self.pad)


class Groups(nn.Module):
    """Points (B M 3 + more) -> a token for each of `n` centres that lie far apart: the greatest of what an MLP says to
    its `k` nearest points, seen from it, and of where it lies."""

    def __init__(self, dim: int, n: int, k: int, more: int):
        super().__init__()
        self.n, self.k = n, k
        self.near = nn.Sequential(Linear(3 + more, dim), nn.GELU(), Linear(dim, dim))
        self.where = nn.Sequential(Linear(3, dim), nn.GELU(), Linear(dim, dim))

    def forward(self, points: Tensor) -> Pieces:
        wanted = self.near[0].in_features
        if points.ndim != 3 or points.shape[-1] != wanted:
            raise ValueError(f"point clouds of shape {tuple(points.shape)}: (B, points, {wanted}) is wanted")
        place = points[..., :3]
        n, k = min(self.n, points.shape[1]), min(self.k, points.shape[1])
        centres = gathered(place, farthest(place.float(), n)[..., None])[:, :, 0]
        near = gathered(points, nearest(place.float(), centres.float(), k))
        near = torch.cat([near[..., :3] - centres[:, :, None], near[..., 3:]], -1)
        return Pieces(self.near(near).amax(2) + self.where(centres))


@dataclass(frozen=True)
class Points:
    """(B M 3 + more): places, and `more` of each point (colours, normals)."""

    groups: int = 64
    k: int = 32
    more: int = 0

    def build(self, dim: int) -> nn.Module:
        return Groups(dim, self.groups, self.k, self.more)


class Columns(nn.Module):
    """(numbers (B n), categories (B m)) -> a token a column: b_i + w_i x for a number, an embedding for a category. A
    number that is NaN and a category below 0 are missing, and padding."""

    def __init__(self, numbers: int, categories: Sequence[int], dim: int):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.randn(numbers, dim) * 0.02) for _ in range(2))
        self.categories = nn.ModuleList(nn.Embedding(n, dim) for n in categories)

    def forward(self, data: tuple[Tensor, Tensor]) -> Pieces:
        numbers, categories = data
        if numbers.shape[1:] != self.weight.shape[:1] or categories.shape[1:] != (len(self.categories),):
            raise ValueError(f"tables of {numbers.shape[-1]} numbers and {categories.shape[-1]} categories: "
                             f"{len(self.weight)} and {len(self.categories)} are wanted")  # fmt: skip
        for i, (column, c) in enumerate(zip(self.categories, categories.unbind(1), strict=True)):
            if bool((c >= (n := column.num_embeddings)).any()):  # type: ignore[operator]
                raise ValueError(f"category {int(c.max())} in column {i} of categories, which has {n} values")
        there = torch.cat([~numbers.isnan(), categories >= 0], 1)
        x = numbers.nan_to_num()[..., None].to(self.weight.dtype) * self.weight + self.bias
        named = [column(c.clamp(min=0)) for column, c in zip(self.categories, categories.unbind(1), strict=True)]
        x = torch.cat([x, torch.stack(named, 1)], 1) if named else x
        return Pieces(x, None if bool(there.all()) else there)


@dataclass(frozen=True)
class Table:
    """Rows of a table, a column a token (https://arxiv.org/abs/2106.11959): so many numbers, and categories of so many
    values each."""

    numbers: int = 0
    categories: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.numbers + len(self.categories) < 1:
            raise ValueError("a table has one column at least")

    def build(self, dim: int) -> nn.Module:
        return Columns(self.numbers, self.categories, dim)
