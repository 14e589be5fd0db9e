"""Layers whose forward pass is exact and which keep little for the backward one: SlimFit, arXiv 2305.18513.

What is kept is rounded to few bits of fixed point, or thinned out; gradients are those of what was kept. A linear layer
or norm keeps its input for its weight's gradient only, so frozen weights save the most. Under autocast every function
casts as torch's own does. None is twice differentiable, and tensors without a gradient take torch's own functions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import eager_float32, outer
from .linear import linear as plain_linear

once = torch.autograd.function.once_differentiable
BITS_8, BITS_4 = (3, 4), (2, 1)  # bits before and behind the point, beside the sign
SHARE = 0.1  # of the normalised values, that a frozen norm keeps


def fixed(x: Tensor, whole: int, part: int) -> Tensor:
    """clamp(round(x 2^part), -2^(whole+part), 2^(whole+part) - 1): int8 codes of x, 2^part to a unit."""
    top = 1 << (whole + part)
    return (x * (1 << part)).round_().clamp_(-top, top - 1).to(torch.int8)


def pack(x: Tensor) -> Tensor:
    """4-bit codes of x, two in a byte: the first half of the flat tensor in the high nibbles, offset by 8."""
    codes = fixed(x, *BITS_4).flatten() + 8
    if codes.numel() % 2:
        codes = F.pad(codes, (0, 1))
    high, low = codes.to(torch.uint8).chunk(2) if codes.numel() else (codes.to(torch.uint8),) * 2
    return high * 16 + low


def unpack(packed: Tensor, like: Tensor) -> Tensor:
    """The inverse, in shape and type of `like`."""
    codes = torch.cat((packed >> 4, packed & 15))[: like.numel()]
    return (codes.to(like.dtype) - 8).div_(1 << BITS_4[1]).view(like.shape)


def recording(*tensors: Tensor | None) -> bool:
    """Whether a graph is made of what is computed from these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast(*tensors: Tensor | None, to: torch.dtype | None = None) -> list[Any]:
    """Under autocast, the tensors in its type, or in `to`; else as they are."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device) if to is None else to
    return [t if t is None or t.dtype is torch.float64 else t.to(dtype) for t in tensors]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b of x (… K), weight (N K), bias (N) or None, that keeps x in 8 bits, and nothing of it where the weight
    is frozen."""
    x, weight, bias = autocast(x, weight, bias)
    return _Linear.apply(x, weight, bias) if recording(weight) else plain_linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(fixed(x, *BITS_8), weight)
        return plain_linear(x, weight, bias)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        codes, weight = ctx.saved_tensors
        need_x, _, need_bias = ctx.needs_input_grad
        rows, kept = dy.reshape(-1, dy.shape[-1]), codes.reshape(-1, codes.shape[-1]).to(dy.dtype)
        dw = outer(rows, kept) if eager_float32(rows, kept) else rows.t() @ kept
        dx = plain_linear(dy, weight.t()) if need_x else None
        return dx, dw.div_(1 << BITS_8[1]), rows.sum(0) if need_bias else None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5, share: float = SHARE) -> Tensor:
    """The norm of x (… C) over C. Where the weight is frozen it keeps the deviations and, of the normalised values, the
    `share` that are the largest in the whole tensor, taking the others for 0.

    The authors' backward pass adds 1e-12 to the variance, whatever their forward pass does; here both add `eps`.
    """
    x, weight, bias = autocast(x, weight, bias, to=torch.float32)
    if weight.requires_grad or not recording(x, bias):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return _LayerNorm.apply(x, weight, bias, eps, share)  # type: ignore[no-any-return]


class _LayerNorm(torch.autograd.Function):
    """dx = (g - mean(g) - n mean(g n)) / std, with g = w dy and the normalised values n as they were kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, share: float) -> Tensor:
        y, mean, scale = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)  # scale = 1 / std
        if ctx.needs_input_grad[0]:
            normal = ((x - mean) * scale).flatten()
            index = normal.abs().topk(int(share * normal.numel()), sorted=False).indices
            small = normal.numel() < 1 << 31
            ctx.save_for_backward(normal[index].to(x.dtype), index.int() if small else index, scale, weight)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx: Tensor | None = None
        if ctx.needs_input_grad[0]:
            values, index, scale, weight = ctx.saved_tensors
            g = (dy * weight).to(scale.dtype)
            n = g.new_zeros(g.numel()).scatter_(0, index.long(), values.to(g.dtype)).view(g.shape)
            dx = (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)).mul_(scale).to(dy.dtype)
        db = dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
        return dx, None, db, None, None


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, that keeps x in 4 bits: its gradient is that at the nearest half in [-4, 3.5]."""
    return _Gelu.apply(x) if recording(x) else F.gelu(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(pack(x))
        return F.gelu(x)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (packed,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(dy, unpack(packed, dy))  # type: ignore[no-any-return]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b' of a (… N d) and b (… M d), that keeps both in 8 bits."""
    a, b = autocast(a, b)
    return _Matmul.apply(a, b) if recording(a, b) else a @ b.mT


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        need_a, need_b = ctx.needs_input_grad
        ctx.save_for_backward(fixed(b, *BITS_8) if need_a else None, fixed(a, *BITS_8) if need_b else None)
        return a @ b.mT

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        b, a = (None if kept is None else kept.to(dy.dtype) for kept in ctx.saved_tensors)
        unit = 1 << BITS_8[1]
        return None if b is None else (dy @ b).div_(unit), None if a is None else (dy.mT @ a).div_(unit)


def weighed(score: Tensor, v: Tensor) -> Tensor:
    """softmax(score) v of score (… N M) and v (… M d), that keeps the weights in unsigned 8 bits, 256 to a unit, and v
    in 8 bits."""
    return _Weighed.apply(score, v) if recording(score, v) else score.softmax(-1) @ v


class _Weighed(torch.autograd.Function):
    """With the weights p: dv = p' dy, dp = dy v', dscore = p (dp - sum(p dp))."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, v: Tensor) -> Tensor:
        p = score.softmax(-1)
        codes = (p * 256).round_().clamp_(max=255).to(torch.uint8)
        ctx.save_for_backward(codes, fixed(v, *BITS_8) if ctx.needs_input_grad[0] else None)
        return p.to(v.dtype) @ v

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        codes, v = ctx.saved_tensors
        p = codes.to(dy.dtype).div_(256)
        ds = None
        if v is not None:
            dp = (dy @ v.to(dy.dtype).mT).div_(1 << BITS_8[1]).mul_(p)
            ds = dp.sub_(p * dp.sum(-1, keepdim=True))
        return ds, p.mT @ dy if ctx.needs_input_grad[1] else None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """`kernels.attend.attend` by `matmul` and `weighed`, for q (B h N d), k v (B h M d), bias as there -> (B h N d).
    It keeps 3 d + M bytes a query and head (N = M), where the fused kernels keep 4 d numbers. In float32 inside."""
    device, dtype = q.device.type, autocast(v)[0].dtype
    with torch.autocast(device, enabled=False):
        q, k, v = (t if t.dtype is torch.float64 else t.float() for t in (q, k, v))
        score = matmul(q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if bias is None:
            return weighed(score, v).to(dtype)
        score = score.masked_fill(~bias, -torch.inf) if bias.dtype is torch.bool else score + bias
        empty = (score == -torch.inf).all(-1, keepdim=True)
        return weighed(score.masked_fill(empty, 0), v).masked_fill(empty, 0).to(dtype)
