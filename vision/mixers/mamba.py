"""Mamba's token mixer (https://arxiv.org/abs/2312.00752), scanned in both directions as Vim has it
(https://arxiv.org/abs/2401.09417)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.selective_scan import selective_scan
from ..gaps import Walk, walk
from ..layers import Linear
from ..tokens import Probe, Tokens


class SelectiveScan(nn.Module):
    """The scan with what depends on the token: (d, B, C) = x_proj(u), delta = dt_proj(d); u (B L E) -> (B L E).

    A = -exp(A_log), D is the skip. `rank` is the width of d, `states` that of B and C. gap (B L): how many tokens are
    missing before each (in reverse: behind it); each would have decayed the state as a zero does.
    """

    projections = ("x_proj", "dt_proj")

    def __init__(self, dim: int, rank: int, states: int):
        super().__init__()
        self.rank, self.states = rank, states
        self.x_proj, self.dt_proj = Linear(dim, rank + 2 * states, bias=False), Linear(rank, dim)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(dim, 1))
        self.D = nn.Parameter(torch.ones(dim))
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        initial_step_sizes(self.dt_proj.bias)

    def forward(self, u: Tensor, reverse: bool = False, gap: Tensor | None = None) -> Tensor:
        d, b, c = self.x_proj(u).split([self.rank, self.states, self.states], -1)
        idle = None if gap is None else self.dt_proj.bias
        decay = -self.A_log.float().exp()
        return selective_scan(u, self.dt_proj(d), decay, b, c, self.D, reverse=reverse, gap=gap, idle=idle)  # type: ignore[no-any-return]


@torch.no_grad()
def initial_step_sizes(bias: Tensor, low: float = 1e-3, high: float = 0.1) -> None:
    """Fills `bias` so that softplus(bias) is log-uniform between `low` and `high`."""
    size = torch.exp(torch.rand_like(bias) * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=1e-4)
    bias.copy_(size + torch.log(-torch.expm1(-size)))


class CausalConv(nn.Conv1d):
    """A depthwise convolution over the tokens (B L C) that sees a token and the kernel - 1 before it, or with `reverse`
    those behind it."""

    def __init__(self, dim: int, kernel: int, bias: bool = True):
        super().__init__(dim, dim, kernel, groups=dim, bias=bias)

    def forward(self, input: Tensor, reverse: bool = False) -> Tensor:
        k = self.kernel_size[0]
        m = input[:, :, None].permute(0, 3, 1, 2)  # B C L 1 in channels_last memory
        weight = self.weight.flip(2) if reverse else self.weight
        y = F.conv2d(m, weight[..., None], self.bias, padding=(k - 1, 0), groups=self.groups)
        y = y[:, :, k - 1 :] if reverse else y[:, :, : input.shape[1]]
        return y.permute(0, 2, 3, 1)[:, :, 0]


class Direction(nn.Module):
    """silu(causal convolution), then the scan, in one direction of the sequence: (B L E) -> (B L E)."""

    def __init__(self, dim: int, rank: int, states: int, kernel: int):
        super().__init__()
        self.conv, self.scan = CausalConv(dim, kernel), SelectiveScan(dim, rank, states)

    def forward(self, x: Tensor, reverse: bool = False, gap: Tensor | None = None) -> Tensor:
        return self.scan(F.silu(self.conv(x, reverse)), reverse, gap)  # type: ignore[no-any-return]


class MambaMixer(nn.Module):
    """out_proj((ahead(x) + back(x)) / 2 * silu(z)) with x, z = in_proj(tokens); `back`, which may be left out, scans
    from the last token to the first with weights of its own. All tokens take part, in the order of the sequence, or
    in that of `Tokens.place`, and then the state decays over what is missing.

    Shows `scan`, which both directions gave, and beside it `back`, which the second gave, and the `gate` z.
    """

    needs_grid, projections = False, ("in_proj", "out_proj")
    offers: tuple[str, ...] = ("scan", "back", "gate")

    def __init__(self, dim: int, states: int, expand: int, kernel: int, both: bool):
        super().__init__()
        inner, rank = expand * dim, -(-dim // 16)
        self.in_proj, self.out_proj = Linear(dim, 2 * inner, bias=False), Linear(inner, dim, bias=False)
        self.ahead = Direction(inner, rank, states, kernel)
        self.back = Direction(inner, rank, states, kernel) if both else None
        if not both:
            self.offers = ("scan",)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        w = Walk() if t.place is None else walk(t.place)
        x, z = self.in_proj(w.along(t.x)).chunk(2, -1)
        y = self.ahead(x, gap=w.before)
        if self.back is not None:
            back = self.back(x, True, w.behind)
            y = (y + back) / 2
            if probe is not None:
                probe["back"], probe["gate"] = w.home(back), w.home(z)
        if probe is not None:
            probe["scan"] = w.home(y)
        return w.home(self.out_proj(y * F.silu(z)))


@dataclass(frozen=True)
class Mamba:
    """A selective state space of `states` numbers a channel over `expand` times the width; `both`: in both directions
    of the sequence."""

    states: int = 16
    expand: int = 2
    kernel: int = 4
    both: bool = True

    def build(self, dim: int, index: int) -> nn.Module:
        if min(self.states, self.expand, self.kernel) < 1:
            raise ValueError(f"Mamba takes states, expand and kernel of at least 1; got {self}")
        return MambaMixer(dim, self.states, self.expand, self.kernel, self.both)
