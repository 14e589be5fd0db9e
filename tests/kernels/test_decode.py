"""Attention over a cache: its forms are the reference, and parts merge to the whole."""

import pytest
import torch
from torch import Tensor

from patchloom.kernels.attend import reference as attend_reference
from patchloom.kernels.decode import BACKENDS, decode, fused, merge, partial, reference, split, weights

SHAPES = [(2, 8, 2, 1, 1001, 16), (1, 4, 4, 3, 17, 8), (1, 8, 1, 1, 640, 8), (2, 6, 3, 2, 1, 8), (1, 2, 2, 1, 0, 8)]


def inputs(shape: tuple[int, ...], bias: str | None, dtype: torch.dtype = torch.float32) -> tuple[Tensor | None, ...]:
    b, h, g, n, m, d = shape
    made: Tensor | None = None
    if bias == "mask":
        made = torch.rand(b, 1, 1, m) > 0.4
    elif bias == "rows":
        made = torch.rand(b, h, n, m) > 0.5
        made[0, 0] = False
    elif bias == "float":
        made = torch.randn(b, h, n, m, dtype=dtype)
    q, k, v = (torch.randn(b, heads, rows, d, dtype=dtype) for heads, rows in ((h, n), (g, m), (g, m)))
    return q, k, v, made


@pytest.mark.parametrize("bias", [None, "mask", "rows", "float"])
@pytest.mark.parametrize("shape", SHAPES)
def test_forms_agree(shape: tuple[int, ...], bias: str | None) -> None:
    q, k, v, made = inputs(shape, bias)
    assert q is not None
    assert k is not None
    assert v is not None
    want = reference(q.double(), k.double(), v.double(), made)
    wide = [x.double().repeat_interleave(shape[1] // shape[2], 1) for x in (k, v)]
    torch.testing.assert_close(want, attend_reference(q.double(), *wide, made))
    for name in BACKENDS:
        got = decode(q, k, v, made, backend=name)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5, msg=name)
    for parts in (2, 3, 7):
        torch.testing.assert_close(split(q, k, v, made, parts=parts).double(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        decode(q, k, v, made, scale=0.3), reference(q, k, v, made, scale=0.3), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("cuts", [(1000,), (1, 999), (250, 250, 500), (0, 400, 600)])
def test_parts_merge_to_the_whole(cuts: tuple[int, ...]) -> None:
    q, k, v, bias = inputs((2, 4, 2, 1, 1000, 8), "mask", torch.float64)
    assert bias is not None
    bias[:, :, :, : cuts[0]] = False  # a part that sees nothing adds nothing
    pieces, start = [], 0
    for n in cuts:
        at = slice(start, start + n)
        pieces.append(partial(q, k[:, :, at], v[:, :, at], bias[..., at]))  # type: ignore[index, arg-type]
        start += n
    y, lse = merge(pieces)
    want, total = partial(q, k, v, bias)  # type: ignore[arg-type]
    torch.testing.assert_close(y, want)
    torch.testing.assert_close(lse, total)
    torch.testing.assert_close(merge([merge(pieces[:1]), *pieces[1:]])[0], want)


def test_gradients_are_the_references() -> None:
    found = []
    for form in (reference, split, fused):
        torch.manual_seed(0)
        q, k, v, bias = inputs((1, 4, 2, 1, 600, 8), "float")
        leaves = [x.requires_grad_() for x in (q, k, v, bias)]  # type: ignore[union-attr]
        found.append(torch.autograd.grad(form(*leaves).square().sum(), leaves))  # type: ignore[operator]
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_half_precision(name: str) -> None:
    q, k, v, _ = inputs((1, 4, 2, 1, 600, 16), None)
    half = [x.bfloat16() for x in (q, k, v)]  # type: ignore[union-attr]
    want = reference(*(x.double() for x in half))
    own = float((reference(*half).double() - want).abs().max())
    got = decode(*half, backend=name)
    assert got.dtype == torch.bfloat16
    assert float((got.double() - want).abs().max()) <= 2 * own


def test_autocast_rounds_no_part() -> None:
    q, k, v, bias = inputs((1, 4, 2, 1, 600, 16), "mask")
    want = partial(q, k, v, bias)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        got = partial(q, k, v, bias)  # type: ignore[arg-type]
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got, want)


def test_weights_sum_to_one_or_nothing() -> None:
    q, k, _, bias = inputs((2, 4, 2, 3, 9, 8), "rows")
    w = weights(q, k, bias)  # type: ignore[arg-type]
    torch.testing.assert_close(w.sum(-1), bias.any(-1).float())  # type: ignore[union-attr]
    assert bool((w[~bias] == 0).all())  # type: ignore[operator]


def test_wrong_input() -> None:
    q, k, v, _ = inputs((1, 4, 3, 1, 5, 8), None)
    with pytest.raises(ValueError, match="4 query heads do not share 3"):
        decode(q, k, v)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'fast' is not known"):
        decode(q, q, q, backend="fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parts 0"):
        split(q, q, q, parts=0)  # type: ignore[arg-type]
