"""FMViT's two token mixers, https://arxiv.org/abs/2311.05707: a multi-branch convolution, and attention beside one."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...kernels.attend import attend
from ...kernels.pool import means
from ..reparam import Branches
from ..tokens import Probe, Tokens


def pointwise(dim: int, out: int, groups: tuple[int, ...], act: str | None = None) -> Branches:
    """A dense 1x1 convolution that is trained as a sum of group convolutions, and an identity where that fits."""
    count = len(groups) + (dim == out)  # of branches: their sum begins at the size of one
    return Branches(dim, out, [(1, g) for g in groups], identity=dim == out, act=act, scale=count**-0.5)


def local(dim: int, width: int, kernel: int, act: str | None = None) -> Branches:
    """A convolution in groups of `width` channels that is trained beside a depthwise, a 1x1 one and an identity."""
    groups = dim // width
    return Branches(dim, dim, [(kernel, groups), (kernel, dim), (1, groups)], identity=True, act=act, scale=0.5)


class ConvolutionalMixer(nn.Module):
    """fc(relu(conv(m))): what a convolutional fusion block (CFB) mixes tokens by."""

    needs_grid, offers, projections = True, (), ()

    def __init__(self, dim: int, width: int, kernel: int, groups: tuple[int, ...]):
        super().__init__()
        if dim % width:
            raise ValueError(f"dim {dim} does not divide into groups of {width} channels")
        self.conv, self.fc = local(dim, width, kernel, "relu"), pointwise(dim, dim, groups)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        return self.fc(self.conv(t.map())).flatten(1, 2)  # type: ignore[no-any-return]


class LightAttention(nn.Module):
    """softmax(q k' / sqrt(d)) v on a map B H W C (RLMHSA): keys and values are `reduction` times fewer on each side,
    and all projections are sums of 1x1 branches that fold into one."""

    def __init__(self, dim: int, width: int, reduction: int, groups: tuple[int, ...]):
        super().__init__()
        self.heads, self.reduction = dim // width, reduction
        self.q, self.proj = pointwise(dim, dim, groups), pointwise(dim, dim, groups)
        self.kv = pointwise(dim, 2 * dim, groups)

    def forward(self, m: Tensor) -> Tensor:
        n = self.reduced(m) if self.reduction > 1 else m
        q = self.q(m).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B h N d
        k, v = self.kv(n).flatten(1, 2).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = attend(q, k, v).transpose(1, 2).reshape(m.shape)
        return self.proj(y)  # type: ignore[no-any-return]

    def reduced(self, m: Tensor) -> Tensor:
        """Means over reduction x reduction places; at the edge over what is there."""
        x = m.permute(0, 3, 1, 2)
        return means(x, self.reduction).permute(0, 2, 3, 1)


class FrequencyMixer(nn.Module):
    """fc([low + attention(low), high + conv(high)]), low and high being two 1x1 projections that share the channels
    out: what a multi-frequency mixing block (FMB) mixes tokens by."""

    needs_grid, offers, projections = True, (), ()

    def __init__(self, dim: int, low: int, width: int, reduction: int, kernel: int, groups: tuple[int, ...]):
        super().__init__()
        high = dim - low
        if low % width or high % width or min(low, high) < width:
            raise ValueError(f"{low} and {high} channels do not divide into heads and groups of {width}")
        self.low, self.high = pointwise(dim, low, groups), pointwise(dim, high, groups)
        self.attention, self.conv = LightAttention(low, width, reduction, groups), local(high, width, kernel)
        self.fc = pointwise(dim, dim, groups)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m = t.map()
        low, high = self.low(m), self.high(m)
        y = torch.cat([low + self.attention(low), high + self.conv(high)], -1)
        return self.fc(y).flatten(1, 2)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MultiConv:
    """CFB's mixer: kernel x kernel in groups of `width` channels, then 1x1 in `groups`, the counts of its branches."""

    width: int = 32
    kernel: int = 3
    groups: tuple[int, ...] = (1, 2, 4)

    def build(self, dim: int, index: int) -> nn.Module:
        return ConvolutionalMixer(dim, self.width, self.kernel, self.groups)


@dataclass(frozen=True)
class Frequencies:
    """FMB's mixer: about the share `low` of the channels goes through attention, in heads of `width`, the rest through
    a convolution."""

    low: float = 0.5
    reduction: int = 1
    width: int = 32
    kernel: int = 3
    groups: tuple[int, ...] = (1, 2, 4)

    def build(self, dim: int, index: int) -> nn.Module:
        heads = dim // self.width
        low = min(max(1, round(heads * self.low)), heads - 1) * self.width
        return FrequencyMixer(dim, low, self.width, self.reduction, self.kernel, self.groups)
