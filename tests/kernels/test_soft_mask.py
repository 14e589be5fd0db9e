"""Attention behind a soft mask: the fast form is the reference, in value and gradient."""

import pytest
import torch

from patchloom.kernels.attend import attend
from patchloom.kernels.soft_mask import reference, soft_masked


def qkv(n: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 3, 8, generator=g).to(dtype).transpose(1, 2) for _ in range(3)]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 17, 63])
def test_the_fast_form_is_the_reference(n, rate):
    pairs = []
    for form in (soft_masked, reference):
        leaves = [x.clone().requires_grad_() for x in qkv(n)]
        y = form(*leaves, rate)
        pairs.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    for got, want in zip(*pairs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_half_precision_is_as_good_as_the_references(rate):
    truth = reference(*qkv(63, torch.float64), rate)
    half = [x.bfloat16() for x in qkv(63, torch.float64)]
    got, want = soft_masked(*half, rate), reference(*half, rate)
    assert got.dtype == torch.bfloat16
    assert (got - truth).norm() <= 2 * (want - truth).norm()


def test_open_it_is_attention_and_rows_are_not_normalised_again():
    q, k, v = qkv(17)
    torch.testing.assert_close(soft_masked(q, k, v, 1.0), attend(q, k, v))
    ones = torch.ones_like(v)
    kept = soft_masked(q, k, ones)[..., 0]
    assert (kept[..., :-1] < 1).all()
    torch.testing.assert_close(kept[..., -1], torch.ones(2, 3))
    causal = attend(q, k, v, causal=True)
    torch.testing.assert_close(soft_masked(q, k, v), causal * kept[..., None])
