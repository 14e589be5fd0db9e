"""The Inception network of the reference FID (2015-12-05), https://arxiv.org/abs/1512.00567, by its port's names.

The pooled features (2048) and the 1,008 logits are those of the TensorFlow graph that FID and IS are defined by: its
resizing has no half-pixel offset, its average pooling counts no padding, and the last block pools by the maximum.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inception_weights import SIDE


@dataclass(frozen=True)
class Conv:
    """A convolution (width, kernel, stride; padded to keep the size unless it strides), its BatchNorm and ReLU."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1

    def build(self, dim: int, *, valid: bool = False) -> "ConvBn":
        padding = (0, 0) if valid or self.stride > 1 else (self.kernel[0] // 2, self.kernel[1] // 2)
        return ConvBn(dim, self.width, self.kernel, self.stride, padding)


class ConvBn(nn.Module):
    """relu(norm(conv(x)))."""

    def __init__(self, dim: int, width: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]):
        super().__init__()
        self.conv = nn.Conv2d(dim, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


Pool = Literal["average", "maximum", "stride"]
Path = tuple[Conv | tuple[Conv, Conv], ...]  # one after the other; a pair, side by side, ends a path


class Mixed(nn.Module):
    """The paths side by side, x -> concatenation of what each gives; then x pooled 3x3, through a convolution where
    `after` is one ("stride": by the maximum, at half the size)."""

    def __init__(self, dim: int, paths: tuple[Path, ...], pool: Pool, after: Conv | None = None):
        super().__init__()
        self.pool, self.after, self.width = pool, None if after is None else after.name, 0
        self.paths: list[list[tuple[str, ...]]] = []
        for path in paths:
            width, names = dim, list[tuple[str, ...]]()
            for step in path:
                convs = (step,) if isinstance(step, Conv) else step
                for conv in convs:
                    self.add_module(conv.name, conv.build(width))
                width, names = sum(conv.width for conv in convs), [*names, tuple(conv.name for conv in convs)]
            self.width += width
            self.paths.append(names)
        if after is not None:
            self.add_module(after.name, after.build(dim))
        self.width += dim if after is None else after.width

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            found.append(y)
        found.append(self.pooled(x))
        return torch.cat(found, 1)

    def pooled(self, x: Tensor) -> Tensor:
        if self.pool == "stride":
            return F.max_pool2d(x, 3, 2)
        y = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if self.pool == "average" else F.max_pool2d(x, 3, 1, 1)
        assert self.after is not None
        out: Tensor = self.get_submodule(self.after)(y)
        return out


def five(dim: int, pool: int) -> Mixed:
    """35 x 35: 1x1, 5x5 and twice 3x3."""
    return Mixed(
        dim,
        (
            (Conv("branch1x1", 64),),
            (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
            (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        ),
        "average",
        Conv("branch_pool", pool),
    )


def seven(dim: int, w: int) -> Mixed:
    """17 x 17: 7x7 as 1x7 and 7x1, once and twice."""
    row, column = (1, 7), (7, 1)
    return Mixed(
        dim,
        (
            (Conv("branch1x1", 192),),
            (Conv("branch7x7_1", w), Conv("branch7x7_2", w, row), Conv("branch7x7_3", 192, column)),
            (
                Conv("branch7x7dbl_1", w), Conv("branch7x7dbl_2", w, column), Conv("branch7x7dbl_3", w, row),
                Conv("branch7x7dbl_4", w, column), Conv("branch7x7dbl_5", 192, row),
            ),
        ),
        "average",
        Conv("branch_pool", 192),
    )  # fmt: skip


def wide(dim: int, pool: Pool) -> Mixed:
    """8 x 8: 3x3 as 1x3 beside 3x1."""
    return Mixed(
        dim,
        (
            (Conv("branch1x1", 320),),
            (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))),
            (
                Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, (3, 3)),
                (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
            ),
        ),
        pool,
        Conv("branch_pool", 192),
    )  # fmt: skip


def to_17(dim: int) -> Mixed:
    return Mixed(
        dim,
        (
            (Conv("branch3x3", 384, (3, 3), 2),),
            (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)),
        ),
        "stride",
    )


def to_8(dim: int) -> Mixed:
    return Mixed(
        dim,
        (
            (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
            (
                Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, (1, 7)), Conv("branch7x7x3_3", 192, (7, 1)),
                Conv("branch7x7x3_4", 192, (3, 3), 2),
            ),
        ),
        "stride",
    )  # fmt: skip


class Inception(nn.Module):
    """image (B 3 299 299) in -1..1 (see `prepare`) -> (pooled features (B 2048), logits (B 1008) without their bias,
    as the reference takes them for the inception score)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv("", 32, (3, 3), 2).build(3)
        self.Conv2d_2a_3x3 = Conv("", 32, (3, 3)).build(32, valid=True)
        self.Conv2d_2b_3x3 = Conv("", 64, (3, 3)).build(32)
        self.Conv2d_3b_1x1 = Conv("", 80).build(64)
        self.Conv2d_4a_3x3 = Conv("", 192, (3, 3)).build(80, valid=True)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = five(192, 32), five(256, 64), five(288, 64)
        self.Mixed_6a, self.Mixed_6b = to_17(288), seven(768, 128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = seven(768, 160), seven(768, 160), seven(768, 192)
        self.Mixed_7a = to_8(768)
        self.Mixed_7b, self.Mixed_7c = wide(1280, "average"), wide(2048, "maximum")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(image)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        return features, self.fc(features) - self.fc.bias


def prepare(image: Tensor) -> Tensor:
    """uint8 (B 3 H W) -> (B 3 299 299) in -1..1: stretched as TensorFlow 1 does, output i from input i · H / 299."""
    if image.dtype != torch.uint8 or image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"images are {image.dtype} {tuple(image.shape)}: uint8 (B, 3, H, W) is needed")
    x = stretch(stretch(image.float(), 2), 3)
    return (x - 128) / 128


def stretch(x: Tensor, axis: int) -> Tensor:
    """Linear interpolation along one axis to SIDE points, the first on the first."""
    length = x.shape[axis]
    place = torch.arange(SIDE, device=x.device, dtype=torch.float32) * (length / SIDE)
    low = place.floor().long()
    high = (low + 1).clamp(max=length - 1)
    shape = [1] * x.ndim
    shape[axis] = SIDE
    part = (place - low).view(shape)
    below = x.index_select(axis, low)
    return below + (x.index_select(axis, high) - below) * part
