"""Rotary positions: the fast form is the reference, and products of turned vectors depend on distance alone."""

import pytest
import torch

from patchloom.kernels.rotary import reference, rotate
from patchloom.vision.mixers.rotary import turns_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 17, 63])
def test_the_fast_form_is_the_reference(n, dtype):
    x = torch.randn(2, n, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    turns = torch.from_numpy(turns_of(n, 8))[:, None]
    pairs = []
    for form in (rotate, reference):
        leaf = x.clone().requires_grad_()
        y = form(leaf[:, :, 1:], turns)  # a slice, as q and k are
        y.square().sum().backward()
        pairs.append((y.detach(), leaf.grad))
    for got, want in zip(*pairs, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want)


def test_products_depend_on_the_distance_alone():
    turns = torch.from_numpy(turns_of(30, 16))
    q, k = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, 30, 16).unbind(0)
    score = rotate(q, turns) @ rotate(k, turns).mT
    for distance in (-3, 0, 7):
        line = score.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-4)


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="7 channels of a head do not pair up"):
        turns_of(4, 7)
