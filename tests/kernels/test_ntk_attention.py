"""NTK-attention: the record of the authors' code, and the fused form against the reference."""

import pytest
import torch
from golden import golden
from torch import Tensor

from patchloom.kernels.attend import attend
from patchloom.kernels.ntk_attention import BACKENDS, fused, ntk_attention, phi, reference


def parts(n: int, m: int, d: int = 16, e: int | None = None) -> list[Tensor]:
    """q, k, v and the two states, of which half of the first are negative."""
    g, e = torch.Generator().manual_seed(n * m), e or d
    shapes = ((2, 3, n, d), (2, 3, m, d), (2, 3, m, e), (1, 3, d, 1), (1, 3, d, e))
    return [torch.randn(s, generator=g) for s in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_authors_numbers(backend):
    record = golden.load("ntk_attention/attention")
    given = record.input()
    q, k, v, *states = (given[name] for name in ("q", "k", "v", "sum_phi_k", "sum_phi_kv"))
    found = {
        "phi": phi(q),
        "full": ntk_attention(q, k, v, *states, backend=backend),
        "causal": ntk_attention(q, k, v, *states, causal=True, backend=backend),
        "causal_last": ntk_attention(q[:, :, -3:], k, v, *states, causal=True, backend=backend),
        "no_prefix": ntk_attention(q, k, v, *map(torch.zeros_like, states), backend=backend),
    }
    assert set(found) == set(record.meta["outputs"])
    for name, value in found.items():
        record.compare(name, value, 1e-6)


def biases(n: int, m: int) -> dict[str, Tensor | None]:
    g = torch.Generator().manual_seed(1)
    mask = torch.rand(2, 1, n, m, generator=g) > 0.4
    mask[0, :, 0] = False  # a query that sees the prefix alone
    return {"none": None, "mask": mask, "bias": torch.randn(1, 3, n, m, generator=g)}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", ["none", "mask", "bias"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (17, 17), (63, 63), (5, 17), (17, 5)])
def test_fused_is_the_reference_in_values_and_gradients(n, m, bias, causal):
    given = [x.requires_grad_() for x in parts(n, m)]
    extra = biases(n, m)[bias]
    if bias == "bias":
        given.append(extra.requires_grad_())
    found = []
    for function in (reference, fused):
        y = function(*given[:5], extra, causal=causal)
        found.append([y, *torch.autograd.grad((y * y.detach().cos()).sum(), given)])
    for got, want in zip(*found[::-1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def test_values_may_have_another_width():
    given = parts(7, 9, 8, 12)
    torch.testing.assert_close(fused(*given), reference(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_half_precision(size):
    q, k, v, *states = parts(33, 33, 64)
    states = [s * size for s in states]
    want = reference(*(x.double() for x in (q, k, v, *states)))
    half = [x.bfloat16() for x in (q, k, v, *states)]
    errors = {name: (f(*half).double() - want).abs().max() for name, f in BACKENDS.items()}
    assert fused(*half).dtype == torch.bfloat16
    assert errors["fused"] <= 2 * errors["reference"]
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(q, k, v, *states).dtype == torch.bfloat16


def test_a_prefix_that_is_written_out_is_its_two_states():
    """sum_j phi(q) . phi(K_j) in place of exp: what the states stand for."""
    q, k, v, *_ = parts(7, 9)
    g = torch.Generator().manual_seed(2)
    keys, values = (torch.randn(1, 3, 50, 16, generator=g) for _ in range(2))
    near, far = (q @ k.mT / 4).exp(), phi(q) @ phi(keys).mT
    want = (near @ v + far @ values) / (near.sum(-1, keepdim=True) + far.sum(-1, keepdim=True))
    states = phi(keys).sum(2)[..., None], phi(keys).mT @ values
    for function in BACKENDS.values():
        torch.testing.assert_close(function(q, k, v, *states), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", BACKENDS.values())
def test_states_of_zero_are_plain_attention_and_can_learn(function):
    q, k, v, *states = parts(9, 9)
    zeros = [torch.zeros_like(s, requires_grad=True) for s in states]
    y = function(q, k, v, *zeros)
    torch.testing.assert_close(y, attend(q, k, v), rtol=1e-5, atol=1e-6)
    for grad in torch.autograd.grad((y * y.detach().cos()).sum(), zeros):
        assert (grad != 0).all()


@pytest.mark.parametrize("function", BACKENDS.values())
def test_large_scores_and_no_keys(function):
    q, k, v, *states = parts(9, 9)
    assert torch.isfinite(function(60 * q, k, v, *states)).all()
    alone = function(q, k[:, :, :0], v[:, :, :0], *states)
    torch.testing.assert_close(alone, (phi(q) @ states[1]) / (phi(q) @ states[0].abs()), rtol=1e-4, atol=1e-4)


def test_an_unknown_back_end_is_named():
    with pytest.raises(ValueError, match="'flash' is not known; there are reference, fused"):
        ntk_attention(*parts(2, 2), backend="flash")
