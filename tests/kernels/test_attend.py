import contextvars
import sys
import threading
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchloom.kernels import attend as door
from patchloom.kernels.attend import attend, backend, composed, reference

TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 2e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-10}}
KINDS = ("none", "bool", "keys", "float", "table", "three", "infinite")


def made(n, m, kind="none", b=2, h=3, d=8, dtype=torch.float32, **to):
    """q, k, v and a bias of that kind; of the masked ones, row 0 hides every key."""
    g = torch.Generator().manual_seed(n * 100 + m)
    q, k, v = (torch.randn(b, h, x, d, generator=g).to(dtype=dtype, **to).requires_grad_() for x in (n, m, m))
    shapes = {"bool": (b, 1, n, m), "keys": (b, 1, 1, m), "float": (b, h, n, m), "table": (1, h, n, m),
              "three": (h, n, m), "infinite": (1, h, n, m)}  # fmt: skip
    if kind == "none":
        return q, k, v, None
    bias = torch.randn(shapes[kind], generator=g).to(**to)
    if kind == "bool":
        seen = bias > -0.3
        seen[..., 0, :] = False
        return q, k, v, seen
    bias = bias.to(dtype)
    if kind == "infinite":
        bias[..., 0, :] = -torch.inf
        bias[:, 0, :, m // 2] = -torch.inf
    return q, k, v, bias.requires_grad_()


def results(function, q, k, v, bias, **options) -> list[Tensor]:
    """The output and its gradients."""
    y = function(q, k, v, bias, **options)
    leaves = [x for x in (q, k, v, bias) if x is not None and x.requires_grad]
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64, device=y.device).view(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad((y * weight).sum(), leaves)]


def truth(q, k, v, bias=None, *, causal=False, scale=None) -> Tensor:
    """The definition in loops over rows, in float64."""
    (b, h, n, d), m = q.shape, k.shape[2]
    y = torch.zeros(b, h, n, v.shape[-1], dtype=torch.float64)
    for i in range(n):
        score = torch.einsum("bhd,bhmd->bhm", q[:, :, i].double(), k.double()) * (d**-0.5 if scale is None else scale)
        if bias is not None:
            row = bias.expand(b, h, n, m)[:, :, i]
            score = score.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else score + row.double()
        if causal:
            score[..., max(0, i + m - n + 1) :] = -torch.inf
        some = (score > -torch.inf).any(-1)
        weight = torch.zeros_like(score)
        weight[some] = score[some].softmax(-1)
        y[:, :, i] = torch.einsum("bhm,bhmd->bhd", weight, v.double())
    return y


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (17, 17), (5, 9), (9, 5), (1, 6), (3, 0)])
def test_reference_is_the_definition(n, m, kind, causal):
    q, k, v, bias = made(n, m, "none" if m == 0 else kind)
    with torch.no_grad():
        torch.testing.assert_close(reference(q, k, v, bias, causal=causal, scale=0.4).double(),
                                   truth(q, k, v, bias, causal=causal, scale=0.4), rtol=1e-5, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (17, 17), (63, 63), (17, 63), (63, 17), (1, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sdpa_equals_the_reference(n, m, kind, causal, dtype):
    args = made(n, m, kind, dtype=dtype)
    for got, want in zip(results(attend, *args, causal=causal), results(reference, *args, causal=causal), strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["keys", "float", "table", "three", "infinite"])
@pytest.mark.parametrize("grad", [False, True])
def test_window_attention_with_a_bias(kind, grad):
    """Enough scores for `composed`; grouped batches, and queries that are views of a qkv projection."""
    q, k, v, bias = made(49, 49, kind, b=8)
    bias = bias.detach().requires_grad_(grad)
    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v))
    for got, want in zip(results(attend, q, k, v, bias), results(reference, q, k, v, bias), strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE[torch.float32])


def test_composed_is_taken_where_it_pays(monkeypatch):
    taken: list[str] = []
    monkeypatch.setattr(door, "composed", lambda *a: taken.append("composed") or composed(*a))
    q, k, v, bias = made(49, 49, "table", b=8)
    attend(q, k, v, bias)
    assert taken == ["composed"]
    attend(*made(17, 17, "table"))  # too few scores
    attend(*made(49, 49, "infinite", b=8))  # empty rows
    attend(*made(49, 49, "bool", b=8))
    attend(q, k, v, bias, dropout=0.5)
    monkeypatch.setattr(door, "COMPOSED", range(1000))
    attend(q, k, v, bias)  # too many
    assert taken == ["composed"]


