"""kMaX-DeepLab's pixel decoder, https://arxiv.org/abs/2207.04044: blocks of axial attention on the coarse maps, of
convolutions on the fine ones (as in MaX-DeepLab, https://arxiv.org/abs/2012.00759).

Shapes: B images, C channels, H W a map, h heads, d head width, L, M places along one axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..residual import Add
from .conv_norm import ConvNorm

EPS, MOMENTUM = 1e-3, 0.01
Conv = partial(ConvNorm, eps=EPS, momentum=MOMENTUM)
REACH = 254  # how many places away the tables of relative positions go


def resized(m: Tensor, size: Sequence[int]) -> Tensor:
    """A map (B C H W) resized bilinearly, the corners aligned where its width is odd."""
    if tuple(m.shape[-2:]) == tuple(size):
        return m
    return F.interpolate(m, tuple(size), mode="bilinear", align_corners=m.shape[-1] % 2 == 1)


def per_head(x: Tensor, heads: int) -> Tensor:
    """(B h*d L) -> (B h d L)."""
    return x.reshape(x.shape[0], heads, -1, x.shape[-1])


class AxisAttention(nn.Module):
    """Attention along L of (B 2f L), with positions relative to the query for queries, keys and values.

    softmax(sum of the norms of q k', q r_q', k r_k') (v and r_v), the norm of both parts summed; keys are f channels
    wide and values 2f. Nothing is divided by sqrt(d): the batch norm takes that role."""

    def __init__(self, filters: int, heads: int = 8):
        super().__init__()
        if filters % heads:
            raise ValueError(f"{filters} channels of keys do not divide into {heads} heads")
        self.filters, self.heads = filters, heads
        self.qkv = nn.Conv1d(2 * filters, 4 * filters, 1, bias=False)
        rows, width = 2 * REACH + 1, filters // heads
        self.query_table, self.key_table, self.value_table = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(rows, d))) for d in (width, width, 2 * width)
        )
        self.norm_qkv = nn.BatchNorm1d(4 * filters, EPS, MOMENTUM)
        self.norm_scores = nn.BatchNorm2d(3 * heads, EPS, MOMENTUM)
        self.norm_out = nn.BatchNorm1d(4 * filters, EPS, MOMENTUM)
        nn.init.trunc_normal_(self.qkv.weight, std=(2 * filters) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        f, length = self.filters, x.shape[-1]
        if length > REACH + 1:
            raise ValueError(f"axial attention over {length} places: its tables of positions reach {REACH + 1}")
        place = torch.arange(length, device=x.device)
        row = place - place[:, None] + REACH  # L M
        tables = (self.query_table, self.key_table, self.value_table)
        to_query, to_key, to_value = (t[row] for t in tables)  # L M d
        mixed = self.norm_qkv(self.qkv(x))
        q, k, v = (per_head(p, self.heads) for p in torch.split(mixed, [f, f, 2 * f], 1))  # B h d L
        content = q.mT @ k
        from_query, from_key = torch.einsum("bhdl,lmd->bhlm", q, to_query), torch.einsum("bhdm,lmd->bhlm", k, to_key)
        scores = self.norm_scores(torch.cat([content, from_query, from_key], 1))
        weight = scores.unflatten(1, (3, self.heads)).sum(1).softmax(-1)  # B h L M
        values = v @ weight.mT, torch.einsum("bhlm,lmd->bhdl", weight, to_value)
        out = self.norm_out(torch.cat([o.flatten(1, 2) for o in values], 1))
        return out.unflatten(1, (2, -1)).sum(1)  # type: ignore[no-any-return]


class AxialAttention(nn.Module):
    """Along the columns of (B 2f H W), then along its rows."""

    def __init__(self, filters: int):
        super().__init__()
        self.height, self.width = AxisAttention(filters), AxisAttention(filters)

    def forward(self, m: Tensor) -> Tensor:
        b, _, h, w = m.shape
        x = self.height(m.permute(0, 3, 1, 2).flatten(0, 1)).unflatten(0, (b, w))  # B W C H
        return self.width(x.permute(0, 3, 2, 1).flatten(0, 1)).unflatten(0, (b, h)).permute(0, 2, 1, 3)  # type: ignore[no-any-return]


class Block(nn.Module):
    """shortcut(gelu(m)) + droppath(expand(middle(reduce(gelu(m))))), (B dim H W) -> (B 4f H W); in the middle there is
    axial attention on 2f channels, or a 3x3 convolution of f."""

    def __init__(self, dim: int, filters: int, axial: bool, drop_path: float = 0.0):
        super().__init__()
        out, inner = 4 * filters, 2 * filters if axial else filters
        self.shortcut = nn.Identity() if dim == out else Conv(dim, out)
        self.reduce = Conv(dim, inner, gelu=True)
        self.middle = nn.Sequential(AxialAttention(filters), nn.GELU()) if axial else Conv(inner, inner, 3, gelu=True)
        self.expand, self.add = Conv(inner, out), Add(drop_path)
        nn.init.zeros_(self.expand.norm.weight)  # type: ignore[arg-type]

    def forward(self, m: Tensor) -> Tensor:
        m = F.gelu(m)
        return self.add(self.shortcut(m), self.expand(self.middle(self.reduce(m))))  # type: ignore[no-any-return]


class Fuse(nn.Module):
    """A coarse map resized to a fine one, and both added, at `out` channels."""

    def __init__(self, low: int, high: int, out: int):
        super().__init__()
        self.low = nn.Identity() if low == out else nn.Sequential(nn.GELU(), Conv(low, out))
        self.high = nn.Identity() if high == out else nn.Sequential(nn.GELU(), Conv(high, out))

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        high = self.high(high)
        return resized(self.low(low), high.shape[-2:]) + high


class ChannelNorm(nn.LayerNorm):
    """A LayerNorm over the channels of (B C H W)."""

    def __init__(self, dim: int):
        super().__init__(dim, 1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Level:
    """One resolution of the decoder: `depth` blocks of 4 · filters channels."""

    filters: int
    depth: int = 1
    axial: bool = False


LEVELS = (Level(512, 1, True), Level(256, 5, True), Level(128), Level(64))


class KMaxPixelDecoder(nn.Module):
    """Maps (B C_i H_i W_i), from fine to coarse, of the given `channels` -> a map for each level, from coarse to fine;
    there is one level for each map."""

    def __init__(self, channels: Sequence[int], levels: Sequence[Level] = LEVELS, drop_path: float = 0.0):
        super().__init__()
        if len(channels) != len(levels):
            raise ValueError(f"{len(levels)} levels for {len(channels)} maps; one for each is wanted")
        coarse, dim = list(reversed(channels)), channels[-1]
        self.norms, self.stages, self.fuses = (nn.ModuleList() for _ in range(3))
        self.channels = [4 * v.filters for v in levels]
        for i, (level, here) in enumerate(zip(levels, coarse, strict=True)):
            self.norms.append(ChannelNorm(here))
            if i:
                self.fuses.append(Fuse(self.channels[i - 1], here, level.filters))
                dim = level.filters
            widths = [dim, *[self.channels[i]] * (level.depth - 1)]
            self.stages.append(nn.Sequential(*(Block(w, level.filters, level.axial, drop_path) for w in widths)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        normed = [n(m) for n, m in zip(self.norms, reversed(maps), strict=True)]
        found: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            m = self.fuses[i - 1](found[-1], normed[i]) if i else normed[0]
            found.append(stage(m))
        return found
