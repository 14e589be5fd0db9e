"""PlainMamba's stem (https://arxiv.org/abs/2403.17695)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.sizes import always, missing
from ..conv import ConvNorm
from ..mixers.convolution import convolve
from ..position import Position
from ..stem import Positioned
from ..tokens import Tokens


class PlainStem(nn.Module):
    """image -> 7x7 by 2 and `count` 3x3 convolutions of 64 channels, batch norm and ReLU behind each -> 8x8 patches of
    the map, padded with zeros at right and bottom -> Tokens with positions."""

    def __init__(self, channels: int, dim: int, count: int, position: nn.Module):
        super().__init__()
        self.first = ConvNorm(channels, 64, 7, 2, act="relu")
        self.convs = nn.Sequential(*(ConvNorm(64, 64, 3, act="relu") for _ in range(count)))
        self.projection, self.position = nn.Conv2d(64, dim, 8, 8), position

    def forward(self, image: Tensor) -> Tokens:
        m = self.convs(self.first(image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)))
        if not (always(m.shape[1] % 8 == 0) and always(m.shape[2] % 8 == 0)):
            m = F.pad(m, (0, 0, 0, missing(m.shape[2], 8), 0, missing(m.shape[1], 8)))
        m = convolve(self.projection, m)
        return self.position(Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Plain(Positioned):
    """A stride of 16, with `count` convolutions between the first and the patches."""

    position: Position
    count: int = 2

    @property
    def stride(self) -> int:
        return 16

    def build(self, channels: int, dim: int) -> nn.Module:
        return PlainStem(channels, dim, self.count, self.position.build(dim))
