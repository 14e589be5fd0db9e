"""A neck that passes features down and up a pyramid (https://arxiv.org/abs/1803.01534) through Mamba YOLO's blocks
(https://arxiv.org/abs/2406.05835).

Shapes: B images, C channels, maps H x W.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks.local_scan import EPS, LocalScan, slow
from ..conv import ConvNorm
from ..mixers.cross_scan import Cross
from ..mixers.in_a_row import InARow
from ..tokens import Tokens


class PathAggregation(nn.Module):
    """Maps (B H W C_i) from fine to coarse -> as many of the same channels and sizes: each joined with the one below
    it, enlarged, from coarse to fine, and then with the one above it, convolved by 2, from fine to coarse. A block
    makes one map of two; it has `repeats` scans in a row."""

    def __init__(self, channels: Sequence[int], repeats: int = 1):
        super().__init__()
        self.channels = list(channels)
        mixer = InARow(Cross(act="gelu"), repeats)

        def block(width: int, out: int) -> nn.Module:
            return LocalScan(width, always=False, bias=False).build(out, 0, mixer.build(out, 0), 4.0, None, 0.0)

        self.up = nn.ModuleList(block(a + b, a) for a, b in pairwise(channels))  # i: the map i and the one above it
        self.down = nn.ModuleList(block(a + b, b) for a, b in pairwise(channels))
        self.steps = nn.ModuleList(slow(ConvNorm(c, c, 3, 2, act="silu", eps=EPS)) for c in channels[:-1])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if [m.shape[-1] for m in maps] != self.channels:
            raise ValueError(f"maps of {self.channels} channels are wanted; got {[m.shape[-1] for m in maps]}")
        found = [maps[-1]]
        for m, block in zip(reversed(maps[:-1]), reversed(self.up), strict=True):
            found.insert(0, through(block, torch.cat([doubled(found[0], m), m], -1)))
        out = [found[0]]
        for m, step, block in zip(found[1:], self.steps, self.down, strict=True):
            out.append(through(block, torch.cat([step(out[-1]), m], -1)))
        return out


def through(block: nn.Module, m: Tensor) -> Tensor:
    t: Tokens = block(Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2])))
    return t.map()


def doubled(m: Tensor, like: Tensor) -> Tensor:
    """m (B H W C) with each cell twice on each side, cut to the size of `like`."""
    y = F.interpolate(m.permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest").permute(0, 2, 3, 1)
    return y[:, : like.shape[1], : like.shape[2]]
