"""VMamba's two-dimensional selective scan (SS2D, https://arxiv.org/abs/2401.10166): rows and columns, both ways."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..gaps import Walk, convolved, patches_of, walk
from ..layers import ACTIVATIONS, Linear
from ..tokens import Probe, Tokens
from .mamba import SelectiveScan


class CrossScan(nn.Module):
    """in_proj, depthwise 3x3 and `act`; the map scanned along rows, along columns, and backwards along both, each with
    weights of its own; their sum through a norm, times a gate or not, and out_proj.

    Where patches were dropped, the rest is scanned in the same orders, and with `Tokens.place` the state decays over
    what is missing. Shows `scan`, the sum over the four ways.
    """

    needs_grid, offers, projections = True, ("scan",), ("in_proj", "out_proj")

    def __init__(self, dim: int, states: int, ratio: float, gate: bool, conv_bias: bool, act: str = "silu"):
        super().__init__()
        inner, rank = int(ratio * dim), -(-dim // 16)
        self.gate, self.act = gate, ACTIVATIONS[act]()
        self.in_proj, self.out_proj = Linear(dim, inner * (1 + gate), bias=False), Linear(inner, dim, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        self.scans = nn.ModuleList(SelectiveScan(inner, rank, states) for _ in range(4))
        self.norm = nn.LayerNorm(inner)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        tokens, (h, w), at = patches_of(t)
        x, *z = self.in_proj(tokens).chunk(1 + self.gate, -1)
        x = self.act(convolved(self.conv, x, (h, w), at))  # B L E
        rows = columns = Walk()
        if at is not None:
            rows, columns = (walk(p, t.place is not None) for p in (at, at % w * h + at // w))
        over = turned(x, h, w) if at is None else columns.along(x)
        along, down, back, up = self.scans
        y = along(x, gap=rows.before) + back(x, True, rows.behind)
        upright = down(over, gap=columns.before) + up(over, True, columns.behind)
        y = y + (turned(upright, w, h) if at is None else columns.home(upright))
        if probe is not None:
            probe["scan"] = y
        y = self.norm(y)
        return self.out_proj(y * self.act(z[0].flatten(1, -2)) if self.gate else y)  # type: ignore[no-any-return]


def turned(x: Tensor, h: int, w: int) -> Tensor:
    """The rows of an h x w map (B h*w C) as its columns."""
    return x.unflatten(1, (h, w)).transpose(1, 2).flatten(1, 2)  # type: ignore[no-untyped-call, no-any-return]


@dataclass(frozen=True)
class Cross:
    """The four-way scan with `states` numbers a channel over `ratio` times the width. `gate` and `conv_bias` as in the
    first published generation; `act` stands behind the convolution and before the gate."""

    states: int = 16
    ratio: float = 2.0
    gate: bool = True
    conv_bias: bool = True
    act: str = "silu"

    def build(self, dim: int, index: int) -> nn.Module:
        return CrossScan(dim, self.states, self.ratio, self.gate, self.conv_bias, self.act)
