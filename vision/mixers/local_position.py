"""Attention whose values carry their place, ResFormer's: https://arxiv.org/abs/2212.00776."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear
from ..tokens import Probe, Tokens
from .attention import attend_in
from .convolution import convolve


class SharedDepthwise(nn.Conv2d):
    """A size x size convolution of each channel of a head by itself, the same for every head: (B C H W) with
    C = heads * d -> (B C H W). It begins as zero."""

    no_weight_decay = True

    def __init__(self, width: int, size: int = 3):
        super().__init__(width, width, size, padding=size // 2, groups=width)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        heads = input.shape[1] // self.in_channels  # one grouped call over all heads, where moving them costs a copy
        weight, bias = self.weight.repeat(heads, 1, 1, 1), self.bias.repeat(heads)
        return F.conv2d(input, weight, bias, 1, self.padding, groups=input.shape[1])


class LocalPositionAttention(nn.Module):
    """softmax(q k' / sqrt(d)) v + depthwise 3x3 convolution of v on its map, 0 for special tokens."""

    needs_grid, offers, projections, entries, takes_special = True, ("keys",), ("qkv", "proj"), ("qkv",), True
    seams: tuple[str, ...] = ("attending",)

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads = heads
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.local = SharedDepthwise(dim // heads)
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        assert t.grid is not None
        qkv = self.qkv(t.x)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # B h N d
        if probe is not None:
            probe["keys"] = k  # B h N d
        y = attend_in(self.attending, q, k, v, None, t).transpose(1, 2).flatten(2)  # B N C
        first = len(t.special)  # special tokens stand in front
        values = qkv[:, first:, 2 * t.x.shape[-1] :].unflatten(1, t.grid)  # B H W C
        place = convolve(self.local, values).flatten(1, 2)
        return self.proj(y + F.pad(place, (0, 0, first, 0)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LocalPosition:
    """Global attention of `heads` heads with a local position of its values."""

    heads: int

    def build(self, dim: int, index: int) -> nn.Module:
        return LocalPositionAttention(dim, self.heads)