@pytest.mark.parametrize("name", ["reference", "sdpa"])
@pytest.mark.parametrize("kind", ["bool", "infinite"])
def test_empty_rows_are_zero_and_pass_no_gradient(name, kind):
    for n, m in ((17, 17), (63, 1100)):  # 1100: more than one block of keys in the fused kernel
        q, k, v, bias = made(n, m, kind)
        if kind == "infinite":
            bias = bias.detach()  # the fused kernel's own path
        y, dq, dk, dv = results(attend, q, k, v, bias, backend=name)
        assert not y[:, :, 0].any()
        assert not dq[:, :, 0].any()
        assert all(torch.isfinite(x).all() for x in (y, dq, dk, dv))
    q, k, v, _ = made(7, 3)
    y, dq, *_ = results(attend, q, k, v, None, causal=True, backend=name)
    assert not torch.cat([y, dq], 1)[:, :, :4].any()
    assert y[:, :, 4:].all()
    nothing = made(5, 4)
    y, *grads = results(attend, *nothing[:3], torch.zeros(5, 4, dtype=torch.bool), backend=name)
    assert not any(x.any() for x in (y, *grads))


def test_opened_rows_give_the_same(monkeypatch):
    """What devices other than CPUs do to a mask, tried here."""
    for kind in ("bool", "infinite"):
        q, k, v, bias = made(9, 9, kind)

        def opened(q, k, v, bias):
            wide, empty = door.open_rows(bias)
            assert not (wide == (False if wide.dtype == torch.bool else -torch.inf)).all(-1).any()
            return F.scaled_dot_product_attention(q, k, v, wide).masked_fill(empty, 0)

        for got, want in zip(results(opened, q, k, v, bias), results(reference, q, k, v, bias), strict=True):
            torch.testing.assert_close(got, want, **TOLERANCE[torch.float32])


def test_causal_counts_from_the_end_as_a_cache_does():
    q, k, v, _ = made(7, 7)
    whole = attend(q, k, v, causal=True)
    for backed in ("reference", "sdpa"):
        torch.testing.assert_close(attend(q[:, :, -1:], k, v, causal=True, backend=backed), whole[:, :, -1:])
        torch.testing.assert_close(attend(q[:, :, 4:], k, v, causal=True, backend=backed), whole[:, :, 4:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["none", "bool", "keys", "table"])
@pytest.mark.parametrize(("n", "b"), [(1, 2), (17, 2), (63, 2), (63, 8)])
def test_half_precision_errs_at_most_twice_as_much_as_the_reference(dtype, kind, n, b):
    wide = made(n, n, kind, b=b, d=32, dtype=torch.float64)
    halves = [x if x is None or x.dtype == torch.bool else x.detach().to(dtype).requires_grad_() for x in wide]
    exact = results(reference, *wide)
    sets = exact, results(attend, *halves), results(reference, *halves)
    for name, want, got, ours in zip("yqkvb", *sets, strict=False):
        assert got.dtype == dtype
        error, allowed = ((x.double() - want).square().mean().sqrt() for x in (got, ours))
        assert error <= 2 * allowed + torch.finfo(dtype).eps * 1e-2, f"{name}: {error:.2e} against {allowed:.2e}"


@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("b", [2, 8])
def test_autocast_gives_its_type(name, b):
    q, k, v, bias = made(49, 49, "table", b=b)
    with torch.autocast("cpu", torch.bfloat16):
        y, *grads = results(attend, q, k, v, bias, backend=name)
    assert y.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in grads)
    torch.testing.assert_close(y.float(), reference(q, k, v, bias), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["reference", "sdpa"])
def test_dropout(name):
    q, k, _, _ = made(4, 4000, d=16)
    v = torch.ones(2, 3, 4000, 1)

    def draw() -> torch.Tensor:
        torch.manual_seed(3)
        return attend(q, k, v, dropout=0.25, backend=name)

    y = draw()
    assert torch.equal(y, draw())
    assert not torch.equal(y, attend(q, k, v, dropout=0.25, backend=name))
    assert 0.01 < (y - 1).abs().max() < 0.3  # kept weights are scaled up: the sum stays 1 in the mean
    assert abs(y.mean() - 1) < 0.05


# ------------------------------------------------------------------------------------------------------ the choice


