"""The selective scan of Mamba (S6, https://arxiv.org/abs/2312.00752): a linear recurrence whose decay, input and output
weights depend on the token.

    d_t = softplus(delta_t + delta_bias)
    h_t = exp(d_t A) h_{t-1} + d_t B_t u_t
    y_t = (C_t . h_t + D u_t) silu(z_t)

for each of D channels, with a state h of N numbers. `reference` defines the operation; `chunked` is plain torch for any
device, the default; `native` is C for CPUs, compiled and tried on first use (kernels/native); `exported` stands in for
them while a model is exported, and takes any length in one graph (docs/export.md). State, decays and softplus are kept
in float32 (float64 where u is), whatever the type of u; y has u's.
"""

import ctypes
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import chunks
from .chunks import in_float32, refuse_growth, without_autocast
from .linear import eager_float32
from .native import library

Backend = Literal["auto", "reference", "chunked", "native"]
BACKENDS = ("auto", "reference", "chunked", "native")
CHUNK = 32  # steps between two states that the backward pass finds kept (native)
SEGMENT, WIDE = 1 << 20, 1 << 16  # states in a segment, and in a step of it that is worth its overhead (chunked)
_chosen: ContextVar[str] = ContextVar("selective_scan", default="auto")


class Scan(NamedTuple):
    """The arguments of the bare recurrence, all of one type: u, d (B L D), A (D N), B, C (B L G N), h (B D N) or None
    for a state of zeros."""

    u: Tensor
    d: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    h: Tensor | None
    reverse: bool


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Within it, `selective_scan` takes this form where it is not told another."""
    checked(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, *, softplus: bool = True, reverse: bool = False, state: Tensor | None = None,
    return_state: bool = False, backend: Backend = "auto",
) -> Any:  # fmt: skip
    """u, delta, z (B L D); A (D N), negative; B, C (B L N) or (B L G N), a group for D / G channels that lie side by
    side; D, delta_bias (D); state (B D N): what came before the first token. -> y (B L D), and the last state (B D N)
    with `return_state`. `reverse` scans from the last token to the first.

    Raises ValueError where shapes do not fit, for an unknown back end, and for a positive A, whose states would grow
    without bound (looked at on a CPU only: elsewhere one would have to wait for the answer).
    """
    name = checked(backend if backend != "auto" else _chosen.get())
    shaped(u, delta, A, B, C, D, z, delta_bias, state)
    kept = in_float32(u)
    with without_autocast(u):
        d = delta.to(kept)
        if delta_bias is not None:
            d = d + delta_bias.to(kept)
        if softplus:
            d = F.softplus(d)
        groups = [t.to(kept) if t.ndim == 4 else t.to(kept)[:, :, None] for t in (B, C)]
        x = u.to(kept)
        scan = Scan(x, d, A.to(kept), groups[0], groups[1], None if state is None else state.to(kept), reverse)
        y, last = form_of(name, scan)(scan)
        if D is not None:
            y = y + D.to(kept) * x
        y = y.to(u.dtype)
    if z is not None:
        y = y * F.silu(z)
    return (y, last) if return_state else y


def step(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, D: Tensor | None = None,
    z: Tensor | None = None, delta_bias: Tensor | None = None, *, softplus: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One token after another: u, delta, z (B D), B, C (B N) or (B G N), state (B D N) -> y (B D) and the next
    state."""
    y, last = selective_scan(
        u[:, None], delta[:, None], A, B[:, None], C[:, None], D, None if z is None else z[:, None], delta_bias,
        softplus=softplus, state=state, return_state=True, backend="reference",
    )  # fmt: skip
    return y[:, 0], last


def form_of(name: str, scan: Scan) -> Callable[[Scan], tuple[Tensor, Tensor]]:
    if scan.u.is_meta:
        return shapes_only
    if name == "reference":
        return reference
    if torch.compiler.is_exporting():
        return exported
    if name == "native" and not fits(scan):
        raise ValueError(
            "the native selective scan takes float32 tensors on a CPU, outside of compile, export and transforms, "
            "and a C compiler; backend='chunked' takes anything"
        )
    return native if name == "native" or (name == "auto" and fits(scan)) else chunked


def checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r}: selective_scan has {', '.join(BACKENDS)}")
    return name


