"""Attention behind depthwise convolutions (CvT), https://arxiv.org/abs/2103.15808."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...kernels.attend import attend
from ..conv import ConvNorm
from ..layers import Linear
from ..tokens import Probe, Tokens, in_front


class ConvAttention(nn.Module):
    """softmax(q k' s) v with s = C^-0.5, the whole width; q, k and v are linear layers behind a depthwise 3x3
    convolution and a batch norm each, those of k and v by `stride`.

    Any map; special tokens, which stand in front, go around the convolutions.
    """

    needs_grid, offers, projections, takes_special = True, (), ("q", "k", "v", "proj"), True
    seams: tuple[str, ...] = ("attending",)

    def __init__(self, dim: int, heads: int, kernel: int, stride: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads, self.scale = heads, dim**-0.5
        self.conv_q = ConvNorm(dim, dim, kernel, groups=dim)
        self.conv_k = ConvNorm(dim, dim, kernel, stride, groups=dim)
        self.conv_v = ConvNorm(dim, dim, kernel, stride, groups=dim)
        self.q, self.k, self.v, self.proj = (Linear(dim, dim) for _ in range(4))
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m, special = t.map(), in_front(t)
        parts = ((self.q, self.conv_q), (self.k, self.conv_k), (self.v, self.conv_v))
        q, k, v = (self.split(linear(behind(special, conv(m)))) for linear, conv in parts)
        if self.attending is not None:
            y = self.attending(q * (self.scale * q.shape[-1] ** 0.5), k, v, None, t)
        else:
            y = attend(q, k, v, scale=self.scale)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # B N C

    def split(self, x: Tensor) -> Tensor:
        """(B N C) -> (B h N d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def behind(special: Tensor, m: Tensor) -> Tensor:
    """The map m (B H W C) as tokens behind the special ones (B k C)."""
    x = m.flatten(1, 2)
    return torch.cat([special.to(x.dtype), x], 1) if special.shape[1] else x


@dataclass(frozen=True)
class Convolved:
    """Attention of every token to every token, projected by convolutions; keys and values are `stride` times fewer on
    each side."""

    heads: int
    kernel: int = 3
    stride: int = 2

    def build(self, dim: int, index: int) -> nn.Module:
        return ConvAttention(dim, self.heads, self.kernel, self.stride)
