"""The fast CPU forms of linear layers, StarReLU and pooling equal their references, first and second gradients too."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchloom.kernels import linear as linear_kernel
from patchloom.kernels import mlp as mlp_kernel
from patchloom.kernels import pool, star_relu, windows
from patchloom.kernels.attend import backend
from patchloom.kernels.linear import linear
from patchloom.vision.layers import Linear, Mlp

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def small_products_are_not_left_to_the_reference(monkeypatch):
    monkeypatch.setattr(linear_kernel, "SMALL", 0)


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def same(got, want, inputs):
    torch.testing.assert_close(got, want, **CLOSE)
    dy = torch.randn(want.shape, generator=torch.Generator().manual_seed(9))
    for a, b in zip(torch.autograd.grad(got, inputs, dy), torch.autograd.grad(want, inputs, dy), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("shape", [(1, 5), (3, 17, 5), (2, 3, 7, 5), (5,)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_linear(shape, biased, gelu):
    x, w, b = made(*shape), made(9, 5, seed=1), made(9, seed=2) if biased else None
    inputs = [t for t in (x, w, b) if t is not None]
    same(linear(x, w, b, gelu=gelu), linear_kernel.reference(x, w, b, gelu=gelu), inputs)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, w, b, gelu=gelu), linear_kernel.reference(x, w, b, gelu=gelu), **CLOSE)


def test_linear_of_views_that_are_not_contiguous():
    x, w = made(4, 6, 5).transpose(0, 1), made(5, 9, seed=1).t()
    same(linear(x, w), linear_kernel.reference(x, w), [x, w])


def test_linear_is_twice_differentiable():
    x, w = made(4, 5).double().detach().float().requires_grad_(), made(3, 5, seed=1)
    g = torch.autograd.grad(linear(x, w).square().sum(), x, create_graph=True)[0]
    h = torch.autograd.grad(linear_kernel.reference(x, w).square().sum(), x, create_graph=True)[0]
    same(g, h, [x, w])


def test_linear_of_nothing():
    assert linear(torch.zeros(0, 5), torch.zeros(3, 5)).shape == (0, 3)


def test_frozen_weights_get_no_gradient_and_pass_one_on():
    x, w = made(4, 5), made(3, 5, seed=1).detach()
    torch.testing.assert_close(torch.autograd.grad(linear(x, w).sum(), x)[0], w.sum(0).expand(4, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_take_the_reference(dtype):
    x, w = made(4, 5).to(dtype), made(3, 5, seed=1).to(dtype)
    assert torch.equal(linear(x, w), torch.nn.functional.linear(x, w))


def test_operators_are_seen_by_who_records_them():
    layer, x = Linear(8, 16), made(4, 8)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 4 * 8 * 16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert torch.equal(torch.func.functional_call(layer, dict(layer.named_parameters()), x), layer(x))


def test_vmap_and_export_see_a_plain_layer():
    layer, x = Linear(8, 16).eval(), made(3, 4, 8).detach()
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x), **CLOSE)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x), **CLOSE)


@torch.no_grad()
def test_a_hook_or_another_layer_in_fc1_is_not_passed_by():
    mlp, x, seen = Mlp(8, 16).eval(), made(4, 8), []
    want = mlp(x)
    mlp.fc1.register_forward_hook(lambda m, i, o: seen.append(o))
    torch.testing.assert_close(mlp(x), want, **CLOSE)
    torch.testing.assert_close(seen[0], torch.nn.functional.linear(x, mlp.fc1.weight, mlp.fc1.bias), **CLOSE)
    mlp.fc1 = torch.nn.Sequential(mlp.fc1)
    torch.testing.assert_close(mlp(x), want, **CLOSE)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (1, 1, 1)], ids=str)
def test_star_relu(shape):
    x, s, b = made(*shape), torch.tensor([1.3], requires_grad=True), torch.tensor([-0.2], requires_grad=True)
    same(star_relu.star_relu(x, s, b), star_relu.reference(x, s, b), [x, s, b])
    with torch.no_grad():
        torch.testing.assert_close(star_relu.star_relu(x, s, b), star_relu.reference(x, s, b))


@pytest.mark.parametrize("shape", [(2, 7, 9, 5), (1, 1, 1, 3), (1, 2, 5, 8), (3, 1, 6, 16)], ids=str)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_pool(shape, size):
    m = made(*shape)
    same(pool.pool_minus_identity(m, size), pool.reference(m, size), [m])
    with torch.no_grad():
        torch.testing.assert_close(pool.pool_minus_identity(m, size), pool.reference(m, size), **CLOSE)


@pytest.mark.parametrize("rows", [(3, 5), (1, 7), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("act", ["gelu", "star", "tanh"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("numbers", [mlp_kernel.SLICE, 40])
def test_mlp(rows, act, biased, scaled, numbers, monkeypatch):
    monkeypatch.setattr(mlp_kernel, "SLICE", numbers)
    x, w1, w2 = made(*rows, 6), made(16, 6, seed=1), made(9, 16, seed=2)
    b1, b2 = (made(16, seed=3), made(9, seed=4)) if biased else (None, None)
    s = (torch.tensor([1.3], requires_grad=True), torch.tensor([-0.2], requires_grad=True)) if act == "star" else None
    g = made(9, seed=5) if scaled else None
    more = (s, g, act == "tanh")
    inputs = [t for t in (x, w1, w2, b1, b2, g, *(s or ())) if t is not None]
    same(mlp_kernel.mlp(x, (w1, b1), (w2, b2), *more), mlp_kernel.reference(x, (w1, b1), (w2, b2), *more), inputs)
    with torch.no_grad():
        got = mlp_kernel.mlp(x, (w1, b1), (w2, b2), *more)
        torch.testing.assert_close(got, mlp_kernel.reference(x, (w1, b1), (w2, b2), *more), **CLOSE)


@pytest.mark.parametrize("frozen", range(6))
def test_mlp_gives_the_gradients_that_are_wanted(frozen):
    inputs = [made(3, 6), made(16, 6, seed=1), made(16, seed=3), made(9, 16, seed=2), made(9, seed=4), made(9, seed=5)]
    inputs[frozen].requires_grad_(False)
    x, w1, b1, w2, b2, g = inputs
    wanted = [t for t in inputs if t.requires_grad]
    same(mlp_kernel.mlp(x, (w1, b1), (w2, b2), None, g), mlp_kernel.reference(x, (w1, b1), (w2, b2), None, g), wanted)


@pytest.mark.parametrize(("shape", "size"), [((2, 4, 6), 2), ((1, 7, 7), 7), ((3, 8, 4), 4)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_windows(shape, size, masked):
    b, h, w = shape
    qkv = made(b, h, w, 3 * 2 * 5)
    bias = made(h * w // size**2 if masked else 1, 2, size**2, size**2, seed=1)
    same(windows.attend_windows(qkv, bias, 2, size), windows.reference(qkv, bias, 2, size), [qkv, bias])
    with torch.no_grad():
        got = windows.attend_windows(qkv, bias, 2, size)
        torch.testing.assert_close(got, windows.reference(qkv, bias, 2, size), **CLOSE)


def test_windows_keep_to_a_back_end_that_was_chosen():
    qkv, bias = made(1, 4, 4, 12), made(1, 2, 4, 4)
    with backend("reference"):
        assert torch.equal(windows.attend_windows(qkv, bias, 2, 2), windows.reference(qkv, bias, 2, 2))


@pytest.mark.parametrize("by", [-3, -1, 0, 2])
def test_roll(by):
    m = made(2, 5, 7, 3)
    assert torch.equal(windows.roll(m, by), m.roll((by, by), (1, 2)))
    same(windows.roll(m, by), m.roll((by, by), (1, 2)), [m])


def error(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def as_close_as_the_reference(fast, plain, inputs):
    """The fast form under autocast is not further from float64 than the reference under autocast is."""
    exact = plain(*[t.double() for t in inputs])
    dy = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9))
    want = torch.autograd.grad(exact, inputs, dy.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fast(*inputs), plain(*inputs)
    assert error(ours, exact) < 1.5 * error(theirs, exact) + 1e-3
    assert ours.dtype == theirs.dtype
    for a, b, w in zip(*(torch.autograd.grad(y, inputs, dy.to(y.dtype)) for y in (ours, theirs)), want, strict=True):
        assert a.dtype == b.dtype
        assert error(a, w) < 1.5 * error(b, w) + 1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_windows_under_autocast(masked):
    bias = made(4 if masked else 1, 2, 16, 16, seed=1)
    qkv = made(2, 8, 8, 3 * 2 * 8)

    def half(form):
        return lambda qkv, bias: form(qkv if qkv.dtype is torch.float64 else qkv.bfloat16(), bias, 2, 4)

    as_close_as_the_reference(half(windows.attend_windows), half(windows.reference), [qkv, bias])
    with torch.autocast("cpu", torch.bfloat16):
        y = windows.attend_windows(qkv.bfloat16(), bias, 2, 4)
    assert "Windows" in y.grad_fn.name()


def test_star_relu_under_autocast():
    x, s, b = made(3, 50), torch.tensor([1.3], requires_grad=True), torch.tensor([-0.2], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = star_relu.star_relu(x.bfloat16(), s, b)
    assert "StarReLU" in y.grad_fn.name()
    exact = star_relu.reference(x.double(), s.double(), b.double())
    assert error(y, exact) < 1e-2
    dy = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9))
    got, want = (torch.autograd.grad(o, [x, s, b], dy.to(o.dtype)) for o in (y, exact))
    for a, w in zip(got, want, strict=True):
        assert a.dtype is torch.float32
        assert error(a, w) < (1e-2 if a.numel() > 1 else 5e-2)  # a sum of rounded numbers of both signs
    half_x, half_s, half_b = (t.detach().bfloat16() for t in (x, s, b))
    got = star_relu.star_relu(half_x, half_s, half_b)
    assert got.dtype is torch.bfloat16
    assert error(got, star_relu.reference(half_x.double(), half_s.double(), half_b.double())) < 1e-2
