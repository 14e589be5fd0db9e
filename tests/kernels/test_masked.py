"""Attention with multiplied scores: against the definition in double precision, values and gradients."""

import pytest
import torch

from patchloom.kernels.masked import attend_masked, attend_masked_windows
from patchloom.kernels.windows import unwindow, windows


def reference(q, k, v, mask=None, bias=None, mix=None):
    score = q @ k.mT * q.shape[-1] ** -0.5
    score = score if mask is None else score * mask
    score = score if mix is None else torch.einsum("bhnm,hg->bgnm", score, mix[0])
    weight = (score if bias is None else score + bias).softmax(-1)
    return (weight if mix is None else torch.einsum("bhnm,hg->bgnm", weight, mix[1])) @ v


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CASES = ["mask", "mask bias", "mix", "mask bias mix", ""]


def arguments(case, n, dtype=torch.float64):
    q, k, v = (numbers(2, 3, n, 8, seed=i).to(dtype) for i in range(3))
    mask = numbers(3, n, n, seed=3).to(dtype) if "mask" in case else None
    bias = numbers(1, 3, n, n, seed=4).to(dtype) if "bias" in case else None
    mix = (numbers(3, 3, seed=5).to(dtype), numbers(3, 3, seed=6).to(dtype)) if "mix" in case else None
    return q, k, v, mask, bias, mix


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [1, 17, 63])
def test_is_the_definition(case, n):
    q, k, v, mask, bias, mix = arguments(case, n)
    want = reference(q, k, v, mask, bias, mix)
    torch.testing.assert_close(attend_masked(q, k, v, mask, bias, mix=mix), want)
    single = arguments(case, n, torch.float32)
    torch.testing.assert_close(attend_masked(*single[:5], mix=single[5]).double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    leaves = [t.requires_grad_() for part in arguments(case, 5) if part is not None
              for t in (part if isinstance(part, tuple) else (part,))]  # fmt: skip

    def given():
        rest = iter(leaves[3:])
        mask, bias = (next(rest) if name in case else None for name in ("mask", "bias"))
        return (*leaves[:3], mask, bias), (next(rest), next(rest)) if "mix" in case else None

    parts, mix = given()
    weights = numbers(2, 3, 5, 8, seed=9)
    ours = torch.autograd.grad((attend_masked(*parts, mix=mix) * weights).sum(), leaves)
    want = torch.autograd.grad((reference(*parts, mix) * weights).sum(), leaves)
    torch.testing.assert_close(ours, want)


def test_a_scale_of_its_own():
    q, k, v, mask, *_ = arguments("mask", 4)
    torch.testing.assert_close(attend_masked(q, k, v, mask, scale=0.3), reference(q * 0.3 * 8**0.5, k, v, mask))
    torch.testing.assert_close(attend_masked(q, k, v, None, scale=0.3), reference(q * 0.3 * 8**0.5, k, v))


def test_inputs_stay_as_they_are():
    parts = arguments("mask bias", 6, torch.float32)[:5]
    before = [p.clone() for p in parts]
    attend_masked(*parts)
    for a, b in zip(parts, before, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_its_inputs(dtype):
    q, k, v, mask, bias, _ = (p if p is None else p.to(dtype) for p in arguments("mask bias", 17))
    y = attend_masked(q, k, v, mask, bias)
    assert y.dtype == dtype
    want = reference(*(p.double() for p in (q, k, v, mask, bias)))
    assert (y.double() - want).abs().max() <= torch.finfo(dtype).eps * want.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        assert attend_masked(*arguments("mask", 5, torch.float32)[:4]).dtype == torch.bfloat16


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("grad", [False, True])
def test_windows_are_attention_inside_windows(count, grad):
    qkv = numbers(2, 8, 12, 3 * 3 * 8).float().requires_grad_(grad)
    mask, bias = numbers(3, 16, 16, seed=1).float(), numbers(count, 3, 16, 16, seed=2).float()
    y = attend_masked_windows(qkv, mask, bias, 3, 4)
    q, k, v = windows(qkv.double(), 4).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    want = reference(q, k, v, mask.double(), bias.double().repeat(12 // count, 1, 1, 1))
    torch.testing.assert_close(y.double(), unwindow(want.transpose(1, 2).flatten(2), 8, 12, 4), rtol=1e-4, atol=1e-4)