def used(monkeypatch) -> list[str]:
    """Which back ends the door goes through, from now on."""
    seen: list[str] = []

    def spied(name, back):
        def spy(*tensors, **options):
            seen.append(name)
            return back(*tensors, **options)

        return spy

    for name, back in dict(door.BACKENDS).items():
        monkeypatch.setitem(door.BACKENDS, name, spied(name, back))
    return seen


def test_the_context_nests_and_the_argument_wins(monkeypatch):
    q, k, v, _ = made(3, 3)
    for name in ("reference", "sdpa"):
        attend(q, k, v, backend=name)  # tried now, not while we count
    seen = used(monkeypatch)
    with backend("reference"):
        attend(q, k, v)
        with backend("sdpa"):
            attend(q, k, v)
            attend(q, k, v, backend="reference")
        with pytest.raises(KeyError), backend("sdpa"):
            raise KeyError
        attend(q, k, v)
        with backend("auto"):
            attend(q, k, v)  # straight to torch
    attend(q, k, v)
    assert seen == ["reference", "sdpa", "reference", "reference"]


def test_threads_and_tasks_choose_for_themselves(monkeypatch):
    q, k, v, _ = made(3, 3)
    attend(q, k, v, backend="reference")
    seen = used(monkeypatch)
    with backend("reference"):
        other = threading.Thread(target=contextvars.Context().run, args=(attend, q, k, v))
        other.start()
        other.join()
        assert seen == []
        contextvars.copy_context().run(attend, q, k, v)
    assert seen == ["reference"]


def test_unknown_names():
    q, k, v, _ = made(3, 3)
    for call in (lambda: attend(q, k, v, backend="flash"), lambda: backend("flash").__enter__()):
        with pytest.raises(ValueError, match="'flash' is not known; there are auto, reference, sdpa, xformers"):
            call()


