"""softmax(scale q k' + bias) v inside the windows of a map, straight from and to the layout of linear layers.

`attend` does it too, and defines it. But with 49 tokens a window the products are small: cutting windows, splitting
q, k and v apart, stacking their gradients and repeating the bias for every image cost as much as they do. Here one copy
cuts windows and splits q, k and v, one puts the result back into the map, the bias is written once into the scores that
the product is then added to, and the gradients of q, k and v are written next to each other.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .attend import attend, current
from .linear import eager, eager_float32
from .sizes import is_open, modulo

Grid = tuple[int, int, int, int, int]  # windows down and across, window size, heads, channels of a head


def reference(qkv: Tensor, bias: Tensor, heads: int, size: int) -> Tensor:
    """qkv (B H W 3*h*d), sides that are multiples of `size`; bias (1 or n h s*s s*s) for n windows an image, no row of
    it all -inf -> (B H W h*d). Defines the operation."""
    high, wide = qkv.shape[1:3]
    x = windows(qkv, size).unflatten(-1, (3, heads, -1))  # type: ignore[no-untyped-call]
    q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)  # B*n h s*s d
    if bias.shape[0] > 1:
        bias = bias.repeat(qkv.shape[0], 1, 1, 1)
    return unwindow(attend(q, k, v, bias).transpose(1, 2).flatten(2), high, wide, size)


def attend_beside(qkv: Tensor, special: Tensor, bias: Tensor, heads: int, size: int,
                  by: Callable[..., Tensor] = attend) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`reference` with k more tokens in front of those of every window, special (B k 3*h*d) and
    bias (1 or n h k+s*s k+s*s): the map (B H W h*d), and the mean over the windows of what the k tokens get (B k h*d).
    """
    (b, high, wide), k = qkv.shape[:3], special.shape[1]
    x, more = (
        m.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # type: ignore[no-untyped-call]
        for m in (windows(qkv, size), special)
    )
    count = x.shape[1] // b
    q, key, v = torch.cat([more.repeat_interleave(count, 1), x], 3).unbind(0)  # B*n h k+s*s d
    y = by(q, key, v, bias.repeat(b, 1, 1, 1) if bias.shape[0] > 1 else bias).transpose(1, 2).flatten(2)
    return unwindow(y[:, k:].contiguous(), high, wide, size), y[:, :k].unflatten(0, (b, count)).mean(1)  # type: ignore[no-untyped-call]


