"""EfficientFormerV2's attention on maps, https://arxiv.org/abs/2212.08059: heads that talk to each other before and
behind the softmax (https://arxiv.org/abs/2003.02436), and a step down in which attention stands beside a convolution.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ..conv import ConvNorm, LinearNorm
from ..spec import Spec
from ..stem import Down
from ..tokens import Probe, Tokens
from .convolution import convolve
from .distance import DistanceBias, Grid


def heads_of(m: Tensor, heads: int) -> Tensor:
    """B H W h*d -> B h N d"""
    return m.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]


class TalkingHeads(nn.Module):
    """talk2(softmax(talk1(q k' / sqrt(d) + bias))) v + local(v), over the whole map; GELU and a 1x1 convolution behind.

    `stride` 2: on a map of half the sides, which a depthwise convolution makes and bilinear interpolation undoes. The
    bias, by distance, belongs to `grid`, the map that is attended to. Batch norms behind all convolutions.
    """

    needs_grid, offers, projections = True, (), ()

    def __init__(self, dim: int, heads: int, key: int, value: int, grid: Grid, stride: int):
        super().__init__()
        self.heads, self.key, self.value = heads, key, value
        self.stride: nn.Module = nn.Identity()
        if stride > 1:
            self.stride = ConvNorm(dim, dim, 3, stride, groups=dim, bias=True)
        self.qkv = LinearNorm(dim, heads * (2 * key + value), bias=True)
        self.local = ConvNorm(heads * value, heads * value, 3, groups=heads * value, bias=True)
        self.bias = DistanceBias(heads, grid)
        self.talk1, self.talk2 = nn.Conv2d(heads, heads, 1), nn.Conv2d(heads, heads, 1)
        self.act, self.proj = nn.GELU(), LinearNorm(heads * value, dim, bias=True)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        whole = t.map()
        m = self.stride(whole)  # B H W C
        wide = self.heads * self.key
        q, k, v = self.qkv(m).split((wide, wide, self.heads * self.value), -1)
        score = self.talk1(self.scores(heads_of(q, self.heads), heads_of(k, self.heads), (m.shape[1], m.shape[2])))
        weight = self.talk2(score.float().softmax(-1).to(v.dtype))
        y = (weight @ heads_of(v, self.heads)).transpose(1, 2).reshape(v.shape) + self.local(v)
        if m.shape != whole.shape:
            y = F.interpolate(y.permute(0, 3, 1, 2), whole.shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
        return self.proj(self.act(y)).flatten(1, 2)  # type: ignore[no-any-return]

    def scores(self, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
        """(B h N N)"""
        return torch.add(self.bias(grid).to(q.dtype), q @ k.mT, alpha=self.key**-0.5)


class AttentionDown(nn.Module):
    """Half the sides: attention of every second place to all, beside a 3x3 convolution by 2.

    q comes from the places themselves and a depthwise convolution by 2; v goes on by another one as well. `heads` heads
    of `key` and `value` channels; the bias, by distance, belongs to `grid`, the map that is attended to.
    """

    projections = ()

    def __init__(self, dim: int, out: int, heads: int, key: int, value: int, grid: Grid):
        super().__init__()
        self.heads, self.key, self.value = heads, key, value
        self.local = nn.Conv2d(dim, dim, 3, 2, 1, groups=dim)
        self.q = LinearNorm(dim, heads * key, bias=True)
        self.kv = LinearNorm(dim, heads * (key + value), bias=True)
        self.local_v = ConvNorm(heads * value, heads * value, 3, 2, groups=heads * value, bias=True)
        self.bias = DistanceBias(heads, grid)
        self.act, self.proj = nn.GELU(), LinearNorm(heads * value, out, bias=True)
        self.conv = ConvNorm(dim, out, 3, 2, bias=True)

    def forward(self, t: Tokens) -> Tokens:
        m = t.map()  # B H W C
        return t.with_map(self.attended(m) + self.conv(m))

    def attended(self, m: Tensor) -> Tensor:
        q = self.q(convolve(self.local, m) + m[:, ::2, ::2])  # B H/2 W/2 h*d
        k, v = self.kv(m).split((self.heads * self.key, self.heads * self.value), -1)
        bias = self.bias((m.shape[1], m.shape[2]), 2)[None]
        y = attend(heads_of(q, self.heads), heads_of(k, self.heads), heads_of(v, self.heads), bias)
        y = y.transpose(1, 2).reshape(*q.shape[:3], -1) + self.local_v(v)
        return self.proj(self.act(y))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Talking(Spec):
    """Attention with talking heads over a map of `grid` (before its sides are divided by `stride`)."""

    grid: Grid
    heads: int = 8
    key: int = 32  # channels of q and k a head
    value: int = 128
    stride: int = 1

    def sized(self, grid: Grid) -> "Talking":
        return replace(self, grid=grid)

    def build(self, dim: int, index: int) -> nn.Module:
        h, w = ((n + self.stride - 1) // self.stride for n in self.grid)
        return TalkingHeads(dim, self.heads, self.key, self.value, (h, w), self.stride)


@dataclass(frozen=True)
class AttentionStep(Down):
    """`AttentionDown` for a map of `grid` behind the step."""

    grid: Grid
    heads: int = 8
    key: int = 16
    value: int = 64

    def sized(self, grid: Grid) -> "AttentionStep":
        return replace(self, grid=grid)

    def build(self, dim: int, out: int) -> nn.Module:
        before = self.grid[0] * 2, self.grid[1] * 2
        return AttentionDown(dim, out, self.heads, self.key, self.value, before)
