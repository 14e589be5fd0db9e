"""SReT's stem, https://arxiv.org/abs/2111.05297: 3x3 convolutions by 2, each with batch norm and ReLU."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..conv import ConvNorm
from ..position import Position
from ..stem import Positioned
from ..tokens import Tokens


class HalvingTokens(nn.Module):
    """image (B 3 H W) -> ConvNorms by 2 -> Tokens with positions added."""

    def __init__(self, widths: tuple[int, ...], position: nn.Module):
        super().__init__()
        self.convs = nn.ModuleList(ConvNorm(a, b, 3, 2, bias=True, act="relu") for a, b in pairwise(widths))
        self.position = position

    def forward(self, image: Tensor) -> Tokens:
        m = image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
        for conv in self.convs:
            m = conv(m)
        return self.position(Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Halving(Positioned):
    """Three 3x3 convolutions by 2 with biases, to dim / 2, dim and dim channels."""

    position: Position

    @property
    def stride(self) -> int:
        return 8

    def build(self, channels: int, dim: int) -> nn.Module:
        return HalvingTokens((channels, dim // 2, dim, dim), self.position.build(dim))
