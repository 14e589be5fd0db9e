"""Deformable attention: every form against the reference, in value and gradient; samples outside; wrong input."""

import pytest
import torch

from patchloom.kernels.deformable import BACKENDS, deformable

CASES = {"levels": [(5, 7), (9, 4), (3, 3)], "one": [(6, 11)], "pixel": [(1, 1), (2, 1)]}
FAST = sorted(set(BACKENDS) - {"reference"})


def inputs(shapes, dtype=torch.float64, images=2, queries=17, heads=3, width=5, samples=4):
    g = torch.Generator().manual_seed(0)
    n, size = sum(y * x for y, x in shapes), (images, queries, heads, len(shapes), samples)
    value = torch.randn(images, n, heads, width, generator=g, dtype=torch.float64)
    places = torch.rand(*size, 2, generator=g, dtype=torch.float64) * 1.6 - 0.3  # a good part of them outside
    weights = torch.randn(size, generator=g, dtype=torch.float64)
    return [t.to(dtype).requires_grad_() for t in (value, places, weights)]


def run(form, shapes, inputs):
    y = deformable(inputs[0], shapes, inputs[1], inputs[2], backend=form)
    return [y, *torch.autograd.grad((y.double() * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum(), inputs)]


def distance(got, want):
    return float(((got.double() - want.double()).abs().max() / want.double().abs().max()).detach())


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
@pytest.mark.parametrize("form", FAST)
def test_forms_give_what_the_reference_gives(form, shapes):
    for got, want in zip(run(form, shapes, inputs(shapes)), run("reference", shapes, inputs(shapes)), strict=True):
        assert got.shape == want.shape
        assert distance(got, want) < 1e-12


@pytest.mark.parametrize("queries", [1, 17, 63])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FAST)
def test_short_types_are_as_near_as_the_reference_in_them(form, dtype, queries):
    shapes = CASES["levels"]
    short = inputs(shapes, dtype, queries=queries)
    truth = run("reference", shapes, [t.detach().double().requires_grad_() for t in short])
    for got, own, want in zip(run(form, shapes, short), run("reference", shapes, short), truth, strict=True):
        assert got.dtype == own.dtype
        assert distance(got, want) <= 2 * distance(own, want) + 1e-6


def test_the_gather_s_gradient_is_that_of_its_value():
    shapes = [(3, 4), (2, 2)]
    x = inputs(shapes, images=1, queries=3, heads=2, width=2, samples=2)
    assert torch.autograd.gradcheck(lambda v, p, w: deformable(v, shapes, p, w, backend="gather"), x)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_takes_no_gradient_gets_none(frozen):
    shapes = CASES["levels"]
    x = inputs(shapes)
    x[frozen].requires_grad_(False)
    wanted = [t for t in x if t.requires_grad]
    got, want = (torch.autograd.grad(deformable(x[0], shapes, x[1], x[2], backend=f).square().sum(), wanted)
                 for f in ("gather", "reference"))  # fmt: skip
    assert all(distance(g, w) < 1e-12 for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("form", BACKENDS)
def test_a_pixel_s_centre_gives_the_pixel_and_the_outside_nothing(form):
    value = torch.arange(1.0, 13).view(1, 12, 1, 1)
    centres = torch.stack(torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(4) + 0.5) / 4, indexing="ij"), -1)
    places = centres.flip(-1).reshape(1, 12, 1, 1, 1, 2)
    one = torch.ones(1, 12, 1, 1, 1)
    torch.testing.assert_close(deformable(value, [(3, 4)], places, one, backend=form)[..., 0], value[..., 0, 0])
    for far in (-0.2, 1.3, -1e9, 1e9):
        assert not deformable(value, [(3, 4)], places * 0 + far, one, backend=form).any()


@pytest.mark.parametrize("form", ["reference", "gather"])
def test_what_is_not_a_number_stays_so(form):
    value, places, weights = inputs(CASES["one"])
    with torch.no_grad():
        places[0, 0] = torch.nan
        y = deformable(value, CASES["one"], places, weights, backend=form)
    assert y[0, 0].isnan().all()
    assert y[0, 1:].isfinite().all()


def test_it_exports():
    class Model(torch.nn.Module):
        def forward(self, v, p, w):
            return deformable(v, CASES["levels"], p, w)

    x = tuple(t.detach() for t in inputs(CASES["levels"], torch.float32))
    torch.testing.assert_close(torch.export.export(Model(), x).module()(*x), Model()(*x), rtol=1e-4, atol=1e-5)


def test_wrong_input_is_named():
    value, places, weights = inputs(CASES["one"])
    with pytest.raises(ValueError, match="value has 66 places"):
        deformable(value, [(6, 10)], places, weights)
    with pytest.raises(ValueError, match="locations"):
        deformable(value, CASES["one"], places[:, :, :2], weights)
    with pytest.raises(ValueError, match="weights"):
        deformable(value, CASES["one"], places, weights[..., :1])
    with pytest.raises(ValueError, match="'cuda' is not known"):
        deformable(value, CASES["one"], places, weights, backend="cuda")
