"""Convolution and activation in one, without a gradient: what the reference computes."""

import pytest
import torch

from patchloom.kernels.convolution import convolution, reference


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("act", ["none", "gelu", "relu", "silu"])
@pytest.mark.parametrize(("groups", "kernel", "stride"), [(1, 3, 2), (6, 3, 1), (6, 3, 2), (1, 1, 1), (2, 5, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_reference(act, groups, kernel, stride, bias):
    x, w = numbers(2, 6, 17, 9), numbers(12, 6 // groups, kernel, kernel, seed=1)
    given = w, numbers(12, seed=2) if bias else None, stride, kernel // 2, groups, act
    want = reference(x, *given)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(convolution(x.contiguous(memory_format=layout), *given), want, rtol=1e-5, atol=1e-5)


def test_a_gradient_passes():
    x, w = numbers(1, 4, 5, 5), numbers(4, 1, 3, 3, seed=1).requires_grad_()
    convolution(x, w, None, 1, 1, 4, "gelu").sum().backward()
    assert w.grad.any()
