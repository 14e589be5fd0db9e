"""Layers that keep little: the record of SlimFit's own code, exact forward passes, what is kept, and half precision."""

import pytest
import torch
import torch.nn.functional as F
from golden import golden

from patchloom.kernels import kept, mlp
from patchloom.kernels import linear as linear_kernel
from patchloom.kernels.attend import attend, reference
from patchloom.kernels.linear import linear

RECORD = golden.load("slimfit/functions")


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def bytes_kept(function, *tensors):
    """Of what `function` keeps for the backward pass, beside these tensors themselves."""
    given = {t.untyped_storage().data_ptr() for t in tensors if t is not None}
    found = {}

    def note(t):
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = function(*tensors)
    del y
    return sum(size for place, size in found.items() if place not in given)


# ---- the record


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize(("name", "function"), [("linear", linear), ("linear_q", kept.linear)])
def test_linear_is_the_original(name, function, frozen):
    given, state = RECORD.input(), RECORD.state_dict()
    x, weight, bias = (t.requires_grad_() for t in (given["x"], state[f"{name}.weight"], state[f"{name}.bias"]))
    weight.requires_grad_(not frozen)
    y = function(x, weight, bias)
    y.backward(given["g"])
    stem = f"{name}_frozen" if frozen else name
    found = {"": y, "_grad_x": x.grad, "_grad_bias": bias.grad, "_grad_weight": weight.grad}
    compare(stem, found)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_layer_norm_is_the_original(frozen):
    given, state, config = RECORD.input(), RECORD.state_dict(), RECORD.meta["config"]
    x, weight, bias = (t.requires_grad_() for t in (given["x"], state["norm.weight"], state["norm.bias"]))
    weight.requires_grad_(not frozen)
    y = kept.layer_norm(x, weight, bias, config["layer_norm_eps"], config["norm_kept"])
    y.backward(y.detach().tanh() + 0.1 * x.detach())
    found = {"": y, "_grad_x": x.grad, "_grad_bias": bias.grad, "_grad_weight": weight.grad}
    compare("norm_frozen" if frozen else "norm", found)


def test_gelu_is_the_original():
    x = RECORD.input()["x"].requires_grad_()
    y = kept.gelu(x)
    y.backward(0.5 + 0.1 * x.detach())
    compare("gelu", {"": y, "_grad": x.grad})


def test_attention_is_the_original():
    given = RECORD.input()
    a, b, v = (given[name].requires_grad_() for name in "abv")
    score = kept.matmul(a, b)
    score.backward(given["gm"])
    compare("matmul", {"": score, "_grad_a": a.grad, "_grad_b": b.grad})
    score = score.detach().requires_grad_()
    y = kept.weighed(score, v)
    y.backward(given["gv"])
    compare("attend", {"": y, "_grad_scores": score.grad, "_grad_values": v.grad})


def compare(stem, found):
    named = {stem + end: value for end, value in found.items() if value is not None}
    others = [n for n in RECORD.meta["outputs"] if n.startswith(f"{stem}_grad")]
    assert set(named) == {stem, *others}
    for name, value in named.items():
        RECORD.compare(name, value, 1e-5)


# ---- what is kept


