"""Non-causal state space duality (VSSD, https://arxiv.org/abs/2407.18559): every token writes to one state and reads
it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.ssd import noncausal_ssd
from ..layers import Linear
from ..tokens import Probe, Tokens
from .convolution import convolve
from .mamba import initial_step_sizes


class NoncausalSSD(nn.Module):
    """z, xBC, dt = in_proj(tokens); xBC through a depthwise 3x3 convolution and SiLU; the duality over all tokens, a
    norm, times z, and out_proj. There is no order of the tokens, so no scan order either."""

    needs_grid, offers, projections = True, (), ("in_proj", "out_proj")

    def __init__(self, dim: int, heads: int, states: int, expand: int):
        super().__init__()
        inner = expand * dim
        if inner % heads:
            raise ValueError(f"{expand} times {dim} channels do not divide into {heads} heads")
        self.heads, self.widths = heads, (inner, states, states)
        self.in_proj, self.out_proj = (
            Linear(dim, 2 * (inner + states) + heads, bias=False),
            Linear(inner, dim, bias=False),
        )
        seen = inner + 2 * states
        self.conv = nn.Conv2d(seen, seen, 3, padding=1, groups=seen)
        self.norm = nn.LayerNorm(inner)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        initial_step_sizes(self.dt_bias)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        inner, states, _ = self.widths
        z, m, dt = torch.split(self.in_proj(t.map()), [inner, inner + 2 * states, self.heads], -1)
        x, b, c = torch.split(F.silu(convolve(self.conv, m)).flatten(1, 2), list(self.widths), -1)
        y = noncausal_ssd(x.reshape(*x.shape[:2], self.heads, -1), dt.flatten(1, 2), -self.A_log.float().exp(),
                          b[:, :, None], c[:, :, None], self.D, self.dt_bias)  # fmt: skip
        return self.out_proj(self.norm(y.flatten(2)) * z.flatten(1, 2))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Duality:
    """Non-causal state space duality with `heads` heads and a state of `states` numbers, over `expand` times the
    width."""

    heads: int
    states: int = 64
    expand: int = 2

    def build(self, dim: int, index: int) -> nn.Module:
        return NoncausalSSD(dim, self.heads, self.states, self.expand)
