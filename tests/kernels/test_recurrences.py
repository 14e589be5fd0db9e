"""Linear-time recurrences: the original's numbers, and every form against the float64 recurrence, values and
gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from golden import golden

from patchloom.kernels import delta_rule as delta
from patchloom.kernels import gated_linear_attention as gla
from patchloom.kernels import retention as ret
from patchloom.kernels import selective_scan as s6
from patchloom.kernels import ssd
from patchloom.kernels.native import compiler, library

LENGTHS = [1, 17, 63, 196, 1000]
FORMS = ["chunked", *(["native"] if compiler() else [])]  # one that does not compile fails, it is not left out


def record(name):
    return golden.load(f"linear_attention/{name}")


def unit(x):
    return F.normalize(x, dim=-1)


def distance(got, want):
    return float(((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30)).detach())


# ------------------------------------------------------------------------------------------------------------ records


@pytest.mark.parametrize("form", ["reference", *FORMS])
def test_selective_scan_is_mamba_s(form):
    r = record("mamba1_selective_scan")
    x = r.input()
    u, delta_, B, C, z = (x[n].mT for n in ("u", "delta", "B", "C", "z"))
    A = -x["A_log"].exp()
    for name, skip, gate in (("scan", None, None), ("with_skip", x["D"], None), ("gated", x["D"], z)):
        y, last = s6.selective_scan(u, delta_, A, B, C, skip, gate, x["delta_bias"], return_state=True, backend=form)
        r.compare(name, y.mT, 1e-5)
        r.compare("final_state", last, 1e-5)


@pytest.mark.parametrize("form", ["reference", "chunked"])
def test_retention_and_gated_attention_are_the_original_s(form):
    r = record("retention")
    x = r.input()
    o, last = ret.retention(x["q"], x["k"], x["v"], ret.retnet_decay(3), return_state=True, backend=form)
    r.compare("o", o, 1e-5)
    r.compare("final_state", last, 1e-5)
    for name, gate, key in (
        ("gated_linear_attention", lambda g: F.logsigmoid(g) / 16, "initial_state"),
        ("scalar_gated_linear_attention", F.logsigmoid, None),
    ):
        r = record(name)
        x = r.input()
        o, last = gla.gated_linear_attention(
            x["q"], x["k"], x["v"], gate(x["g"]), state=x.get(key), return_state=True, backend=form
        )
        r.compare("o", o, 1e-5)
        r.compare("final_state", last, 1e-5)


@pytest.mark.parametrize("form", ["reference", "chunked"])
@pytest.mark.parametrize("name", ["delta_rule", "gated_delta_rule"])
def test_delta_rules_are_the_original_s(name, form):
    r = record(name)
    x = r.input()
    gate = -F.softplus(x["g"]) if "g" in x else None
    o, last = delta.delta_rule(
        unit(x["q"]), unit(x["k"]), x["v"], x["beta"].sigmoid(), gate, state=x["initial_state"], return_state=True,
        backend=form,
    )  # fmt: skip
    r.compare("o", o, 1e-5)
    r.compare("final_state", last, 1e-5)


@pytest.mark.parametrize("form", ["reference", "chunked"])
def test_ssd_is_mamba_2_s(form):
    r = record("mamba2_ssd")
    x = r.input()
    y, last = ssd.ssd(x["x"], x["dt"], -x["A_log"].exp(), x["B"], x["C"], x["D"], x["dt_bias"],
                      state=x["initial_state"], return_state=True, backend=form)  # fmt: skip
    r.compare("y", y, 1e-5)
    r.compare("final_state", last, 1e-5)


# -------------------------------------------------------------------------------------------------- forms and gradients


def s6_inputs(length, channels=40, states=16, groups=1, batch=2, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    A = -(torch.rand(channels, states, generator=g, dtype=torch.float64) * 4 + 0.1).to(dtype)
    return {
        "u": r(batch, length, channels), "delta": r(batch, length, channels), "A": A,
        "B": r(batch, length, groups, states), "C": r(batch, length, groups, states), "D": r(channels),
        "z": r(batch, length, channels), "delta_bias": r(channels), "state": r(batch, channels, states),
    }  # fmt: skip


def with_gradients(function, inputs):
    """Outputs of function(**inputs), and the gradients of a fixed weighing of them by name."""
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    outputs = function(**leaves)
    weights = [torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o) for o in outputs]
    total = sum((o * w).sum() for o, w in zip(outputs, weights, strict=True))
    return outputs, dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


def agree(function, inputs, wanted, tolerance=1e-5):
    """`function` in float32 against `wanted` in float64."""
    outputs, gradients = with_gradients(function, inputs)
    exact, slopes = with_gradients(wanted, {k: v.double() for k, v in inputs.items()})
    for got, want in zip(outputs, exact, strict=True):
        assert distance(got, want) < tolerance
    for name in inputs:
        assert distance(gradients[name], slopes[name]) < 5 * tolerance, name


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("channels", "states", "groups", "reverse"), [
    (40, 16, 1, False), (48, 1, 4, True), (33, 5, 3, False), (20, 48, 2, True),
])  # fmt: skip
def test_selective_scans_agree(form, length, channels, states, groups, reverse):
    def scan(form, **inputs):
        return s6.selective_scan(**inputs, reverse=reverse, return_state=True, backend=form)

    inputs = s6_inputs(length, channels, states, groups)
    agree(lambda **x: scan(form, **x), inputs, lambda **x: scan("reference", **x), 2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_scan_does_not_depend_on_threads(form, threads):
    before = torch.get_num_threads()
    inputs = s6_inputs(70, 96, batch=1)
    want = s6.selective_scan(**inputs, backend="reference")
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(s6.selective_scan(**inputs, backend=form), want, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def heads(length, keys=8, values=12, seed=0, **more):
    g = torch.Generator().manual_seed(seed)
    x = {n: torch.randn(2, length, 3, d, generator=g) for n, d in (("q", keys), ("k", keys), ("v", values))}
    return x | {n: torch.randn(*shape, generator=g) for n, shape in more.items()}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("vector", [False, True])
def test_gated_linear_attention_agrees(length, vector):
    inputs = heads(length, gate=(2, length, 3, 8) if vector else (2, length, 3), state=(2, 3, 8, 12))

    def attention(form, gate, **x):
        return gla.gated_linear_attention(**x, gate=F.logsigmoid(gate), return_state=True, backend=form)

    agree(lambda **x: attention("chunked", **x), inputs, lambda **x: attention("reference", **x))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("gated", [False, True])
def test_delta_rule_agrees(length, gated):
    inputs = heads(length, beta=(2, length, 3), state=(2, 3, 8, 12), **({"gate": (2, length, 3)} if gated else {}))

    def rule(form, q, k, beta, gate=None, **x):
        gate = None if gate is None else F.logsigmoid(gate)
        return delta.delta_rule(unit(q), unit(k), beta=beta.sigmoid(), gate=gate, **x, return_state=True, backend=form)

    agree(lambda **x: rule("chunked", **x), inputs, lambda **x: rule("reference", **x), 2e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_ssd_agrees(length):
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (2, length, 4, 5), "dt": (2, length, 4), "B": (2, length, 2, 6), "C": (2, length, 2, 6), "D": (4,),
              "dt_bias": (4,), "state": (2, 4, 5, 6), "log": (4,)}  # fmt: skip
    inputs = {n: torch.randn(*s, generator=g) for n, s in shapes.items()}

    def run(form, log, **x):
        return ssd.ssd(**x, A=-log.exp(), return_state=True, backend=form)

    agree(lambda **x: run("chunked", **x), inputs, lambda **x: run("reference", **x))


# --------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize(("form", "cut"), list(itertools.product(["reference", *FORMS], [1, 40])))
def test_a_scan_goes_on_from_its_state(form, cut):
    x = s6_inputs(97)
    state = x.pop("state")
    fixed = {k: x.pop(k) for k in ("A", "D", "delta_bias")}
    want, last = s6.selective_scan(**x, **fixed, state=state, return_state=True)
    a, middle = s6.selective_scan(**{k: v[:, :cut] for k, v in x.items()}, **fixed, state=state, return_state=True,
                                  backend=form)  # fmt: skip
    b, end = s6.selective_scan(**{k: v[:, cut:] for k, v in x.items()}, **fixed, state=middle, return_state=True,
                               backend=form)  # fmt: skip
    torch.testing.assert_close(torch.cat([a, b], 1), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-5)


def test_steps_are_the_scan():
    x = s6_inputs(9)
    state = x.pop("state")
    fixed = {k: x.pop(k) for k in ("A", "D", "delta_bias")}
    want, last = s6.selective_scan(**x, **fixed, state=state, return_state=True)
    for t in range(9):
        y, state = s6.step(**{k: v[:, t] for k, v in x.items()}, **fixed, state=state)
        torch.testing.assert_close(y, want[:, t], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-4, atol=1e-5)
    x = heads(9, gate=(2, 9, 3), beta=(2, 9, 3))
    gate, beta, state = F.logsigmoid(x.pop("gate")), x.pop("beta").sigmoid(), torch.zeros(2, 3, 8, 12)
    x["k"] = unit(x["k"])
    want = delta.delta_rule(**x, beta=beta, gate=gate)
    for t in range(9):
        o, state = delta.step(x["q"][:, t], x["k"][:, t], x["v"][:, t], beta[:, t], gate[:, t], state)
        torch.testing.assert_close(o, want[:, t], rtol=1e-4, atol=1e-5)


def test_one_state_without_decay_is_a_cumulative_sum():
    u = torch.randn(1, 50, 3)
    one = torch.ones(1, 50, 1)
    y = s6.selective_scan(u, torch.ones(1, 50, 3), torch.full((3, 1), -1e-12), one, one, softplus=False)
    torch.testing.assert_close(y, u.cumsum(1), rtol=1e-4, atol=1e-5)


def test_a_written_key_gives_its_value_back():
    x = heads(30)
    k = unit(x["k"])
    _, state = delta.delta_rule(x["q"], k, x["v"], torch.ones(2, 30, 3), return_state=True)
    torch.testing.assert_close((k[:, -1, :, None] @ state)[:, :, 0], x["v"][:, -1], rtol=1e-4, atol=1e-4)


def test_constant_gates_are_retention_and_strong_ones_stay_finite():
    x = heads(100)
    gate = ret.retnet_decay(3).log().expand(2, 100, 3)
    want = ret.retention(**x, decay=ret.retnet_decay(3))
    torch.testing.assert_close(gla.gated_linear_attention(**x, gate=gate), want)
    torch.testing.assert_close(
        gla.gated_linear_attention(**x, gate=gate[..., None].expand(-1, -1, -1, 8)), want, rtol=1e-4, atol=1e-5
    )
    for shape in ((2, 100, 3), (2, 100, 3, 8)):
        gate = torch.full(shape, -50.0)
        got = gla.gated_linear_attention(**x, gate=gate)
        torch.testing.assert_close(got, gla.gated_linear_attention(**x, gate=gate, backend="reference"))


def test_noncausal_ssd_is_one_state_for_all():
    g = torch.Generator().manual_seed(0)
    x, dt = torch.randn(2, 30, 4, 5, generator=g), torch.randn(2, 30, 4, generator=g)
    B, C = torch.randn(2, 30, 2, 6, generator=g), torch.randn(2, 30, 2, 6, generator=g)
    A, D = -torch.rand(4, generator=g), torch.randn(4, generator=g)
    b, c = (t.repeat_interleave(2, 2) for t in (B, C))
    state = torch.einsum("blhn,blhp->bhnp", b, x * (F.softplus(dt) * -A)[..., None])
    want = torch.einsum("blhn,bhnp->blhp", c, state) + D[:, None] * x
    got = ssd.noncausal_ssd(x, dt, A, B, C, D)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    order = torch.randperm(30, generator=g)
    moved = ssd.noncausal_ssd(x[:, order], dt[:, order], A, B[:, order], C[:, order], D)
    torch.testing.assert_close(moved, got[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_states_are_kept_in_float32_or_better(dtype):
    x = {k: v if k in ("A", "D", "delta_bias", "state") else v.to(dtype) for k, v in s6_inputs(200).items()}
    y, last = s6.selective_scan(**x, return_state=True)
    assert y.dtype == dtype
    assert last.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    want = s6.selective_scan(**{k: v.double() for k, v in x.items()}, backend="reference")
    assert distance(y, want) < 0.01
    with torch.autocast("cpu", torch.bfloat16):
        y, last = s6.selective_scan(**s6_inputs(200), return_state=True)
    want, _ = s6.selective_scan(**s6_inputs(200), return_state=True)
    torch.testing.assert_close(y, want)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_does_not_fit_is_named():
    x = s6_inputs(8)
    for name, bad in (
        ("delta", torch.zeros(2, 9, 40)), ("C", torch.zeros(2, 8, 1, 4)), ("D", torch.zeros(41)),
        ("state", torch.zeros(2, 40, 4)), ("z", torch.zeros(2, 8, 41)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"selective_scan: {name} is"):
            s6.selective_scan(**{**x, name: bad})
    with pytest.raises(ValueError, match="40 channels do not divide into 3 groups"):
        s6.selective_scan(**{**x, "B": torch.zeros(2, 8, 3, 16), "C": torch.zeros(2, 8, 3, 16)})
    with pytest.raises(ValueError, match=r"A must not be positive.*-exp\(A_log\)"):
        s6.selective_scan(**{**x, "A": -x["A"]})
    b = torch.zeros(1, 5, 1, 4)
    with pytest.raises(ValueError, match="ssd: A must not be positive"):
        ssd.ssd(torch.zeros(1, 5, 2, 3), torch.zeros(1, 5, 2), torch.ones(2), b, b)
    with pytest.raises(ValueError, match=r"backend 'fast'.*chunked"):
        s6.selective_scan(**x, backend="fast")
    with pytest.raises(ValueError, match="native selective scan takes float32"):
        s6.selective_scan(**{k: v.double() for k, v in x.items()}, backend="native")
    y = heads(8)
    with pytest.raises(ValueError, match="the gate is"):
        gla.gated_linear_attention(**y, gate=torch.zeros(2, 7, 3))
    with pytest.raises(ValueError, match="the state is"):
        gla.gated_linear_attention(**y, state=torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="retention takes a decay for each of 3 heads"):
        ret.retention(**y, decay=torch.ones(2))
    with pytest.raises(ValueError, match="beta"):
        delta.delta_rule(**y, beta=torch.zeros(2, 8))


def test_a_machine_without_a_compiler_uses_the_plain_form(monkeypatch):
    monkeypatch.setenv("PATCHLOOM_NATIVE", "0")
    library.cache_clear()
    s6.trusted.cache_clear()
    try:
        x = s6_inputs(8)
        assert s6.form_of("auto", s6.Scan(x["u"], x["delta"], x["A"], x["B"], x["C"], None, False)) is s6.chunked
    finally:
        library.cache_clear()
        s6.trusted.cache_clear()


def test_a_kernel_that_computes_something_else_is_not_trusted(monkeypatch):
    monkeypatch.setattr(s6, "native", lambda scan: tuple(1.01 * t for t in s6.reference(scan)))
    monkeypatch.setattr(s6, "library", lambda name: object())
    s6.trusted.cache_clear()
    try:
        with pytest.warns(UserWarning, match="does not compute what it should"):
            assert not s6.trusted()
    finally:
        s6.trusted.cache_clear()


@pytest.mark.skipif(compiler() is None, reason="no C compiler here")
def test_the_compiled_softplus_is_softplus():
    assert s6.trusted()
    x = torch.cat(
        [torch.randn(3001) * 10, torch.tensor([0.0, -0.0, 20.0, -87.0, -104.0, 3e38, -3e38])]
    ).requires_grad_()
    got, want = s6.fast_softplus(x), torch.nn.functional.softplus(x.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-38)
    dy = torch.randn(len(x))
    (a,), (b,) = (torch.autograd.grad(y, x, g) for y, g in ((got, dy), (want, dy.double())))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-30)
    for empty in (torch.zeros(0), torch.zeros(2, 0, 3)):
        assert s6.fast_softplus(empty).shape == empty.shape
