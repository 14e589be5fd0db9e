"""The selective scan of Mamba (S6, https://arxiv.org/abs/2312.00752): a linear recurrence whose decay, input and output
weights depend on the token.

    d_t = softplus(delta_t + delta_bias)
    h_t = exp((d_t + gap_t idle) A) h_{t-1} + d_t B_t u_t
    y_t = (C_t . h_t + D u_t) silu(z_t)

for each of D channels, with a state h of N numbers. `reference` defines the operation; `chunked` is plain torch for any
device, the default (chunked_scan.py); `native` is C for CPUs (native_scan.py) and `triton` for GPUs (triton_scan.py),
both compiled and tried on first use; `exported` stands in for them while a model is exported, and takes any length in
one graph (docs/export.md). State, decays and softplus are kept in float32 (float64 where u is), whatever the type of u;
y has u's.

`gap` is for sequences out of which tokens were taken (https://arxiv.org/abs/2409.18962): so many steps without input
lie before each token, of size `idle`, and are not walked; the state decays as if they were.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import chunked_scan, chunks, native_scan
from .chunks import in_float32, refuse_growth, without_autocast
from .linear import eager_float32, unwatched
from .native import library

Backend = Literal["auto", "reference", "chunked", "native", "triton"]
BACKENDS = ("auto", "reference", "chunked", "native", "triton")
_chosen: ContextVar[str] = ContextVar("selective_scan", default="auto")


class Scan(NamedTuple):
    """The arguments of the bare recurrence, all of one type: u, d (B L D), A (D N), B, C (B L G N), h (B D N) or None
    for a state of zeros; gap (B L) and idle (D), or None for no gaps."""

    u: Tensor
    d: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    h: Tensor | None
    reverse: bool
    gap: Tensor | None = None  # B L
    idle: Tensor | None = None  # D


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
    return_state: bool = False, gap: Tensor | None = None, idle: Tensor | None = None, backend: Backend = "auto",
) -> Any:  # fmt: skip
    """u, delta, z (B L D); A (D N), negative; B, C (B L N) or (B L G N), a group for D / G channels that lie side by
    side; D, delta_bias (D); state (B D N): what came before the first token. -> y (B L D), and the last state (B D N)
    with `return_state`. `reverse` scans from the last token to the first. gap (B L): how many steps were left out
    before each token (in reverse: behind it), whose inputs are zero and whose delta is idle (D).

    Raises ValueError where shapes do not fit, for an unknown back end, and for a positive A, whose states would grow
    without bound (looked at on a CPU only: elsewhere one would have to wait for the answer).
    """
    name = checked(backend if backend != "auto" else _chosen.get())
    shaped(u, delta, A, B, C, D, z, delta_bias, state, gap, idle)
    kept = in_float32(u)
    with without_autocast(u):
        smooth = softplus_by(name) if softplus else None
        d = sizes(delta.to(kept), delta_bias, smooth)
        idle = None if idle is None else sizes(idle.to(kept), delta_bias, smooth)
        gap = None if gap is None else gap.to(kept)
        groups = [t.to(kept) if t.ndim == 4 else t.to(kept)[:, :, None] for t in (B, C)]
        x = u.to(kept)
        first = None if state is None else state.to(kept)
        scan = Scan(x, d, A.to(kept), groups[0], groups[1], first, reverse, gap, idle)
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


def sizes(delta: Tensor, bias: Tensor | None, smooth: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The sizes of steps: delta (… D), its bias added, through softplus or not."""
    d = delta if bias is None else delta + bias.to(delta.dtype)
    return d if smooth is None else smooth(d)


def softplus_by(name: str) -> Callable[[Tensor], Tensor]:
    """The softplus of a back end."""
    return fast_softplus if name in ("auto", "native") else F.softplus


def fast_softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), compiled where the compiled scan may be used."""
    if not (eager_float32(x) and x.numel() and trusted()):
        return F.softplus(x)
    return native_scan.softplus(x)


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
    if name == "triton" and not fits_gpu(scan):
        raise ValueError(
            "the triton selective scan takes tensors of up to 32 bits on a CUDA device, outside of compile, export and "
            "transforms, and triton, which torch's CUDA wheel brings; backend='chunked' takes anything"
        )
    if name == "native" or (name == "auto" and fits(scan)):
        return native
    return triton if name == "triton" or (name == "auto" and scan.u.is_cuda and fits_gpu(scan)) else chunked


def checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend {name!r}: selective_scan has {', '.join(BACKENDS)}")
    return name


def shaped(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
           delta_bias: Tensor | None, state: Tensor | None, gap: Tensor | None,
           idle: Tensor | None) -> None:  # fmt: skip
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"selective_scan takes u (B L D) and A (D N); got {tuple(u.shape)} and {tuple(A.shape)}")
    (b, length, d), n = u.shape, A.shape[1]
    g = B.shape[2] if B.ndim == 4 else 1
    grouped = (b, length, g, n) if B.ndim == 4 else (b, length, n)
    wanted = {
        "delta": (delta, (b, length, d)), "A": (A, (d, n)), "B": (B, grouped), "C": (C, grouped), "D": (D, (d,)),
        "z": (z, (b, length, d)), "delta_bias": (delta_bias, (d,)), "state": (state, (b, d, n)),
        "gap": (gap, (b, length)), "idle": (idle, (d,)),
    }  # fmt: skip
    for name, (t, shape) in wanted.items():
        if t is not None and tuple(t.shape) != shape:
            raise ValueError(
                f"selective_scan: {name} is {tuple(t.shape)}, beside u {tuple(u.shape)} it must be {shape}"
            )
    if (gap is None) != (idle is None):
        raise ValueError("selective_scan: gap says how many steps were left out, idle how large they are: give both")
    if d % g:
        raise ValueError(f"selective_scan: {d} channels do not divide into {g} groups of B and C")
    refuse_growth(A, "selective_scan")


# ------------------------------------------------------------------------------------------------------------ forms


def reference(scan: Scan) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token; defines the operation."""
    u, d, A, B, C, h, reverse, gap, idle = scan
    width = u.shape[2] // B.shape[2]
    if h is None:
        h = u.new_zeros(u.shape[0], *A.shape)
    over = d if gap is None or idle is None else d + gap[..., None] * idle
    ys = []
    steps = list(zip(u.unbind(1), d.unbind(1), over.unbind(1), B.unbind(1), C.unbind(1), strict=True))
    for u_t, d_t, over_t, B_t, C_t in reversed(steps) if reverse else steps:
        b, c = (t.repeat_interleave(width, 1) for t in (B_t, C_t))  # B D N
        h = torch.exp(over_t[..., None] * A) * h + (d_t * u_t)[..., None] * b
        ys.append((h * c).sum(-1))
    return torch.stack(ys[::-1] if reverse else ys, 1), h


