"""The wavelet transform: the authors' numbers, perfect reconstruction, and two back ends that agree."""

import pytest
import torch
from golden import golden

from patchloom.kernels.dtcwt import BACKENDS, analyse, banded, even, products, reference, synthesise

SIZES = [(20, 28), (1, 1), (5, 3), (2, 40), (33, 17), (6, 7)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_the_original(backend):
    record = golden.load("svt/dtcwt_level1")
    x = record.input().permute(0, 2, 3, 1)
    low, high = analyse(x, backend=backend)
    record.compare("low", low.permute(0, 3, 1, 2), 1e-6)
    record.compare("high", high.permute(2, 5, 0, 3, 4, 1), 1e-6)
    factor = torch.arange(1.0, 7)[:, None, None, None, None, None]
    back = synthesise(0.5 * low, high * factor, backend=backend)
    record.compare("inverse_scaled", back.permute(0, 3, 1, 2), 1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_inverse_gives_the_map_back(size, backend):
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    low, high = analyse(x, backend=backend)
    assert low.shape == even(x).shape
    assert high.shape == (6, 2, 2, low.shape[1] // 2, low.shape[2] // 2, 3)
    torch.testing.assert_close(synthesise(low, high, backend=backend), even(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["h0", "h1", "g0", "g1"])
@pytest.mark.parametrize("axis", [1, 2])
def test_back_ends_agree_in_value_and_gradient(size, name, axis):
    x, y = (torch.randn(2, *size, 3, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    a, b = reference(x, name, axis), products(y, name, axis)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    a.square().sum().backward()
    b.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-4, rtol=1e-4)


def test_low_pass_filters_keep_constants_and_high_pass_ones_remove_them():
    for name, gain in (("h0", 1), ("g0", 1), ("h1", 0), ("g1", 0)):
        matrix = torch.tensor(banded(9, name), dtype=torch.float64).view(9, 9)
        torch.testing.assert_close(matrix.sum(1), torch.full((9,), float(gain)).double())


def test_half_precision_is_computed_in_single():
    x = torch.randn(1, 16, 16, 4).bfloat16()
    low, high = analyse(x)
    assert low.dtype == high.dtype == torch.bfloat16
    want, _ = analyse(x.float())
    torch.testing.assert_close(low, want.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(analyse(x.float())[0], want)


def test_an_unknown_back_end_is_refused():
    with pytest.raises(ValueError, match="products"):
        analyse(torch.randn(1, 4, 4, 1), backend="fft")
