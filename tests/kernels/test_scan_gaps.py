"""A scan over what is left of a sequence is the scan of all of it, whose inputs are zero where tokens are missing."""

import pytest
import torch

from patchloom.kernels import selective_scan as s6
from patchloom.kernels.native import compiler

FORMS = ["reference", "chunked", *(["native"] if compiler() else [])]
LENGTH, CHANNELS, STATES, GROUPS = 90, 20, 5, 2


def inputs(dtype, length=LENGTH, states=STATES):
    g = torch.Generator().manual_seed(0)
    r = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    return {
        "u": r(2, length, CHANNELS), "delta": r(2, length, CHANNELS), "A": -(r(CHANNELS, states).abs() + 0.1),
        "B": r(2, length, GROUPS, states), "C": r(2, length, GROUPS, states), "D": r(CHANNELS),
        "delta_bias": r(CHANNELS), "state": r(2, CHANNELS, states), "idle": r(CHANNELS),
    }  # fmt: skip


def some(keep, length=LENGTH):
    """Which places each of two images keeps (2 K), rising."""
    g = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(length, generator=g)[:keep].sort().values for _ in range(2)])


def missing(at, length, reverse):
    """How many places are missing before each (in reverse: behind it), the sequence's ends included."""
    end = torch.full((2, 1), length if reverse else -1)
    all_ = torch.cat([at, end] if reverse else [end, at], 1)
    return all_.diff(dim=1) - 1


def rows(x, at):
    return x.gather(1, at.view(2, -1, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))


def graded(function, given):
    """What function(**given) gives, and the gradients of a weighing of it."""
    leaves = {k: v.clone().requires_grad_() for k, v in given.items()}
    y = function(**leaves)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y, dict(zip(leaves, torch.autograd.grad((y * weights).sum(), list(leaves.values())), strict=True))


def dense(at, reverse, softplus=True):
    """The scan over all places, with nothing where none of `at` is: there u is 0 and delta is idle."""

    def scan(u, delta, idle, **given):
        there = torch.zeros(2, LENGTH, 1, dtype=torch.bool).scatter(1, at[..., None], True)
        u, delta = u.where(there, 0), delta.where(there, idle)
        y = s6.selective_scan(u, delta, **given, reverse=reverse, softplus=softplus, backend="reference")
        return rows(y, at)

    return scan


def gapped(at, reverse, form, softplus=True):
    """The scan over the places `at` alone."""

    def scan(u, delta, B, C, **given):
        u, delta, B, C = (rows(t, at) for t in (u, delta, B, C))
        gap = missing(at, LENGTH, reverse)
        return s6.selective_scan(u, delta, B=B, C=C, **given, gap=gap, reverse=reverse, softplus=softplus, backend=form)

    return scan


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("keep", [1, 33, 70])
def test_a_scan_over_gaps_is_that_of_the_whole_sequence(form, keep, reverse):
    at, dtype = some(keep), torch.float32 if form == "native" else torch.float64
    want, slopes = graded(dense(at, reverse), inputs(torch.float64))
    got, gradients = graded(gapped(at, reverse, form), inputs(dtype))
    far = 2e-5 if form == "native" else 1e-10
    assert (got - want).abs().max() < far * want.abs().max()
    for name, slope in slopes.items():
        assert (gradients[name] - slope).abs().max() <= 5 * far * slope.abs().max(), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("states", [1, 16])  # for which there is code of their own
def test_no_gaps_are_no_gaps(form, states):
    given = inputs(torch.float32, states=states)
    idle = given.pop("idle")
    want, slopes = graded(lambda **x: s6.selective_scan(**x, backend=form), given)
    none = {"gap": torch.zeros(2, LENGTH), "idle": idle}
    got, gradients = graded(lambda **x: s6.selective_scan(**x, **none, backend=form), given)
    assert torch.equal(got, want)
    torch.testing.assert_close(gradients, slopes)


@pytest.mark.parametrize("form", FORMS)
def test_steps_of_size_nought_are_no_trouble(form):
    """softplus gives an exact 0 from about -104 on."""
    given = inputs(torch.float32)
    given["delta"][:, ::3] = -1000
    at = some(30)
    for reverse in (False, True):
        got, gradients = graded(gapped(at, reverse, form), given)
        torch.testing.assert_close(got, dense(at, reverse)(**given), rtol=1e-4, atol=1e-4)
        assert all(g.isfinite().all() for g in gradients.values())


def test_idle_is_a_size_where_delta_is():
    at, given = some(30), inputs(torch.float64)
    given = {k: v.abs() if k in ("delta", "idle", "delta_bias") else v for k, v in given.items()}
    got = gapped(at, False, "chunked", softplus=False)(**given)
    torch.testing.assert_close(got, dense(at, False, softplus=False)(**given))


def test_gaps_and_their_size_come_together():
    given = inputs(torch.float32)
    idle = given.pop("idle")
    with pytest.raises(ValueError, match="give both"):
        s6.selective_scan(**given, idle=idle)
    with pytest.raises(ValueError, match=r"gap is \(2, 3\), .* must be \(2, 90\)"):
        s6.selective_scan(**given, idle=idle, gap=torch.zeros(2, 3))
