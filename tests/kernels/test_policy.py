"""Attention under a policy: the authors' numbers, and the fast form is the reference in value and gradient."""

import pytest
import torch
from golden import golden

from patchloom.kernels.attend import attend
from patchloom.kernels.policy import attend_policy, reference


def given(n: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 8, generator=g).to(dtype).transpose(1, 2) for _ in range(3))
    return [q, k, v, (torch.rand(2, n, 1, generator=g) < 0.6).to(dtype)]


@pytest.mark.parametrize("form", [attend_policy, reference])
def test_the_weights_are_the_originals(form):
    record = golden.load("dynamicvit/masked_block")
    x, policy = record.input()["x"][:, None], record.input()["policy"].float()
    weights = form(x, x, torch.eye(17).expand(2, 1, -1, -1), policy, scale=0.1)
    record.compare("attention", weights, 1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [1, 17, 63])
def test_the_fast_form_is_the_reference(n, bias):
    pairs, extra = [], torch.randn(2, 1, 1, n, generator=torch.Generator().manual_seed(1)) if bias else None
    for form in (attend_policy, reference):
        leaves = [x.clone().requires_grad_() for x in given(n)]
        y = form(*leaves, extra)
        pairs.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    for got, want in zip(*pairs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    if n > 1:
        hidden = given(n)[3] == 0
        assert pairs[0][4][hidden].any()  # what is dropped still learns what it would have said


def test_half_precision_is_as_good_as_the_references():
    truth = reference(*given(63, torch.float64))
    half = [x.bfloat16() for x in given(63, torch.float64)]
    got, want = attend_policy(*half), reference(*half)
    assert got.dtype == torch.bfloat16
    assert (got - truth).norm() <= 2 * (want - truth).norm()


def test_where_all_count_it_is_attention_and_what_does_not_count_is_not_seen():
    q, k, v, policy = given(17)
    torch.testing.assert_close(attend_policy(q, k, v, torch.ones_like(policy)), attend(q, k, v), rtol=1e-5, atol=1e-5)
    seen = policy.bool().mT[:, None] | torch.eye(17, dtype=torch.bool)
    torch.testing.assert_close(attend_policy(q, k, v, policy), attend(q, k, v, seen), rtol=1e-4, atol=1e-4)


def test_dropout_leaves_weights_out():
    q, k, v, policy = given(63)
    torch.manual_seed(0)
    got = torch.stack([attend_policy(q, k, v, policy, dropout=0.3) for _ in range(300)]).mean(0)
    assert not torch.equal(attend_policy(q, k, v, policy, dropout=0.3), attend_policy(q, k, v, policy))
    torch.testing.assert_close(got, attend_policy(q, k, v, policy), rtol=0.2, atol=0.15)