def fake_xformers(monkeypatch, kernel) -> None:
    """A module of that name whose kernel is `kernel`; the door forgets what it knew about it."""
    names = "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias"
    ops, fmha, masks = (types.ModuleType(n) for n in names)
    ops.memory_efficient_attention, masks.LowerTriangularMask = kernel, type("LowerTriangularMask", (), {})
    for module in (types.ModuleType("xformers"), ops, fmha, masks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(door, "_reasons", {})
    monkeypatch.setattr(door, "_auto", {})


def working(q, k, v, attn_bias=None, p=0.0, scale=None):
    """B N h d, as xformers has it; NaN in empty rows, as a kernel may have it."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if attn_bias is not None and not isinstance(attn_bias, Tensor):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=p).transpose(1, 2)
    score = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_bias is not None:
        assert (attn_bias.shape, attn_bias.dtype, attn_bias.stride(-2) % 8) == (score.shape, q.dtype, 0)
        score = score + attn_bias
    return (F.dropout(score.softmax(-1), p) @ v).transpose(1, 2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (17, 17), (5, 9), (9, 5)])
def test_xformers_is_called_as_it_asks_and_equals_the_reference(monkeypatch, n, m, kind, causal):
    fake_xformers(monkeypatch, working)
    args = made(n, m, kind)
    got, want = (results(attend, *args, causal=causal, scale=0.3, backend=name) for name in ("xformers", "reference"))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[torch.float32])


def broken(*args, **options):
    raise NotImplementedError("no operator found\nfor this card")


def wrong(*args, **options):
    return 2 * working(*args, **options)


def without_backward(q, k, v, **options):
    return working(q, k, v, **options).detach()


@pytest.mark.parametrize(
    ("kernel", "words"),
    [(broken, "no operator found$"), (wrong, "off by"), (without_backward, "does not require grad")],
)
def test_a_back_end_that_fails_its_trial(monkeypatch, kernel, words):
    fake_xformers(monkeypatch, kernel)
    q, k, v, _ = made(3, 3)
    refusal = r"'xformers' cannot be used for torch\.float32 on cpu: .*" + words
    with pytest.raises(ValueError, match=refusal), backend("xformers"):
        attend(q, k, v)
    monkeypatch.setattr(door, "ORDER", ("xformers", "sdpa", "reference"))
    with pytest.warns(UserWarning, match="'xformers' left out .*" + words) as caught:
        assert [door.automatic(q.device, q.dtype) for _ in range(3)] == ["sdpa"] * 3
    assert len(caught) == 1


def test_a_back_end_is_tried_once_a_device_and_type(monkeypatch):
    calls: list[torch.dtype] = []
    fake_xformers(monkeypatch, lambda q, *a, **o: (calls.append(q.dtype), working(q, *a, **o))[1])
    q, k, v, _ = made(3, 3)
    for _ in range(3):
        with torch.inference_mode():
            attend(q, k, v, backend="xformers")
    assert len(calls) == 1 + 3
    attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), backend="xformers")
    assert calls[4:] == [torch.bfloat16] * 2
    with pytest.raises(ValueError, match=r"takes no torch\.float64"):
        attend(q.double(), k.double(), v.double(), backend="xformers")


def test_one_that_is_not_installed_is_passed_over_in_silence(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setattr(door, "_reasons", {})
    monkeypatch.setattr(door, "_auto", {})
    monkeypatch.setattr(door, "ORDER", ("xformers", "sdpa", "reference"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert door.automatic(torch.device("cpu"), torch.float32) == "sdpa"
    q, k, v, _ = made(3, 3)
    with pytest.raises(ValueError, match="xformers"):
        attend(q, k, v, backend="xformers")


# ------------------------------------------------------------------------------------------------------ the compiler


class Attention(torch.nn.Module):
    def __init__(self, name: str = "auto"):
        super().__init__()
        self.name = name

    def forward(self, q, k, v, bias):
        return attend(q, k, v, bias, backend=self.name), attend(q, k, v, causal=True, backend=self.name)


@pytest.mark.parametrize("name", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["table", "bool"])
def test_compiles_whole_and_exports(name, kind):
    args = made(49, 49, kind, b=8)
    module, want = Attention(name), Attention(name)(*args)
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(*args)
    b = torch.export.Dim("b", min=2)
    dynamic = {"q": {0: b}, "k": {0: b}, "v": {0: b}, "bias": {} if kind == "table" else {0: b}}
    out = torch.export.export(module, args, dynamic_shapes=dynamic)
    for compiled, exported, eager in zip(got, out.module()(*args), want, strict=True):
        torch.testing.assert_close(compiled, eager, **TOLERANCE[torch.float32])
        torch.testing.assert_close(exported, eager, **TOLERANCE[torch.float32])
    more = made(49, 49, kind, b=3)
    torch.testing.assert_close(out.module()(*more)[0], module(*more)[0], **TOLERANCE[torch.float32])


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="an older torch fixes the choice when it traces")
def test_a_compiled_graph_follows_the_context():
    q, k, v, bias = made(5, 5, "table")
    graph = torch.compile(lambda: attend(q, k, v, bias), fullgraph=True, backend="eager")
    first = graph()
    with backend("reference"):
        assert torch.equal(graph(), reference(q, k, v, bias))
    assert torch.equal(graph(), first)


@pytest.mark.parametrize("name", ["auto", "reference", "sdpa"])
def test_meta(name):
    q, k, v, bias = made(5, 9, "table", device="meta")
    assert attend(q, k, v, bias, backend=name).shape == (2, 3, 5, 8)
    assert attend(q, k, v, causal=True, backend=name).device.type == "meta"


# ------------------------------------------------------------------------------------------------------------- GPU


def usable_here(name: str, dtype: torch.dtype) -> None:
    if reason := door.usable(name, torch.device("cuda", 0), dtype):
        pytest.skip(f"{name}: {reason}")


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (17, 17), (63, 63), (17, 63), (63, 17)])
@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_gpu_equals_the_reference(name, n, m, kind, causal):
    usable_here(name, torch.float32)
    args = made(n, m, kind, d=32, device="cuda:0")
    args = [x if x is None else x.detach().requires_grad_(x.is_floating_point()) for x in args]
    got, want = (results(attend, *args, causal=causal, backend=back) for back in (name, "reference"))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["none", "bool", "keys", "table"])
@pytest.mark.parametrize("name", ["sdpa", "xformers"])
def test_gpu_half_precision(name, kind, dtype):
    usable_here(name, dtype)
    wide = made(63, 63, kind, d=32, dtype=torch.float64, device="cuda:0")
    halves = [x if x is None or x.dtype == torch.bool else x.detach().to(dtype).requires_grad_() for x in wide]
    wide = [x if x is None else x.detach().requires_grad_(x.is_floating_point()) for x in wide]
    three = results(reference, *wide), results(attend, *halves, backend=name), results(reference, *halves)
    for want, got, ours in zip(*three, strict=True):
        error, allowed = ((x.double() - want).square().mean().sqrt() for x in (got, ours))
        assert error <= 2 * allowed + torch.finfo(dtype).eps * 1e-2
