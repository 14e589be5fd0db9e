"""PlainMamba's mixer (https://arxiv.org/abs/2403.17695): one selective scan along four snakes over the map, which knows
from where each step of a snake came."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.selective_scan import fast_softplus, selective_scan
from ..gaps import Walk, convolved, patches_of, walk
from ..layers import Linear
from ..orders import snakes, walks
from ..tokens import Probe, Tokens
from .mamba import initial_step_sizes


class ContinuousScan(nn.Module):
    """out_proj(sum over the snakes of scan(u in its order, put back) * silu(z)).

    As published, and in the published weights: only u is rearranged. Step sizes, B and C stay in the order of rows, so
    that a step of a snake meets those of another token; and the bias of the step sizes is added twice.

    Where patches were dropped, the rest is walked in the order of each snake and meets the step sizes of the rest; with
    `Tokens.place` the state decays over what is missing. Shows `scan`, the sum over the snakes.
    """

    needs_grid, offers, projections = True, ("scan",), ("in_proj", "x_proj", "dt_proj", "out_proj")

    def __init__(self, dim: int, states: int, expand: int, kernel: int):
        super().__init__()
        inner, rank = expand * dim, -(-dim // 16)
        self.rank, self.states = rank, states
        self.in_proj, self.out_proj = Linear(dim, 2 * inner), Linear(inner, dim)
        self.conv = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner)
        self.x_proj, self.dt_proj = Linear(inner, rank + 2 * states, bias=False), Linear(rank, inner)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        initial_step_sizes(self.dt_proj.bias)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.directions = nn.Parameter(nn.init.normal_(torch.empty(5, states), std=0.02))

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        tokens, grid, at = patches_of(t)
        x, z = self.in_proj(tokens).chunk(2, -1)
        u = F.silu(convolved(self.conv, x, grid, at))  # B L E
        d, b, c = self.x_proj(u).split([self.rank, self.states, self.states], -1)
        delta = fast_softplus(self.dt_proj(d).float() + self.dt_proj.bias.float())
        decay = -self.A_log.float().exp()
        idle = None if at is None or t.place is None else F.softplus(2 * self.dt_proj.bias.float())
        y = self.D * (4 * u)
        for ahead, codes in snake_tensors(grid, u.device):
            back = torch.empty_like(ahead).scatter_(0, ahead, torch.arange(ahead.shape[0], device=u.device))
            w = Walk(ahead, back) if at is None else walk(back[at], idle is not None)
            into = b + self.directions[codes if at is None else codes[w.at]].to(b.dtype)
            along = selective_scan(w.along(u), delta, decay, into, c, softplus=False, gap=w.before, idle=idle)
            y = y + w.home(along)
        if probe is not None:
            probe["scan"] = y
        return self.out_proj(y * F.silu(z.flatten(1, -2)))  # type: ignore[no-any-return]


def snake_tensors(grid: tuple[int, int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """The snakes over a map and how their steps arrived; operators of the graph while a model is exported."""
    if torch.compiler.is_exporting():
        return [(path.to(device), codes.to(device)) for path, codes in walks(*grid, torch)]
    return [(torch.from_numpy(path).to(device), torch.from_numpy(codes).to(device)) for path, codes in snakes(*grid)]


@dataclass(frozen=True)
class Continuous:
    """The direction-aware scan with `states` numbers a channel over `expand` times the width."""

    states: int = 16
    expand: int = 2
    kernel: int = 7

    def build(self, dim: int, index: int) -> nn.Module:
        return ContinuousScan(dim, self.states, self.expand, self.kernel)