def without_gaps(scan: Scan) -> Scan:
    """The same recurrence without `gap`: each step is longer by what is missing, d' = d + gap idle, and its input
    smaller, u' = u d / d'."""
    if scan.gap is None or scan.idle is None:
        return scan
    missing = scan.gap[..., None].clamp(min=1e-30)  # so that a step of size 0 is not divided by itself
    over = torch.addcmul(scan.d, missing, scan.idle)
    return scan._replace(u=scan.u * (scan.d / over), d=over, gap=None, idle=None)


def exported(scan: Scan) -> tuple[Tensor, Tensor]:
    """The recurrence as one operator of an exported graph, which need not know the length: nothing larger than the
    state is made in a step."""
    u, d, A, B, C, h, reverse, *_ = without_gaps(scan)
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
    given = [t for t in scan if isinstance(t, Tensor)]
    return eager_float32(*given) and scan.u.numel() > 0 and trusted()


@cache
def trusted() -> bool:
    """Whether there is a compiled form and it gives what `reference` gives, forward and backward, on a small example;
    one warning where it does not."""
    if library("selective_scan") is None:
        return False
    same = is_reference(native, torch.device("cpu")) and smooth_is_smooth()
    if not same:
        warnings.warn("the compiled selective scan does not compute what it should; the plain form runs", stacklevel=2)
    return same


def is_reference(form: Callable[[Scan], tuple[Tensor, Tensor]], device: torch.device) -> bool:
    """Whether `form` gives what `reference` gives, forward and backward, on a small example."""
    with torch.inference_mode(False), torch.enable_grad():
        g = torch.Generator().manual_seed(0)
        shapes = ((1, 40, 20), (1, 40, 20), (20, 3), (1, 40, 2, 3), (1, 40, 2, 3), (1, 20, 3), (20,))
        leaves = [torch.rand(s, generator=g).to(device).requires_grad_() for s in shapes]
        u, d, A, B, C, h, idle = leaves
        gap = torch.arange(40.0, device=device)[None] % 3
        found = []
        for tried in (form, reference):
            y, last = tried(Scan(u, d, -A, B, C, h, True, gap, idle))
            found.append((y, last, *torch.autograd.grad(y.sum() + last.sum(), leaves)))
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))


def smooth_is_smooth() -> bool:
    """Whether the compiled softplus and its gradient are torch's."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.linspace(-90, 90, 1000).requires_grad_()
        found = [(y, *torch.autograd.grad(y.sum(), x)) for y in (native_scan.softplus(x), F.softplus(x))]
        return all(torch.allclose(a, b, rtol=1e-5, atol=1e-12) for a, b in zip(*found, strict=True))


def fits_gpu(scan: Scan) -> bool:
    """Whether `triton` may take these."""
    given = [t for t in scan if isinstance(t, Tensor)]
    alike = all(t.dtype is torch.float32 and t.device == scan.u.device for t in given)
    return alike and scan.u.numel() > 0 and unwatched() and trusted_on(scan.u.device)


@cache
def trusted_on(device: torch.device) -> bool:
    """Whether the Triton form runs on `device` and gives what `reference` gives; one warning where it does not."""
    try:
        from . import triton_scan
    except ImportError as error:
        reason = f"is not available ({error})"
    else:
        if device.type != "cuda" and not triton_scan.interpreted():
            return False
        try:
            if is_reference(triton, device):
                return True
            reason = "does not compute what it should"
        except triton_scan.FAILURES as error:
            reason = f"does not run here ({type(error).__name__}: {str(error).strip()})"
    warnings.warn(f"the Triton selective scan {reason}; the plain form runs", stacklevel=2)
    return False


def native(scan: Scan) -> tuple[Tensor, Tensor]:
    return native_scan.scan(*scan)


def triton(scan: Scan) -> tuple[Tensor, Tensor]:
    from . import triton_scan

    u, d, A, B, C, h, reverse, *_ = without_gaps(scan)
    return triton_scan.scan(u, d, A, B, C, h, reverse)


def chunked(scan: Scan) -> tuple[Tensor, Tensor]:
    """A segment of tokens at a time, in a few large operations; for the gradient only the state before each segment is
    kept, and what lies between is computed again."""
    u, d, A, B, C, h, reverse, *_ = without_gaps(scan)
    if reverse:
        u, d, B, C = (t.flip(1) for t in (u, d, B, C))
    y, last = chunked_scan.scan(u, d, A, B, C, h)
    return (y.flip(1) if reverse else y), last