def test_codes_come_back():
    for count in (0, 1, 2, 7, 8):
        x = made(count).detach() * 3
        want = (x * 2).round().clamp(-8, 7) / 2
        assert torch.equal(kept.unpack(kept.pack(x), x), want)
        assert kept.pack(x).nbytes == -(-count // 2)
    far = torch.tensor([-1e9, -8.0, -0.03, 0.04, 7.9, 1e9])
    assert kept.fixed(far, 3, 4).tolist() == [-128, -128, 0, 1, 126, 127]


def test_bytes():
    x, w, b = made(8, 30, 64), made(256, 64, seed=1), made(256, seed=2)
    scale, shift = made(64, seed=3), made(64, seed=4)
    q = made(2, 4, 30, 16)
    n, frozen = x.numel(), w.detach()
    moved = lambda f: lambda t, *rest: f(t * 1, *rest)  # noqa: E731  # so that the input is not there anyway
    assert bytes_kept(moved(kept.linear), x, w, b) == n
    assert bytes_kept(moved(kept.linear), x, frozen, b) == 0
    assert bytes_kept(moved(kept.gelu), x) == n // 2
    deviations = 4 * 8 * 30
    assert bytes_kept(moved(kept.layer_norm), x, scale, shift) == 4 * n + 2 * deviations
    assert bytes_kept(moved(kept.layer_norm), x, scale.detach(), shift) == 8 * (n // 10) + deviations
    keys, values = made(2, 4, 30, 16, seed=1), made(2, 4, 30, 16, seed=2)
    assert bytes_kept(kept.attend, q, keys, values) == 2 * 4 * 30 * (3 * 16 + 30)


def test_frozen_layers_of_the_fast_kernels_keep_no_input(monkeypatch):
    monkeypatch.setattr(linear_kernel, "SMALL", 0)
    x, w1, w2 = made(8, 30, 64), made(256, 64, seed=1), made(64, 256, seed=2)
    b1, b2, gamma = made(256, seed=3), made(64, seed=4), made(64, seed=5)
    n, hidden = 4 * x.numel(), 4 * 8 * 30 * 256
    moved = lambda f: lambda t, *rest: f(t * 1, *rest)  # noqa: E731

    def whole(t, w1, b1, w2, b2, *gamma):
        return mlp.mlp(t, (w1, b1), (w2, b2), None, *gamma)

    assert bytes_kept(moved(linear), x, w1, b1) == n
    assert bytes_kept(moved(linear), x, w1.detach(), b1) == 0
    f1, f2 = w1.detach(), w2.detach()
    assert bytes_kept(moved(whole), x, w1, b1, w2, b2) == n + 2 * hidden
    assert bytes_kept(moved(whole), x, f1, b1, w2, b2) == 2 * hidden
    assert bytes_kept(moved(whole), x, w1, b1, f2, b2) == n + hidden
    assert bytes_kept(moved(whole), x, f1, b1, f2, b2) == hidden
    assert bytes_kept(moved(whole), x.detach(), f1, b1.detach(), w2, b2) == hidden
    scaled = 4 * (w2.numel() + b2.numel())  # W2 and b2 times gamma
    assert bytes_kept(moved(whole), x, f1, b1, f2, b2, gamma.detach()) <= hidden + scaled


# ---- laws


def cases(dtype=torch.float32):
    q, k, v = (made(2, 3, 17, 8, seed=i).detach().to(dtype).requires_grad_() for i in range(3))
    x, w, b = (made(*s, seed=7).detach().to(dtype).requires_grad_() for s in ((2, 5, 24), (24, 24), (24,)))
    bias = made(1, 3, 17, 17, seed=5).detach().to(dtype).requires_grad_()
    return {
        "linear": (kept.linear, F.linear, (x, w, b)),
        "linear without bias": (lambda x, w: kept.linear(x, w), F.linear, (x, w)),
        "layer_norm": (kept.layer_norm, lambda x, w, b: F.layer_norm(x, (24,), w, b), (x, b.detach(), b)),
        "gelu": (kept.gelu, F.gelu, (x,)),
        "attend": (kept.attend, reference, (q, k, v)),
        "attend with bias": (kept.attend, reference, (q, k, v, bias)),
    }


@pytest.mark.parametrize("name", cases())
def test_forward_is_exact_and_gradients_are_near(name):
    ours, plain, given = cases()[name]
    got, want = ours(*given), plain(*given)
    torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(ours(*given), want)
    leaves = [t for t in given if t.requires_grad]
    dy = made(*want.shape, seed=9).detach()
    for a, b in zip(torch.autograd.grad(got, leaves, dy), torch.autograd.grad(want, leaves, dy), strict=True):
        assert torch.cosine_similarity(a.flatten(), b.flatten(), 0) > (0.85 if name == "layer_norm" else 0.98)


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(name, autocast):
    """Types are those of the plain function; the error is at most twice its own."""
    ours, plain, given = cases(torch.float32 if autocast else torch.bfloat16)[name]
    wide = [t.detach().double().requires_grad_(t.requires_grad) for t in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got, want = ours(*given), plain(*given)
    assert got.dtype == want.dtype
    truth = ours(*wide)
    dy = made(*want.shape, seed=9).detach()

    def errors(y, given):
        leaves = [t for t in given if t.requires_grad]
        found = [y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))]
        assert [g.dtype for g in found[1:]] == [t.dtype for t in leaves]
        grads = torch.autograd.grad(truth, [t for t in wide if t.requires_grad], dy.double(), retain_graph=True)
        return [
            float((a.double() - b).detach().norm() / b.detach().norm())
            for a, b in zip(found, (truth, *grads), strict=True)
        ]

    ours_far, plain_far = errors(got, given), errors(want, given)
    assert ours_far[0] <= 2 * plain_far[0] + 1e-6
    assert all(far < 0.05 for far in ours_far[1:])  # from the same function in float64, which keeps as few bits


def test_frozen_parts_keep_nothing_for_them():
    q, k, v = (made(1, 2, 5, 8, seed=i) for i in range(3))
    for frozen in range(3):
        given = [t.detach().requires_grad_(i != frozen) for i, t in enumerate((q, k, v))]
        kept.attend(*given).sum().backward()
        assert [t.grad is None for t in given] == [i == frozen for i in range(3)]
    x, w, b = made(4, 6).detach(), made(3, 6, seed=1).detach(), made(3, seed=2)
    kept.linear(x, w, b).sum().backward()
    assert torch.equal(b.grad, torch.full((3,), 4.0))
    assert bytes_kept(kept.layer_norm, x, torch.ones(6), b.detach().new_zeros(6).requires_grad_()) == 0


def test_masks():
    q, k, v = (made(2, 2, 7, 8, seed=i) for i in range(3))
    mask = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[0, 0, 2] = False
    y = kept.attend(q, k, v, mask)
    torch.testing.assert_close(y, attend(q, k, v, mask))
    assert torch.equal(y[0, :, 2], torch.zeros(2, 8))
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), (q, k, v)))
    torch.testing.assert_close(kept.attend(q, k, v, scale=1.0), attend(q, k, v, scale=1.0))


def test_compiled():
    def block(x, w, b, q, k, v):
        y = kept.layer_norm(kept.gelu(kept.linear(x, w, b)), b.detach(), b)
        return y.sum() + kept.attend(q, k, v).square().sum()

    given = (*cases()["linear"][2], *cases()["attend"][2])
    want = torch.autograd.grad(block(*given), given)
    got = torch.autograd.grad(torch.compile(block, backend="aot_eager", fullgraph=True)(*given), given)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("name", cases())
def test_on_a_gpu(name):
    ours, _, given = cases()[name]
    there = [t.detach().cuda().requires_grad_(t.requires_grad) for t in given]
    want, got = ours(*given), ours(*there)
    dy = made(*want.shape, seed=9).detach()
    grads = torch.autograd.grad(want, [t for t in given if t.requires_grad], dy)
    theirs = torch.autograd.grad(got, [t for t in there if t.requires_grad], dy.cuda())
    for a, b in zip((got, *theirs), (want, *grads), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-3)
