"""VMamba's two-dimensional selective scan (SS2D, https://arxiv.org/abs/2401.10166): rows and columns, both ways."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Linear
from ..tokens import Probe, Tokens
from .convolution import convolve
from .mamba import SelectiveScan


class CrossScan(nn.Module):
    """in_proj, depthwise 3x3 and SiLU; the map scanned along rows, along columns, and backwards along both, each with
    weights of its own; their sum through a norm, times a gate or not, and out_proj."""

    needs_grid, offers, projections = True, (), ("in_proj", "out_proj")

    def __init__(self, dim: int, states: int, ratio: float, gate: bool, conv_bias: bool):
        super().__init__()
        inner, rank = int(ratio * dim), -(-dim // 16)
        self.gate = gate
        self.in_proj, self.out_proj = Linear(dim, inner * (1 + gate), bias=False), Linear(inner, dim, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        self.scans = nn.ModuleList(SelectiveScan(inner, rank, states) for _ in range(4))
        self.norm = nn.LayerNorm(inner)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        x, *z = self.in_proj(t.map()).chunk(1 + self.gate, -1)
        x = F.silu(convolve(self.conv, x))  # B H W E
        rows, columns = x.flatten(1, 2), x.transpose(1, 2).flatten(1, 2)
        along, down, back, up = self.scans
        y = along(rows) + back(rows, reverse=True)
        turned = down(columns) + up(columns, reverse=True)
        y = y + turned.unflatten(1, (x.shape[2], x.shape[1])).transpose(1, 2).flatten(1, 2)
        y = self.norm(y)
        return self.out_proj(y * F.silu(z[0].flatten(1, 2)) if self.gate else y)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Cross:
    """The four-way scan with `states` numbers a channel over `ratio` times the width. `gate` and `conv_bias` as in the
    first published generation."""

    states: int = 16
    ratio: float = 2.0
    gate: bool = True
    conv_bias: bool = True

    def build(self, dim: int, index: int) -> nn.Module:
        return CrossScan(dim, self.states, self.ratio, self.gate, self.conv_bias)