def shaped(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
           delta_bias: Tensor | None, state: Tensor | None) -> None:  # fmt: skip
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"selective_scan takes u (B L D) and A (D N); got {tuple(u.shape)} and {tuple(A.shape)}")
    (b, length, d), n = u.shape, A.shape[1]
    g = B.shape[2] if B.ndim == 4 else 1
    grouped = (b, length, g, n) if B.ndim == 4 else (b, length, n)
    wanted = {
        "delta": (delta, (b, length, d)), "A": (A, (d, n)), "B": (B, grouped), "C": (C, grouped), "D": (D, (d,)),
        "z": (z, (b, length, d)), "delta_bias": (delta_bias, (d,)), "state": (state, (b, d, n)),
    }  # fmt: skip
    for name, (t, shape) in wanted.items():
        if t is not None and tuple(t.shape) != shape:
            raise ValueError(
                f"selective_scan: {name} is {tuple(t.shape)}, beside u {tuple(u.shape)} it must be {shape}"
            )
    if d % g:
        raise ValueError(f"selective_scan: {d} channels do not divide into {g} groups of B and C")
    refuse_growth(A, "selective_scan")


# ------------------------------------------------------------------------------------------------------------ forms


def reference(scan: Scan) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token; defines the operation."""
    u, d, A, B, C, h, reverse = scan
    width = u.shape[2] // B.shape[2]
    if h is None:
        h = u.new_zeros(u.shape[0], *A.shape)
    ys = []
    steps = list(zip(u.unbind(1), d.unbind(1), B.unbind(1), C.unbind(1), strict=True))
    for u_t, d_t, B_t, C_t in reversed(steps) if reverse else steps:
        b, c = (t.repeat_interleave(width, 1) for t in (B_t, C_t))  # B D N
        h = torch.exp(d_t[..., None] * A) * h + (d_t * u_t)[..., None] * b
        ys.append((h * c).sum(-1))
    return torch.stack(ys[::-1] if reverse else ys, 1), h


def exported(scan: Scan) -> tuple[Tensor, Tensor]:
    """The recurrence as one operator of an exported graph, which need not know the length: nothing larger than the
    state is made in a step."""
    u, d, A, B, C, h, reverse = scan
    width = u.shape[2] // B.shape[2]
    if h is None:
        h = u.new_zeros(u.shape[0], *A.shape)
    if reverse:
        u, d, B, C = (t.flip(1) for t in (u, d, B, C))

    def step(h: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        d_t, x_t, B_t, C_t = now
        b, c = (t[:, :, None].expand(-1, -1, width, -1).flatten(1, 2) for t in (B_t, C_t))  # B D N
        h = torch.exp(d_t[..., None] * A) * h + x_t[..., None] * b
        return h, (h * c).sum(-1)

    last, ys = chunks.scan(step, h, tuple(t.movedim(1, 0) for t in (d, d * u, B, C)))
    y = ys.movedim(0, 1)
    return (y.flip(1) if reverse else y), last


def shapes_only(scan: Scan) -> tuple[Tensor, Tensor]:
    """What the others give on the meta device, where nothing is to be computed."""
    return torch.empty_like(scan.u), scan.u.new_empty(scan.u.shape[0], *scan.A.shape)


def fits(scan: Scan) -> bool:
    """Whether `native` may take these."""
    given = [t for t in scan[:6] if isinstance(t, Tensor)]
    return eager_float32(*given) and scan.u.numel() > 0 and trusted()


@cache
def trusted() -> bool:
    """Whether there is a compiled form and it gives what `reference` gives, forward and backward, on a small example;
    one warning where it does not."""
    if library("selective_scan") is None:
        return False
    with torch.inference_mode(False), torch.enable_grad():
        g = torch.Generator().manual_seed(0)
        shapes = ((1, 40, 20), (1, 40, 20), (20, 3), (1, 40, 2, 3), (1, 40, 2, 3), (1, 20, 3))
        u, d, A, B, C, h = (torch.rand(s, generator=g).requires_grad_() for s in shapes)
        found = []
        for form in (native, reference):
            y, last = form(Scan(u, d, -A, B, C, h, True))
            found.append((y, last, *torch.autograd.grad(y.sum() + last.sum(), (u, d, A, B, C, h))))
        same = all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))
    if not same:
        warnings.warn("the compiled selective scan does not compute what it should; the plain form runs", stacklevel=2)
    return same


def native(scan: Scan) -> tuple[Tensor, Tensor]:
    u, d, A, B, C, h, reverse = scan
    return _Native.apply(u, d, A, B, C, h, reverse)  # type: ignore[no-any-return]


class Problem(ctypes.Structure):
    """`problem` of native/selective_scan.c."""

    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "length", "channels", "groups", "states", "splits", "reverse")),
        *((n, ctypes.c_void_p) for n in ("u", "d", "A", "B", "C", "first", "y", "kept", "last")),
    ]


class Gradient(ctypes.Structure):
    """`gradient` of native/selective_scan.c."""

    _fields_ = [
        ("p", Problem),
        *((n, ctypes.c_void_p) for n in ("dy", "dlast", "du", "dd", "dA", "dB", "dC", "dfirst")),
    ]


def pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor | None,
                reverse: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
        u, d, B, C = (t.contiguous() for t in (u, d, B, C))
        (b, length, channels), (g, n) = u.shape, B.shape[2:]
        decay = (A * 1.4426950408889634).t().contiguous()  # N D, of powers of two
        first = None if h is None else h.transpose(1, 2).contiguous()
        grad = any(ctx.needs_input_grad)
        y, last = torch.empty_like(u), u.new_empty(b, n, channels)
        kept = u.new_empty(b, length // CHUNK, n, channels) if grad else None
        splits = max(1, min(-(-torch.get_num_threads() // (b * g)), -(-channels // (16 * g))))
        problem = Problem(b, length, channels, g, n, splits, int(reverse),
                          *map(pointer, (u, d, decay, B, C, first, y, kept, last)))  # fmt: skip
        lib = library("selective_scan")
        assert lib is not None
        lib.selective_scan_forward(ctypes.byref(problem))
        ctx.splits, ctx.reverse = splits, reverse
        ctx.save_for_backward(u, d, decay, B, C, first, kept)
        return y, last.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        u, d, decay, B, C, first, kept = ctx.saved_tensors
        (b, length, channels), (g, n) = u.shape, B.shape[2:]
        dy = dy.contiguous()
        dlast = None if dlast is None else dlast.transpose(1, 2).contiguous()
        du, dd, dA = torch.empty_like(u), torch.empty_like(d), u.new_zeros(b, n, channels)
        dB, dC = (u.new_zeros(ctx.splits, b, length, g, n) for _ in range(2))
        dfirst = None if first is None else torch.empty_like(first)
        problem = Problem(b, length, channels, g, n, ctx.splits, int(ctx.reverse),
                          *map(pointer, (u, d, decay, B, C, first, None, kept, None)))  # fmt: skip
        gradient = Gradient(problem, *map(pointer, (dy, dlast, du, dd, dA, dB, dC, dfirst)))
        lib = library("selective_scan")
        assert lib is not None
        lib.selective_scan_backward(ctypes.byref(gradient))
        whole = [t[0] if ctx.splits == 1 else t.sum(0) for t in (dB, dC)]
        return du, dd, dA.sum(0).t(), *whole, None if dfirst is None else dfirst.transpose(1, 2), None


def chunked(scan: Scan) -> tuple[Tensor, Tensor]:
    """A segment of tokens at a time, in a few large operations; for the gradient only the state before each segment is
    kept, and what lies between is computed again."""
    u, d, A, B, C, h, reverse = scan
    if reverse:
        u, d, B, C = (t.flip(1) for t in (u, d, B, C))
    y, last = _Chunked.apply(u, d, A, B, C, h)
    return (y.flip(1) if reverse else y), last


def segments(batch: int, length: int, numbers: int) -> list[tuple[int, int]]:
    """[start, end) of segments of about SEGMENT states in all, `numbers` a token and image."""
    tokens = max(1, min(128, SEGMENT // max(1, batch * numbers)))
    count = -(-length // tokens)
    tokens = -(-length // count)
    return [(i, min(i + tokens, length)) for i in range(0, length, tokens)]


def recurrence(a: Tensor, x: Tensor, h: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + x_t along dimension 1 of a, x (B T D N) from h (B D N): all h_t, in the memory of x; a is
    overwritten. Where there is little to do in a step, equal pieces of the sequence are walked side by side from zero,
    and what each should have begun with is added afterwards, decayed."""
    b, t, dim, n = a.shape
    pieces = lanes(t, b * dim * n)
    a, x = a.view(b, pieces, -1, dim, n), x.view(b, pieces, -1, dim, n)
    if pieces == 1:
        x[:, 0, 0].addcmul_(a[:, 0, 0], h)
    for j in range(1, x.shape[2]):
        x[:, :, j].addcmul_(a[:, :, j], x[:, :, j - 1])
        if pieces > 1:
            a[:, :, j].mul_(a[:, :, j - 1])  # the decay since the piece began
    if pieces > 1:
        before = [h]
        for i in range(pieces - 1):
            before.append(torch.addcmul(x[:, i, -1], a[:, i, -1], before[-1]))
        x.addcmul_(a, torch.stack(before, 1)[:, :, None])
    return x.view(b, t, dim, n)