def attend_windows(qkv: Tensor, bias: Tensor, heads: int, size: int) -> Tensor:
    """`reference`, by the short way on a CPU (in float32; in bfloat16 without a graph, or with one under autocast)
    unless a back end was chosen or operators are being recorded."""
    graph = torch.is_grad_enabled() and (qkv.requires_grad or bias.requires_grad)
    half = not graph and eager(torch.bfloat16, qkv, bias)
    cast = graph and eager(torch.bfloat16, qkv, cast=True) and bias.dtype is torch.float32
    if not (half or cast or eager_float32(qkv, bias)) or current() != "auto":
        return reference(qkv, bias, heads, size)
    if graph:
        return _Windows.apply(qkv, bias, heads, size)  # type: ignore[no-any-return]
    grid = (qkv.shape[1] // size, qkv.shape[2] // size, size, heads, qkv.shape[3] // (3 * heads))
    return merge_windows(_half(qkv, bias, grid) if half else _forward(split_windows(qkv, grid), bias)[0], grid)


def windows(m: Tensor, s: int) -> Tensor:
    """(B H W C) -> (B*H/s*W/s s*s C): the windows of an image row by row."""
    b, h, w, c = m.shape
    return m.view(b, h // s, s, w // s, s, c).transpose(2, 3).reshape(-1, s * s, c)


def unwindow(x: Tensor, h: int, w: int, s: int) -> Tensor:
    """The inverse of `windows`, (B*h/s*w/s s*s C) -> (B h w C)."""
    return x.view(-1, h // s, w // s, s, s, x.shape[-1]).transpose(2, 3).reshape(-1, h, w, x.shape[-1])


def roll(m: Tensor, by: int) -> Tensor:
    """m (B H W C) rolled by `by` rows and columns, in one copy (torch.roll takes one a side)."""
    if is_open(by):
        h, w = m.shape[1:3]
        down, right = (modulo(torch.arange(n, device=m.device) - by, n, torch) for n in (h, w))
        return m.index_select(1, down).index_select(2, right)
    if not (eager_float32(m) or eager(torch.bfloat16, m)) or not by:
        return m.roll((by, by), (1, 2)) if by else m
    if torch.is_grad_enabled() and m.requires_grad:
        return _Roll.apply(m, by)  # type: ignore[no-any-return]
    return _rolled(m, by)


def _rolled(m: Tensor, by: int) -> Tensor:
    h, w = m.shape[1:3]
    out = torch.empty_like(m, memory_format=torch.contiguous_format)
    y, x = by % h, by % w
    for down, from_down in ((slice(y, h), slice(0, h - y)), (slice(0, y), slice(h - y, h))):
        for right, from_right in ((slice(x, w), slice(0, w - x)), (slice(0, x), slice(w - x, w))):
            out[:, down, right] = m[:, from_down, from_right]
    return out


class _Roll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, by: int) -> Tensor:
        ctx.by = by
        return _rolled(m, by)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return roll(grads[0], -ctx.by), None


def split_windows(qkv: Tensor, grid: Grid) -> Tensor:
    """(B H W 3*h*d) -> (3 B*n*h s*s d)."""
    down, across, s, heads, d = grid
    m = qkv.view(-1, down, s, across, s, 3, heads, d).permute(5, 0, 1, 3, 6, 2, 4, 7)
    return m.reshape(3, -1, s * s, d)


def merge_windows(y: Tensor, grid: Grid) -> Tensor:
    """(B*n*h s*s d) -> (B H W h*d), or (3 B*n*h s*s d) -> (B H W 3*h*d)."""
    down, across, s, heads, d = grid
    k = 3 if y.ndim == 4 else 1
    m = y.view(k, -1, down, across, heads, s, s, d).permute(1, 2, 5, 3, 6, 0, 4, 7)
    return m.reshape(-1, down * s, across * s, k * heads * d)


def _half(qkv: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """`_forward` of bfloat16: scores and softmax in float32, the weights rounded for the second product."""
    down, across, n, heads, d = grid
    m = qkv.view(-1, down, n, across, n, 3, heads, d).permute(5, 0, 1, 3, 6, 2, 4, 7)
    both = torch.empty_like(m[:2], dtype=torch.float32, memory_format=torch.contiguous_format).copy_(m[:2])
    q, k = both.view(2, -1, n * n, d).unbind(0)
    score = q.new_empty(q.shape[0], n * n, n * n)
    score.view(-1, *bias.shape).copy_(bias)
    score.baddbmm_(q, k.mT, alpha=d**-0.5)
    return torch.bmm(torch.softmax(score, -1, out=score).to(qkv.dtype), m[2].reshape(-1, n * n, d))


def _forward(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The result (B*n*h s*s d) and the weights (B*n*h s*s s*s). Under autocast the products are bfloat16, the bias and
    the softmax float32."""
    q, k, v = qkv.unbind(0)
    n = q.shape[1]
    if qkv.dtype is torch.bfloat16:
        product = torch.bmm(q, k.mT).view(-1, *bias.shape)
        score = torch.add(bias, product, alpha=q.shape[-1] ** -0.5).view(-1, n, n)
        weight = torch.softmax(score, -1, out=score).to(qkv.dtype)
        return torch.bmm(weight, v), weight
    score = q.new_empty(q.shape[0], n, n)
    score.view(-1, *bias.shape).copy_(bias)
    score.baddbmm_(q, k.mT, alpha=q.shape[-1] ** -0.5)
    torch.softmax(score, -1, out=score)
    return torch.bmm(score, v), score


class _Windows(torch.autograd.Function):
    """P the weights: dv = P' dy, dS = P (dP - rowsum(P dP)) for dP = dy v', dq = dS k, dk = dS' q, dbias = sum dS."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, heads: int, size: int) -> Tensor:
        ctx.grid = (qkv.shape[1] // size, qkv.shape[2] // size, size, heads, qkv.shape[3] // (3 * heads))
        ctx.bias_shape = bias.shape
        parts = split_windows(qkv, ctx.grid)
        y, weight = _forward(parts, bias)
        ctx.save_for_backward(parts, weight)
        return merge_windows(y, ctx.grid)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        parts, weight = ctx.saved_tensors
        q, k, v = parts.unbind(0)
        down, across, s, heads, d = ctx.grid
        dy = dy.reshape(-1, down, s, across, s, heads, d).permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, s * s, d)
        grads = torch.empty_like(parts)
        torch.bmm(weight.mT, dy, out=grads[2])
        score = torch.bmm(dy, v.mT)
        score = torch._softmax_backward_data(score, weight, -1, score.dtype)
        dbias = score.view(-1, *ctx.bias_shape).sum(0, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        scale = d**-0.5
        torch.baddbmm(grads[0], score, k, beta=0, alpha=scale, out=grads[0])
        torch.baddbmm(grads[1], score.mT, q, beta=0, alpha=scale, out=grads[1])
        return merge_windows(grads, ctx.grid), dbias, None, None
