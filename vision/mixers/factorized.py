"""Factorised attention of FaViT, https://arxiv.org/abs/2312.08614: part of the channels attends to a shrunken map, the
others to 49 keys each that are averaged over dilated windows of the whole map.

Shapes: B images, N = H * W tokens, C channels, h heads, L windows of 7 x 7 keys.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ...kernels.sizes import always, is_open, modulo
from ...kernels.sizes import table as of_sizes
from ..depthwise import ResidualDepthwise, filtered
from ..layers import Linear, is_plain
from ..tokens import Probe, Tokens

SIDE = 7  # of a window, in keys
GLOBAL, LOCAL = 2, 7  # shares of the channels where the map is shrunken; 1 and 7 where it is not


class GlobalPath(nn.Module):
    """softmax(q k' / sqrt(d)) (v + conv(v)) with one head; k and v from the map shrunken `reduction` times."""

    projections = ("kv",)

    def __init__(self, dim: int, reduction: int):
        super().__init__()
        self.reduce = nn.Conv2d(dim, dim, reduction, reduction)
        self.norm, self.kv, self.local = nn.LayerNorm(dim), Linear(dim, 2 * dim), ResidualDepthwise(dim)

    def forward(self, q: Tensor, m: Tensor) -> Tensor:  # B N d, B H W d
        s = self.reduce.stride[0]
        if min(m.shape[1:3]) < s:  # smaller than one kernel
            m = F.pad(m, (0, 0, 0, max(0, s - m.shape[2]), 0, max(0, s - m.shape[1])))
        k, v = self.kv(self.norm(filtered(self.reduce, m))).chunk(2, -1)  # B H/s W/s d
        v = self.local(v)
        return attend(q[:, None], k.flatten(1, 2)[:, None], v.flatten(1, 2)[:, None])[:, 0]


class LocalPath(nn.Module):
    """softmax(q k' / sqrt(d)) (v + conv(v)) over 49 keys: those at the same place of every window of the map, averaged.

    Windows stand side by side and hold 7 x 7 places `dilation` apart; a map that they do not divide is reflected at
    right and bottom, as often as it takes. The mean is the published one, not that over windows: the numbers of a head
    at one place, window after window, are averaged in runs as long as there are windows.
    """

    projections = ("fc", "kv")

    def __init__(self, dim: int, heads: int, dilation: int):
        super().__init__()
        self.heads, self.dilation = heads, dilation
        width = dim // heads
        self.fc: nn.Module = Linear(width, width)
        self.kv, self.local = Linear(width, 2 * width), ResidualDepthwise(dim)

    def forward(self, q: Tensor, m: Tensor) -> Tensor:  # B h N d, B H W h*d
        k, v = self.kv(self.fc(self.places(m))).chunk(2, -1)  # B h 49 d
        map_of_v = v.transpose(1, 2).flatten(2).unflatten(1, (SIDE, SIDE))  # B 7 7 h*d
        v = self.local(map_of_v).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return attend(q, k, v).transpose(1, 2).flatten(2)  # B N h*d

    def places(self, m: Tensor) -> Tensor:
        """(B h 49 d)"""
        for axis in (1, 2):
            if self.dilation > 1 or not always(m.shape[axis] % SIDE == 0):  # else they are all places in their order
                index = of_sizes(window_places, m.shape[axis], self.dilation)
                m = m.index_select(axis, index.to(m.device))
        b, down, right = m.shape[0], m.shape[1] // SIDE, m.shape[2] // SIDE
        m = m.reshape(b, down, SIDE, right, SIDE, self.heads, -1)
        flat = m.permute(0, 5, 2, 4, 1, 3, 6).reshape(b, self.heads, SIDE * SIDE, -1)  # B h 49 L*d
        return flat if always(down * right == 1) else flat.view(*flat.shape[:3], -1, down * right).mean(-1)

    def fold_(self) -> None:
        """Nothing stands between the two linear layers: they become one."""
        if is_plain(self.fc) and is_plain(self.kv):
            assert isinstance(self.fc, Linear)
            with torch.no_grad():
                self.kv.bias.add_(self.kv.weight @ self.fc.bias)
                self.kv.weight.copy_(self.kv.weight @ self.fc.weight)
            self.fc = nn.Identity()

    def extra_repr(self) -> str:
        return f"heads={self.heads}, dilation={self.dilation}"


def window_places(side: int, dilation: int, xp: Any = np) -> Any:
    """The places of a side that its windows hold, window after window; beyond its end it is reflected to and fro."""
    span = (SIDE - 1) * dilation + 1
    windows = (side + span - 1) // span
    place = (xp.arange(windows)[:, None] * span + xp.arange(SIDE) * dilation).reshape(-1)
    if not is_open(side) and side == 1:
        return place * 0
    period = 2 * (side - 1)
    place = modulo(place, period, xp)
    return xp.minimum(place, period - place)


class FactorizedAttention(nn.Module):
    """proj of the paths' results side by side: a global one of C/8 channels, and local ones with dilation 1 and
    `reduction` (without reduction: one local path)."""

    needs_grid, offers, projections = True, (), ("q", "point", "proj")

    def __init__(self, dim: int, heads: int, reduction: int):
        super().__init__()
        dilations = (1, reduction) if reduction > 1 else (1,)
        shares = (GLOBAL, LOCAL, LOCAL) if reduction > 1 else (1, LOCAL)
        unit = dim // sum(shares)
        if dim % sum(shares) or LOCAL * unit % heads:
            raise ValueError(
                f"dim {dim}, heads {heads}, reduction {reduction}: dim must divide into {sum(shares)} parts, "
                f"and {LOCAL} of these into the heads"
            )
        self.heads, self.wide, self.local_dim = heads, unit * shares[0], unit * LOCAL
        rest = dim - self.wide
        self.q, self.proj = Linear(dim, dim), Linear(dim, dim)
        self.depth = nn.Conv2d(rest, rest, 3, padding=1, groups=rest)
        self.point = Linear(rest, rest)
        self.broad = GlobalPath(self.wide, reduction)
        self.near = nn.ModuleList(LocalPath(self.local_dim, heads, d) for d in dilations)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m, paths, width = t.map(), len(self.near), self.local_dim // self.heads
        first, rest = self.q(t.x).split([self.wide, self.local_dim * paths], -1)
        by_path = rest.unflatten(-1, (self.heads, paths, width)).permute(3, 0, 2, 1, 4)  # path B h N d
        y = [self.broad(first, m[..., : self.wide])]
        kv = self.point(filtered(self.depth, m[..., self.wide :])).chunk(paths, -1)
        y += [path(q, part) for path, q, part in zip(self.near, by_path, kv, strict=True)]
        return self.proj(torch.cat(y, -1))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


@dataclass(frozen=True)
class Factorized:
    """Factorised attention with `heads` local heads; `reduction`: how far the map shrinks for the global path, and the
    dilation of the second local path."""

    heads: int
    reduction: int

    def build(self, dim: int, index: int) -> nn.Module:
        return FactorizedAttention(dim, self.heads, self.reduction)
