"""The bias by distance: looked up as defined, on any grid, with the reference's gradient."""

import pytest
import torch

from patchloom.kernels.distance_bias import distance_bias, reference


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [(7, 7), (5, 8), (1, 3), (14, 14)], ids=str)
@pytest.mark.parametrize("step", [1, 2])
def test_equals_the_reference(grid, step):
    found = []
    for form in (reference, distance_bias):
        table = numbers(3, grid[0] * grid[1]).requires_grad_()
        bias = form(table, grid, step)
        bias.mul(numbers(*bias.shape, seed=1)).sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(form(table, grid, step), bias.detach(), rtol=0, atol=0)
        found.append((bias.detach(), table.grad))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=0)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-5)


def test_the_entry_is_the_distance():
    h, w = 6, 5
    bias = distance_bias(torch.arange(30.0)[None], (h, w), 2)
    assert bias.shape == (1, 9, 30)
    for q, (y, x) in enumerate((y, x) for y in range(0, h, 2) for x in range(0, w, 2)):
        for k in range(30):
            assert bias[0, q, k] == abs(y - k // w) * w + abs(x - k % w)
