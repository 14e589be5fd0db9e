"""The semantic heads beside kMaX-DeepLab's decoder, https://arxiv.org/abs/2207.04044, which only training uses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .kmax_pixel_decoder import Conv, resized


class Pyramids(nn.Module):
    """ASPP, https://arxiv.org/abs/1706.05587: convolutions of several reaches and the mean of the map (B dim H W), side
    by side, mixed to 256 channels."""

    def __init__(self, dim: int, out: int = 256, rates: Sequence[int] = (6, 12, 18)):
        super().__init__()
        near = [Conv(dim, out, gelu=True), *(Conv(dim, out, 3, dilation=r, gelu=True) for r in rates)]
        self.convs, self.mean = nn.ModuleList(near), Conv(dim, out, gelu=True)
        self.mix = Conv((len(rates) + 2) * out, out, gelu=True)

    def forward(self, m: Tensor) -> Tensor:
        if self.training and len(m) == 1:
            raise ValueError("the semantic head normalises the mean of each map over the batch: it trains on 2 or more")
        mean = self.mean(m.mean((2, 3), keepdim=True)).expand(-1, -1, *m.shape[-2:])
        return self.mix(torch.cat([*(c(m) for c in self.convs), mean], 1))  # type: ignore[no-any-return]


class Finer(nn.Module):
    """A map (B 256 H W) resized to a finer one, which joins it with `width` channels."""

    def __init__(self, dim: int, width: int, out: int = 256):
        super().__init__()
        self.project = Conv(dim, width, gelu=True)
        self.spread = Conv(out + width, out + width, 5, groups=out + width, gelu=True)
        self.mix = Conv(out + width, out, gelu=True)

    def forward(self, m: Tensor, finer: Tensor) -> Tensor:
        return self.mix(self.spread(torch.cat([resized(m, finer.shape[-2:]), self.project(finer)], 1)))  # type: ignore[no-any-return]


class Classify(nn.Module):
    """A 5x5 and a 1x1 convolution, then one to the classes."""

    def __init__(self, dim: int, classes: int, width: int = 256):
        super().__init__()
        self.spread, self.mix = Conv(dim, dim, 5, groups=dim, gelu=True), Conv(dim, width, gelu=True)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, m: Tensor) -> Tensor:
        return self.classify(self.mix(self.spread(m)))  # type: ignore[no-any-return]


class CoarseSemantic(nn.Module):
    """Of the coarsest map alone, K classes (Cityscapes)."""

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        self.head = Classify(channels[-1], classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.head(maps[-1])  # type: ignore[no-any-return]


class FusedSemantic(nn.Module):
    """Of the coarsest map, the third and the finest (strides 32, 8, 4), K + 1 classes (COCO, ADE20K)."""

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        if len(channels) < 4:
            raise ValueError(f"the fused semantic head takes four maps; the backbone gives {len(channels)}")
        self.aspp, self.to8, self.to4 = Pyramids(channels[-1]), Finer(channels[-3], 64), Finer(channels[-4], 32)
        self.head = Classify(256, classes + 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.head(self.to4(self.to8(self.aspp(maps[-1]), maps[-3]), maps[-4]))  # type: ignore[no-any-return]
