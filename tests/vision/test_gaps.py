"""Maps with gaps: scans of tokens that are left, against the masked model, whose tokens stay as zeros."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from plugin_parts import disturbed
from torch import nn

from patchloom.kernels.selective_scan import selective_scan
from patchloom.vision.gaps import among_zeros, standing, walk
from patchloom.vision.mixers.continuous_scan import Continuous
from patchloom.vision.mixers.cross_scan import Cross
from patchloom.vision.mixers.mamba import Mamba
from patchloom.vision.orders import snakes
from patchloom.vision.tokens import Tokens, rows


class AmongZeros(nn.Module):
    """The convolution that sees zeros where nothing is, and says nothing there."""

    def __init__(self, conv, there):
        super().__init__()
        self.conv, self.there = conv, there  # B 1 H W

    def forward(self, m):
        return self.conv(m * self.there) * self.there


def thinned(grid=(5, 7), keep=12, dim=16):
    """All tokens with anything at all in what is not kept, those that are kept, and where they are (B K)."""
    g = torch.Generator().manual_seed(0)
    n = grid[0] * grid[1]
    at = torch.stack([torch.randperm(n, generator=g)[:keep].sort().values for _ in range(2)])
    x = torch.randn(2, n, dim, generator=g).double()
    source = torch.full((2, n), -1).scatter(1, at, torch.arange(keep).expand(2, -1))
    whole = Tokens(x, grid)
    return whole, Tokens(rows(x, at), None, source=source, full=grid, place=at), at


@pytest.mark.parametrize("spec", [Cross(4), Cross(1, 2.0, False, False)])
def test_a_cross_scan_over_gaps_is_the_masked_one(spec):
    torch.manual_seed(0)
    mixer = disturbed(spec.build(16, 0)).double()
    whole, thin, at = thinned()
    shown, wanted = {}, {}
    got = mixer(thin, shown)
    gradients = torch.autograd.grad(got.square().sum(), list(mixer.parameters()))
    mixer.conv = AmongZeros(mixer.conv, among_zeros(torch.ones(2, 12, 1).double(), at, 35).view(2, 1, 5, 7))
    want = rows(mixer(whole, wanted), at)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(shown["scan"], rows(wanted["scan"], at))
    for a, b in zip(gradients, torch.autograd.grad(want.square().sum(), list(mixer.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_a_continuous_scan_over_gaps_walks_the_whole_map():
    """One image after another, one snake after another, all of its steps."""
    torch.manual_seed(0)
    mixer = disturbed(Continuous().build(16, 0)).double()
    _, thin, at = thinned()
    shown = {}
    got = mixer(thin, shown)
    conv = AmongZeros(mixer.conv, among_zeros(torch.ones(2, 12, 1).double(), at, 35).view(2, 1, 5, 7))
    x, z = mixer.in_proj(thin.x).chunk(2, -1)
    u = F.silu(conv(among_zeros(x, at, 35).view(2, 5, 7, -1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).flatten(1, 2)
    want = []
    for i in range(2):
        mine = u[i, at[i]]
        d, b, c = mixer.x_proj(mine).split([mixer.rank, mixer.states, mixer.states], -1)
        delta = F.softplus(mixer.dt_proj(d).float() + mixer.dt_proj.bias.float()).double()
        y = 4 * mixer.D * mine
        for path, codes in snakes(5, 7):
            path, codes = torch.from_numpy(path), torch.from_numpy(codes)
            steps = torch.isin(path, at[i]).nonzero()[:, 0]  # on which of the 35 the walk meets a token that is there
            size = F.softplus(2 * mixer.dt_proj.bias.float()).double().repeat(35, 1).index_put((steps,), delta)
            into, out = (torch.zeros(35, mixer.states).double().index_put((steps,), v) for v in (b, c))
            into = into + mixer.directions[codes]
            along = u[i, path]  # zeros where nothing is
            walked = selective_scan(
                along[None], size[None], -mixer.A_log.float().exp(), into[None], out[None], softplus=False,
                backend="reference",
            )[0]  # fmt: skip
            y = y + torch.zeros_like(walked).index_put((path,), walked)[at[i]]
        want.append(y)
    torch.testing.assert_close(shown["scan"], torch.stack(want))
    torch.testing.assert_close(got, mixer.out_proj(torch.stack(want) * F.silu(z)))


@pytest.mark.parametrize("spec", [Cross(4), Continuous()])
def test_all_patches_in_their_order_are_the_map(spec):
    torch.manual_seed(0)
    mixer = disturbed(spec.build(16, 0))
    x, every = torch.randn(2, 35, 16), torch.arange(35).expand(2, -1)
    want = mixer(Tokens(x, (5, 7)))
    for place in (every, None):
        torch.testing.assert_close(mixer(Tokens(x, None, source=every, full=(5, 7), place=place)), want)


@pytest.mark.parametrize("spec", [Mamba(), Cross(4), Continuous()])
def test_closed_gaps_are_another_thing(spec):
    torch.manual_seed(0)
    mixer = disturbed(spec.build(16, 0)).double()
    _, thin, _ = thinned()
    assert not torch.allclose(mixer(thin), mixer(replace(thin, place=None)))


def test_places_on_a_walk():
    source = torch.tensor([[-1, 0, -1, 1, 2, -1], [0, -1, 1, -1, -1, 2]])
    assert standing(source, 3).tolist() == [[1, 3, 4], [0, 2, 5]]
    w = walk(torch.tensor([[4, 1, 9], [0, 7, 2]]))
    assert w.order.tolist() == [[1, 0, 2], [0, 2, 1]]
    assert w.before.tolist() == [[0, 2, 4], [0, 1, 4]]
    assert w.behind.tolist() == [[2, 4, 0], [1, 4, 0]]
    x = torch.randn(2, 3, 1)
    assert torch.equal(w.home(w.along(x)), x)