def lanes(length: int, width: int) -> int:
    """Into how many equal pieces a segment is cut: the fewer steps the better where a step is `width` numbers short."""
    wanted = min(16, max(1, WIDE // max(1, width)))
    return max(p for p in range(1, wanted + 1) if length % p == 0)


def expanded(A: Tensor, d: Tensor, du: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The decays exp(d A) and inputs (d u) B of every state, each (B T D N)."""
    return (d[..., None] * A).exp_(), outer(du, B)


def over_states(h: Tensor, C: Tensor) -> Tensor:
    """sum_n h C: h (B T D N), C (B T G N) -> (B T D)."""
    b, t, g, n = C.shape
    return (h.view(b, t, g, -1, n) @ C[..., None]).view(b, t, -1)


def over_channels(x: Tensor, h: Tensor, groups: int) -> Tensor:
    """sum over a group's channels of x h: x (B T D), h (B T D N) -> (B T G N)."""
    b, t, _, n = h.shape
    return (x.view(b, t, groups, 1, -1) @ h.view(b, t, groups, -1, n))[:, :, :, 0]


class _Chunked(torch.autograd.Function):
    """With g_t = C_t dy_t + a_{t+1} g_{t+1}: dC_t = sum dy_t h_t, dB_t = sum g_t d_t u_t, d(d_t u_t) = g_t . B_t, and
    of the exponent e_t = d_t A: de_t = g_t a_t h_{t-1}."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor,
                h: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.given = h is not None
        (b, length, dim), n = u.shape, A.shape[1]
        h = u.new_zeros(b, dim, n) if h is None else h
        kept, ys = [h], []
        for i, j in segments(b, length, dim * n):
            part = slice(i, j)
            states = recurrence(*expanded(A, d[:, part], d[:, part] * u[:, part], B[:, part]), h)
            ys.append(over_states(states, C[:, part]))
            h = states[:, -1].clone()
            kept.append(h)
        ctx.save_for_backward(u, d, A, B, C, *kept[:-1])
        return torch.cat(ys, 1), h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        u, d, A, B, C, *kept = ctx.saved_tensors
        (b, length, dim), n, groups = u.shape, A.shape[1], B.shape[2]
        carry = dlast
        grads: list[tuple[Tensor, ...]] = []
        dA = torch.zeros_like(A)
        for (i, j), before in reversed(list(zip(segments(b, length, dim * n), kept, strict=True))):
            part = slice(i, j)
            dt, ut, Bt, Ct, dyt = (t[:, part] for t in (d, u, B, C, dy))
            du = dt * ut
            a, x = expanded(A, dt, du, Bt)
            states = recurrence(a.clone(), x, before)
            g = outer(dyt, Ct)
            g[:, -1] += carry
            g = recurrence(shifted(a), g.flip(1), torch.zeros_like(carry)).flip(1)
            dC, dB = over_channels(dyt, states, groups), over_channels(du, g, groups)
            through = over_states(g, Bt)
            a.mul_(g)  # now the gradient of the state before, then of the exponent
            carry = a[:, 0].clone()
            a[:, 1:].mul_(states[:, :-1])
            a[:, 0].mul_(before)
            dA += torch.einsum("btdn,btd->dn", a, dt)
            dd = torch.einsum("btdn,dn->btd", a, A)
            grads.append((through * dt, dd + through * ut, dB, dC))
        du_all, dd_all, dB_all, dC_all = (torch.cat(parts[::-1], 1) for parts in zip(*grads, strict=True))
        return du_all, dd_all, dA, dB_all, dC_all, carry if ctx.given else None


def outer(x: Tensor, B: Tensor) -> Tensor:
    """x (B T D), B (B T G N) -> (B T D N)."""
    b, t, g, n = B.shape
    return (x.view(b, t, g, -1, 1) * B[:, :, :, None]).view(b, t, -1, n)


def shifted(a: Tensor) -> Tensor:
    """The decays that a walk from the last token to the first meets: none before the last, then a_T, a_{T-1} .. a_2."""
    return torch.cat([torch.zeros_like(a[:, :1]), a[:, 1:].flip(1)], 1)
