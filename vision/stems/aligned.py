"""Patch convolutions that keep the pixels of odd sizes aligned, as kMaX-DeepLab's ConvNeXt has them
(https://arxiv.org/abs/2207.04044): 32 k + 1 pixels become 8 k + 1, 4 k + 1 and so on."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..mixers.convolution import convolve
from ..norm import Norm
from ..stem import Convolution, Down, DownConv, MapStem, Stem


class Bordered(Convolution):
    """zeros around the map -> norm -> convolution -> norm; `sides` are the zeros at left, right, top and bottom, of
    which the first norm makes its bias (as the record has it)."""

    def __init__(self, conv: nn.Conv2d, sides: tuple[int, int, int, int], before: nn.Module | None,
                 after: nn.Module | None):  # fmt: skip
        super().__init__(conv, before, after)
        self.sides = sides

    def forward(self, m: Tensor) -> Tensor:  # B H W C
        return self.norm(convolve(self.conv, self.before(F.pad(m, (0, 0, *self.sides)))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class AlignedPatchify(Stem):
    """4x4 patches with one pixel more of zeros at left and top, two at right and bottom, and a norm behind."""

    norm: Norm = Norm()

    @property
    def stride(self) -> int:
        return 4

    def build(self, channels: int, dim: int) -> nn.Module:
        return MapStem(Bordered(nn.Conv2d(channels, dim, 4, 4), (1, 2, 1, 2), None, self.norm.build(dim)))


@dataclass(frozen=True)
class AlignedDown(Down):
    """One pixel of zeros at right and bottom, a norm, and a 2x2 convolution by 2."""

    norm: Norm = Norm()

    def build(self, dim: int, out: int) -> nn.Module:
        return DownConv(Bordered(nn.Conv2d(dim, out, 2, 2), (0, 1, 0, 1), self.norm.build(dim), None))
