"""ResFormer's first tokens: patches, a class token and a global position that any grid has,
https://arxiv.org/abs/2212.00776."""

from dataclasses import dataclass, replace
from math import pi
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels.sizes import table as of_sizes
from ..mixers.convolution import convolve
from ..stem import Convolution, MapStem, Stem
from ..tokens import Tokens


class PositionConv(nn.Conv2d):
    """The depthwise 3x3 convolution of the sine-cosine code."""

    no_weight_decay = True

    def __init__(self, dim: int):
        super().__init__(dim, dim, 3, padding=1, groups=dim)


class ConvolvedSines(nn.Module):
    """Puts a class token in front and adds a convolution of the sine-cosine code of each patch's row and column."""

    def __init__(self, dim: int):
        super().__init__()
        self.tokens = nn.ParameterList([nn.init.normal_(torch.empty(1, 1, dim), std=0.02)])
        self.conv = PositionConv(dim)

    def forward(self, t: Tokens) -> Tokens:
        assert t.grid is not None
        token = self.tokens[0].expand(t.x.shape[0], -1, -1).to(t.x.dtype)
        return replace(t, x=torch.cat([token, t.x + self.term(t.grid).to(t.x.dtype)], 1), special=(0,))

    def term(self, grid: tuple[int, int]) -> Tensor:
        """(1 H*W C): what is added to the patches of `grid`."""
        code = of_sizes(sines, *grid, self.conv.in_channels).to(self.conv.weight)
        return convolve(self.conv, code[None]).flatten(1, 2)


def sines(height: int, width: int, dim: int, xp: Any = np) -> Any:
    """(H W C) float32: in its first half the code of the row, in its second that of the column. The code of place
    p = 1..n is sin and cos by turns of 2 pi p / (n + 1e-6) / 10000^(2 floor(k/2) / D), k = 0..D-1, D = C/2."""
    half = dim // 2
    k = np.arange(half)
    frequency, even = xp.asarray(10000.0 ** (2 * (k // 2) / half)), xp.asarray(k % 2 == 0)

    def code(n: int) -> Any:  # n D
        angle = 2 * pi * xp.arange(1, n + 1)[:, None] / (n + 1e-6) / frequency
        return xp.where(even, xp.sin(angle), xp.cos(angle))

    shape = height, width, half
    both = xp.broadcast_to(code(height)[:, None], shape), xp.broadcast_to(code(width)[None], shape)
    return xp.asarray(xp.concatenate(both, -1), dtype=xp.float32)


@dataclass(frozen=True)
class SinePatchify(Stem):
    """patch x patch patches by one convolution, a class token, and positions that no grid is bound to."""

    patch: int = 16

    @property
    def stride(self) -> int:
        return self.patch

    @property
    def special(self) -> tuple[int, ...]:
        return (0,)

    def build(self, channels: int, dim: int) -> nn.Module:
        if dim % 4:
            raise ValueError(f"dim {dim}: sine and cosine of row and column take a multiple of 4")
        conv = nn.Conv2d(channels, dim, self.patch, self.patch)
        return MapStem(Convolution(conv, None, None, pad=True), ConvolvedSines(dim))
