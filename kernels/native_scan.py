"""The selective scan on a CPU, and the softplus before it, by native/selective_scan.c, which is compiled on first use.
`selective_scan` says when they may be used."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from .native import library

CHUNK = 32  # steps between two states that are kept for the backward pass; the C knows it too


def scan(u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor | None, reverse: bool,
         gap: Tensor | None, idle: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """u, d (B L D), A (D N), B, C (B L G N), h (B D N) or None, gap (B L) and idle (D) or None, all float32 -> y (B L
    D), the last state (B D N)."""
    return _Scan.apply(u, d, A, B, C, h, reverse, gap, idle)  # type: ignore[no-any-return]


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) of float32 numbers."""
    return _Softplus.apply(x)  # type: ignore[no-any-return]


class Problem(ctypes.Structure):
    """`problem` of native/selective_scan.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "length", "channels", "groups", "states", "splits", "reverse")),
        *((n, ctypes.c_void_p) for n in ("u", "d", "A", "B", "C", "first", "gap", "idle", "y", "kept", "last")),
    ]


class Gradient(ctypes.Structure):
    """`gradient` of native/selective_scan.c."""

    _fields_ = [
        ("p", Problem),
        *((n, ctypes.c_void_p) for n in ("dy", "dlast", "du", "dd", "dA", "dB", "dC", "dfirst", "didle")),
    ]


def pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor | None,
                reverse: bool, gap: Tensor | None, idle: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        u, d, B, C = (t.contiguous() for t in (u, d, B, C))
        gap, idle = (None if t is None else t.contiguous() for t in (gap, idle))
        (b, length, channels), (g, n) = u.shape, B.shape[2:]
        decay = (A * 1.4426950408889634).t().contiguous()  # N D, of powers of two
        first = None if h is None else h.transpose(1, 2).contiguous()
        grad = any(ctx.needs_input_grad)
        y, last = torch.empty_like(u), u.new_empty(b, n, channels)
        kept = u.new_empty(b, length // CHUNK, n, channels) if grad else None
        splits = max(1, min(-(-torch.get_num_threads() // (b * g)), -(-channels // (16 * g))))
        problem = Problem(b, length, channels, g, n, splits, int(reverse),
                          *map(pointer, (u, d, decay, B, C, first, gap, idle, y, kept, last)))  # fmt: skip
        compiled().selective_scan_forward(ctypes.byref(problem))
        ctx.splits, ctx.reverse = splits, reverse
        ctx.save_for_backward(u, d, decay, B, C, first, gap, idle, kept)
        return y, last.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        u, d, decay, B, C, first, gap, idle, kept = ctx.saved_tensors
        (b, length, channels), (g, n) = u.shape, B.shape[2:]
        dy = dy.contiguous()
        dlast = None if dlast is None else dlast.transpose(1, 2).contiguous()
        du, dd, dA = torch.empty_like(u), torch.empty_like(d), u.new_zeros(b, n, channels)
        dB, dC = (u.new_zeros(ctx.splits, b, length, g, n) for _ in range(2))
        dfirst = None if first is None else torch.empty_like(first)
        didle = None if idle is None else u.new_zeros(b, channels)
        problem = Problem(b, length, channels, g, n, ctx.splits, int(ctx.reverse),
                          *map(pointer, (u, d, decay, B, C, first, gap, idle, None, kept, None)))  # fmt: skip
        gradient = Gradient(problem, *map(pointer, (dy, dlast, du, dd, dA, dB, dC, dfirst, didle)))
        compiled().selective_scan_backward(ctypes.byref(gradient))
        whole = [t[0] if ctx.splits == 1 else t.sum(0) for t in (dB, dC)]
        dh = None if dfirst is None else dfirst.transpose(1, 2)
        return du, dd, dA.sum(0).t(), *whole, dh, None, None, None if didle is None else didle.sum(0)


class _Softplus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        compiled().softplus_forward(*(ctypes.c_void_p(t.data_ptr()) for t in (x, y)), ctypes.c_int64(x.numel()))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,), dy = ctx.saved_tensors, dy.contiguous()
        dx = torch.empty_like(x)
        compiled().softplus_backward(*(ctypes.c_void_p(t.data_ptr()) for t in (x, dy, dx)), ctypes.c_int64(x.numel()))
        return dx


def compiled() -> ctypes.CDLL:
    """The library, for those who were told that there is one."""
    lib = library("selective_scan")
    assert lib is not None
    return lib
