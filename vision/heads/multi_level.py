"""A pyramid of the maps that a backbone of one resolution gives after several of its blocks (as BEiT does it,
https://arxiv.org/abs/2106.08254)."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def in_one_stride(strides: Sequence[int]) -> bool:
    """Whether there are several maps, all of one resolution."""
    return len(strides) > 1 and len(set(strides)) == 1


class Up(nn.Sequential):
    """A map `doublings` times as large: transposed 2x2 convolutions, with a norm and GELU between two of them."""

    def __init__(self, dim: int, doublings: int, norm: str):
        layers: list[nn.Module] = []
        for i in range(doublings):
            if i > 0:
                layers += [nn.BatchNorm2d(dim) if norm == "batch" else nn.GroupNorm(math.gcd(32, dim), dim), nn.GELU()]
            layers.append(nn.ConvTranspose2d(dim, dim, 2, 2))
        super().__init__(*layers)


class Pool(nn.Module):
    """A map 2**`halvings` times smaller, by its maxima; the last of odd sides are pooled too."""

    def __init__(self, halvings: int):
        super().__init__()
        self.halvings = halvings

    def forward(self, m: Tensor) -> Tensor:
        for _ in range(self.halvings):
            m = F.max_pool2d(m, 2, ceil_mode=True)
        return m


class MultiLevel(nn.Module):
    """maps (B C_i H W), all of `stride` -> the same with the first near stride 4 and each further one half as fine; of
    stride 16, four maps become 4, 2, 1 and 1/2 times as large. `strides` (of patches of 14 pixels not whole) says so.
    """

    def __init__(self, channels: Sequence[int], stride: int, norm: str):
        super().__init__()
        up = max(0, round(math.log2(stride / 4)))
        self.channels = list(channels)
        self.strides = [stride * 2.0 ** (i - up) for i in range(len(channels))]
        self.levels = nn.ModuleList(Up(c, up - i, norm) if i < up else Pool(i - up) for i, c in enumerate(channels))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [level(m) for level, m in zip(self.levels, maps, strict=True)]
