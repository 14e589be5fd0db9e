"""Linear attention: the records' numbers, every form against the float64 recurrence, and its laws."""

import itertools

import pytest
import torch
from golden import golden

from patchloom.kernels import linear_attention as la
from patchloom.kernels.feature_maps import elu_features, hedgehog_features, relu_features

LENGTHS = [1, 17, 63, 196, 1000]


def full(q, k, v, eps=0.0):
    """`linear_attention` on (B L h d)."""
    return la.linear_attention(*(t.transpose(1, 2) for t in (q, k, v)), eps).transpose(1, 2)


def inputs(length, dtype=torch.float32, keys=8, values=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = {"q": keys, "k": keys, "v": values}
    x = {n: torch.randn(2, length, 3, d, generator=g, dtype=torch.float64).to(dtype) for n, d in shapes.items()}
    return x | {"state": torch.rand(2, 3, keys, values + 1, generator=g, dtype=torch.float64).to(dtype)}


def distance(got, want):
    return float(((got.double() - want.double()).abs().max() / want.double().abs().max()).detach())


# ------------------------------------------------------------------------------------------------------------ records


@pytest.mark.parametrize("form", ["reference", "chunked"])
def test_linear_attention_is_the_record_s(form):
    r = golden.load("linear_attention/linear_attention")
    x = r.input()
    q, k = elu_features(x["q"]), elu_features(x["k"])
    r.compare("causal", la.causal_linear_attention(q, k, x["v"], backend=form), 1e-5)
    r.compare("full", full(q, k, x["v"]), 1e-5)


@pytest.mark.parametrize("form", ["exp", "softmax", "joint_softmax"])
def test_hedgehog_is_the_record_s(form):
    r = golden.load("linear_attention/hedgehog")
    x = r.input()
    q, k = (hedgehog_features(x[n], x[f"weight_{n}"] / 8**0.5, x[f"bias_{n}"], form) for n in ("q", "k"))
    r.compare(f"features_{form}", q, 1e-5)
    if form != "joint_softmax":
        r.compare(f"causal_{form}", la.causal_linear_attention(q, k, x["v"]), 1e-5)
    if form == "exp":
        r.compare("full_exp", full(q, k, x["v"]), 1e-5)


# -------------------------------------------------------------------------------------------------- forms and gradients


def run(form, q, k, v, state, **options):
    return la.causal_linear_attention(elu_features(q), elu_features(k), v, state=state, return_state=True,
                                      backend=form, **options)  # fmt: skip


def with_gradients(function, x):
    leaves = {k: v.clone().requires_grad_() for k, v in x.items()}
    outputs = function(**leaves)
    total = sum((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outputs)
    return outputs, torch.autograd.grad(total, list(leaves.values()))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk", [None, 16, 1000])
def test_chunks_are_the_recurrence_in_float64(length, chunk):
    x = inputs(length)
    got, slopes = with_gradients(lambda **x: run("chunked", **x, chunk=chunk), x)
    want, exact = with_gradients(lambda **x: run("reference", **x), {k: v.double() for k, v in x.items()})
    for a, b in zip((*got, *slopes), (*want, *exact), strict=True):
        assert distance(a, b) < 2e-5


@pytest.mark.parametrize(("form", "cut"), list(itertools.product(["reference", "chunked"], [1, 40])))
def test_it_goes_on_from_its_state(form, cut):
    x = inputs(97, torch.float64)
    state = x.pop("state")
    want, last = run("reference", **x, state=state)
    a, middle = run(form, **{k: v[:, :cut] for k, v in x.items()}, state=state)
    b, end = run(form, **{k: v[:, cut:] for k, v in x.items()}, state=middle)
    torch.testing.assert_close(torch.cat([a, b], 1), want)
    torch.testing.assert_close(end, last)


def test_steps_are_the_causal_form():
    x = inputs(9, torch.float64)
    state = x.pop("state")
    want, last = run("chunked", **x, state=state)
    for t in range(9):
        q, k, v = (x[n][:, t] for n in ("q", "k", "v"))
        y, state = la.step(elu_features(q), elu_features(k), v, state)
        torch.testing.assert_close(y, want[:, t])
    torch.testing.assert_close(state, last)


# --------------------------------------------------------------------------------------------------------------- laws


def test_the_last_token_of_the_causal_form_sees_all():
    x = inputs(50, torch.float64)
    q, k, v = elu_features(x["q"]), elu_features(x["k"]), x["v"]
    torch.testing.assert_close(la.causal_linear_attention(q, k, v)[:, -1], full(q, k, v)[:, -1])


def test_every_value_is_a_mean_of_values():
    x = inputs(60, torch.float64)
    ones = torch.ones_like(x["v"])
    for phi, eps in ((elu_features, 0.0), (relu_features, 1e-9)):
        q, k = phi(x["q"]), phi(x["k"])
        torch.testing.assert_close(la.causal_linear_attention(q, k, ones, eps)[:, 20:], ones[:, 20:])
        torch.testing.assert_close(full(q, k, ones, eps), ones)


def test_relu_features_that_meet_no_key_give_zero():
    x = inputs(5)
    q, k = relu_features(x["q"]), relu_features(-x["q"].abs())
    assert not la.causal_linear_attention(q, k, x["v"], 1e-6).any()
    assert not full(q, k, x["v"], 1e-6).any()


@pytest.mark.parametrize("form", ["exp", "softmax", "joint_softmax"])
def test_hedgehog_s_features_are_positive_and_swap_with_the_sign(form):
    x = inputs(7, torch.float64)["q"]
    eye, zero = torch.eye(8, dtype=torch.float64).repeat(3, 1, 1), torch.zeros(3, 8, dtype=torch.float64)
    y = hedgehog_features(x, eye, zero, form)
    assert y.shape == (2, 7, 3, 16)
    assert (y > 0).all()
    a, b = hedgehog_features(-x, eye, zero, form).chunk(2, -1)
    torch.testing.assert_close(torch.cat([b, a], -1), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_are_kept_in_float32_or_better(dtype):
    x = inputs(300, dtype)
    state = x.pop("state").to(torch.promote_types(dtype, torch.float32))
    y, last = run("chunked", **x, state=state)
    assert y.dtype == dtype
    assert last.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    want, _ = run("reference", **{k: v.double() for k, v in x.items()}, state=state.double())
    assert distance(y, want) < 0.01
    x = inputs(300)
    with torch.autocast("cpu", torch.bfloat16):
        got = run("chunked", **x)[0]
    torch.testing.assert_close(got, run("chunked", **x)[0])


def test_what_does_not_fit_is_named():
    x = inputs(8)
    with pytest.raises(ValueError, match=r"state is \(2, 3, 8, 12\).*\(2, 3, 8, 13\)"):
        la.causal_linear_attention(x["q"], x["k"], x["v"], state=torch.zeros(2, 3, 8, 12))
    with pytest.raises(ValueError, match=r"q and k \(B L h K\)"):
        la.causal_linear_attention(x["q"], x["k"][:, :7], x["v"])
    with pytest.raises(ValueError, match=r"form 'relu'.*exp, softmax, joint_softmax"):
        hedgehog_features(x["q"], torch.zeros(3, 8, 8), torch.zeros(3, 8), "relu")
    with pytest.raises(ValueError, match=r"take weight \(3, 8, 8\)"):
        hedgehog_features(x["q"], torch.zeros(3, 8, 4), torch.zeros(3, 8))
