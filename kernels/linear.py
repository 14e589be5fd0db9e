"""y = activation(x W' + b), the matrix product in which every transformer spends most of its time.

`F.linear` defines the operation. On a CPU in float32 torch sends it to the BLAS it was built with, which leaves a tenth
to a half of the processor idle at the tall and narrow shapes of vision models; oneDNN, which the same torch carries for
convolutions, does not. So there the product and both its gradients go through oneDNN, and an exact GELU is applied
while the result is still in cache.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NARROW_ROWS, NARROW_CHANNELS, FEW_ROWS = 2048, 256, 768
SMALL = 1 << 23  # multiply-adds of a product over which oneDNN takes longer to prepare itself than it saves


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """x (… K), weight (N K), bias (N) or None -> (… N); defines the operation."""
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """`reference`, by oneDNN where that is the same arithmetic and faster: float32 on a CPU, outside of autocast and
    of anything that records operators (compile, export, tracing, operator counters)."""
    if not eager_float32(x, weight) or x.numel() * weight.shape[0] < SMALL:
        return reference(x, weight, bias, gelu=gelu)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        y = _Linear.apply(x, weight, bias)
        return F.gelu(y) if gelu else y
    return product(x, weight, bias, gelu=gelu)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """`reference` of eager float32 or bfloat16 tensors on a CPU, without a gradient. Many tokens of few channels go
    through oneDNN's 1x1 convolution, which is faster there than its matrix product; bfloat16 through what torch takes,
    which is oneDNN too, but for the GELU."""
    if not (torch.backends.mkldnn.enabled and _available(x.dtype)) or (x.dtype is torch.bfloat16 and not gelu):
        return reference(x, weight, bias, gelu=gelu)
    (n, k), rows = weight.shape, x.numel() // weight.shape[1]
    if rows * n * k < SMALL:
        return reference(x, weight, bias, gelu=gelu)
    if gelu or rows < NARROW_ROWS or k > NARROW_CHANNELS:
        return _onednn(x, weight, bias, gelu)
    m, w, one = x.reshape(1, rows, 1, k).permute(0, 3, 1, 2), weight[..., None, None], (1, 1)
    y = torch.ops.aten.mkldnn_convolution(m, w, bias, (0, 0), one, one, 1)  # F.conv2d goes another way on one thread
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], n)  # type: ignore[no-any-return]


def eager(dtype: torch.dtype, *tensors: Tensor, cast: bool = False) -> bool:
    """Whether these have `dtype` on a CPU and nothing records, transforms or (unless `cast`, which asks for autocast)
    casts operators: where a short form of operators of its own may stand in for the plain one."""
    for t in tensors:
        if t.dtype is not dtype or not t.is_cpu:
            return False
    return torch.is_autocast_enabled("cpu") is cast and unwatched()


def unwatched() -> bool:
    """Whether nothing records or transforms operators: compile, export, tracing, functorch, operator counters."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def eager_float32(*tensors: Tensor) -> bool:
    return eager(torch.float32, *tensors)


def outer(dy: Tensor, x: Tensor) -> Tensor:
    """dy' x, the gradient of a weight: dy (R N), x (R K) -> (N K), of eager float32 tensors on a CPU, without a graph.

    The BLAS does that well, but for AMD's processors of 512 bits, of which it uses half. There oneDNN takes it: of many
    rows as the gradient of a 1x1 convolution's weight, which needs no transposed copy; of few as a product.
    """
    (r, n), k = dy.shape, x.shape[1]
    if not (half_used() and torch.backends.mkldnn.enabled and _available(dy.dtype)):
        return dy.t() @ x
    if r < FEW_ROWS:
        return _onednn(dy.t(), x.t(), None, False)
    image, grad = (t[None, :, None].permute(0, 3, 1, 2) for t in (x, dy))
    weight = dy.new_empty(n, k, 1, 1)
    no, once = [0, 0], [1, 1]
    found = torch.ops.aten.convolution_backward(
        grad, image, weight, None, once, no, once, False, no, 1, [False, True, False]
    )[1]
    return found.view(n, k)  # type: ignore[no-any-return]


@cache
def half_used() -> bool:
    """Whether torch's BLAS, MKL, takes this processor for one of 256 bits though it has 512: AMD's since Zen 5."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    about = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
    return about.get("vendor_id") == "AuthenticAMD" and int(about["cpu family"]) >= 26


_probed: dict[torch.dtype, bool] = {}


def _available(dtype: torch.dtype) -> bool:
    """Whether this torch has the operator and it computes what `reference` does (probed once a type, at first use)."""
    if dtype not in _probed:
        _probed[dtype] = False
        here = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
        if here and dtype is torch.bfloat16:  # which older processors have no products of
            here = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if here:
            with torch.inference_mode(False), torch.no_grad():
                x, w, b = (
                    torch.linspace(-1, 1, n, dtype=dtype).reshape(s) for n, s in ((6, (2, 3)), (12, (4, 3)), (4, (4,)))
                )
                far = 1e-6 if dtype is torch.float32 else 1e-2
                same = torch.allclose(_onednn(x, w, b, True), reference(x, w, b, gelu=True), atol=far)
                _probed[dtype] = same and torch.allclose(_onednn(x, w, None, False), x @ w.t(), atol=far)
    return _probed[dtype]


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    post: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, *post)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """dx = dy W, dW = dy' x, db = sum dy; where a graph of it is wanted, in differentiable operations. A frozen weight
    needs no x, so that none is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _onednn(x, weight, bias, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (dy,), (x, weight) = grads, ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        dx = linear(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dw = None
        if ctx.needs_input_grad[1]:
            given = x.reshape(-1, x.shape[-1])
            plain = torch.is_grad_enabled() or not eager_float32(rows, given)
            dw = rows.t() @ given if plain else outer(rows, given)
        db = rows.sum(0) if ctx.needs_input_grad[2] else None
        return dx, dw, db
