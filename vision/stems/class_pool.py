"""Pooling between stages that keeps a class token, https://arxiv.org/abs/2103.16302 (PiT)."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..layers import Linear
from ..mixers.convolution import convolve
from ..stem import Down
from ..tokens import Tokens


class ClassPool(nn.Module):
    """Patches through a strided convolution of each channel by itself, C -> C', and a linear layer (`pointwise`, or
    none); special tokens, which stand in front, through a linear layer of their own."""

    projections = ("token", "pointwise")

    def __init__(self, conv: nn.Conv2d, pointwise: nn.Module | None, token: Linear):
        super().__init__()
        self.conv, self.token = conv, token
        self.pointwise = nn.Identity() if pointwise is None else pointwise

    def forward(self, t: Tokens) -> Tokens:
        m: Tensor = self.pointwise(convolve(self.conv, t.map()))
        x, k = m.flatten(1, 2), len(t.special)
        if k:
            x = torch.cat([self.token(t.x[:, list(t.special)]), x], 1)
        return replace(t, x=x, grid=(m.shape[1], m.shape[2]), special=tuple(range(k)))


@dataclass(frozen=True)
class ClassPooling(Down):
    """A kernel x kernel depthwise convolution by `stride`, padded by `padding`, to a multiple of the channels (in
    groups where it is none), a linear layer behind it if `pointwise`, and one of its own for the class token."""

    kernel: int = 3
    stride: int = 2
    padding: int = 1
    pointwise: bool = True

    def build(self, dim: int, out: int) -> nn.Module:
        conv = nn.Conv2d(dim, out, self.kernel, self.stride, self.padding, groups=math.gcd(dim, out))
        return ClassPool(conv, Linear(out, out) if self.pointwise else None, Linear(dim, out))
