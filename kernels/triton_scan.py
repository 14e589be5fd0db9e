"""The selective scan on a GPU, in Triton, which comes with torch's own CUDA wheel; nothing is compiled at install.

    h_t = exp(d_t A) h_{t-1} + d_t u_t B_t,    y_t = C_t . h_t

The length is cut into chunks of CHUNK steps that run at the same time. `ends` walks each chunk from a state of zeros;
`borders` joins these, chunk after chunk, to the state before each, since what a state loses over a chunk is one number,
exp(A sum d); `walk` goes through each chunk again from there. The backward pass does the same from the last chunk to
the first with g_t = C_t dy_t + exp(d_{t+1} A) g_{t+1}, and computes the states between two borders again, in registers.

A program has WORK numbers of state: some channels of a group, all N states (up to a power of two). No two programs
write to the same place: what they give to B, C and A goes to partial sums, added outside, so that a result is the same
each time. Everything is float32. Without a gradient nothing but the states at borders (B L/CHUNK D N) is made.

So far proven by Triton's interpreter (TRITON_INTERPRET=1) and compiled for sm_80 and sm_90, but run on no GPU.
"""

from subprocess import SubprocessError
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK, PART = 16, 8  # steps between two states that are kept, and those whose states the backward pass has at a time
WORK, WARP = 256, 256  # numbers of a program's state, and of a warp's share
AHEAD = 8  # chunks that `borders` reads before it needs them
FLAT = 256  # numbers of state of a program of `borders`
# What a Triton that cannot work on this machine says: no driver, no C compiler for its launcher, too old a GPU, another
# interface.
FAILURES = (RuntimeError, OSError, SubprocessError, AttributeError, TypeError, triton.TritonError)


def scan(u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor | None,
         reverse: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """u, d (B L D), A (D N), B, C (B L G N), h (B D N) or None, all float32 -> y (B L D), the last state (B D N)."""
    return _Scan.apply(u, d, A, B, C, h, reverse)  # type: ignore[no-any-return]


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, which takes tensors of a CPU."""
    return not isinstance(walk, triton.JITFunction)


class Launch:
    """How a problem is cut into programs, and the arguments that all kernels share."""

    def __init__(self, u: Tensor, B: Tensor, reverse: bool) -> None:
        (self.batch, self.length, self.channels), (self.groups, self.states) = u.shape, B.shape[2:]
        self.device = u.device
        self.chunks = -(-self.length // CHUNK)
        padded, width = triton.next_power_of_2(self.states), self.channels // self.groups
        block = max(1, min(64, WORK // padded, triton.next_power_of_2(width)))
        self.blocks = -(-width // block)
        self.numbers = (self.length, self.channels, self.groups, self.states, self.chunks, self.blocks)
        self.shape = {"REVERSE": reverse, "T": CHUNK, "BD": block, "NP": padded}
        self.warps = max(1, min(8, block * padded // WARP))

    def __call__(self, kernel: Any, *tensors: Tensor, **more: int) -> None:
        """A program for each chunk, image and block of channels."""
        grid = (self.batch * self.chunks * self.groups * self.blocks,)
        with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
            kernel[grid](*tensors, *self.numbers, **self.shape, **more, num_warps=self.warps)

    def states_before(self, x: Tensor, d: Tensor, A: Tensor, w: Tensor, first: Tensor | None,
                      adjoint: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """The states before each chunk (B chunks D N), and the one after all of them (B D N); with `adjoint` from the
        last chunk to the first. Memory as large as the first is free afterwards: the third."""
        own, kept = (x.new_empty(self.batch, self.chunks, self.channels, self.states) for _ in range(2))
        sums = x.new_empty(self.batch, self.chunks, self.channels)
        last = x.new_empty(self.batch, self.channels, self.states)
        self(ends, x, d, A, w, own, sums, ADJOINT=adjoint)
        size = self.channels * self.states
        parts = -(-size // FLAT)
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            borders[(self.batch * parts,)](
                own, sums, A, last if first is None else first, kept, last, size, self.states, self.chunks, parts,
                FIRST=first is not None, ADJOINT=adjoint, AHEAD=AHEAD, FLAT=FLAT, num_warps=2,
            )  # fmt: skip
        return kept, last, own


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, d: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor | None,
                reverse: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
        u, d, A, B, C = (t.contiguous() for t in (u, d, A, B, C))
        launch = Launch(u, B, reverse)
        kept, last, _ = launch.states_before(u, d, A, B, None if h is None else h.contiguous(), False)
        y = torch.empty_like(u)
        launch(walk, u, d, A, B, C, kept, y)
        ctx.reverse, ctx.given = reverse, h is not None
        ctx.save_for_backward(u, d, A, B, C, kept)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        u, d, A, B, C, kept = ctx.saved_tensors
        dy, launch = dy.contiguous(), Launch(u, B, ctx.reverse)
        carry, dfirst, dA = launch.states_before(dy, d, A, C, dlast.contiguous(), True)
        du, dd = torch.empty_like(u), torch.empty_like(d)
        dB, dC = (u.new_empty(launch.blocks, *B.shape) for _ in range(2))
        launch(back, u, d, A, B, C, kept, dy, carry, du, dd, dA, dB, dC, PART=PART)
        whole = [t[0] if launch.blocks == 1 else t.sum(0) for t in (dB, dC)]
        return du, dd, dA.sum((0, 1)), *whole, dfirst if ctx.given else None, None


# ---------------------------------------------------------------------------------------------------------- kernels


@triton.jit  # type: ignore[untyped-decorator]
def place(channels, groups, states, chunks, blocks, BD: tl.constexpr, NP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which chunk, image, group and block of channels a program has; its channels and states and which of them are
    there; where its chunk's states lie in (B chunks D N), and its weights in (D N)."""
    pid = tl.program_id(0)
    block = pid % blocks
    g = pid // blocks % groups
    chunk = pid // blocks // groups % chunks
    image = (pid // blocks // groups // chunks).to(tl.int64)
    width = channels // groups
    within = block * BD + tl.arange(0, BD)
    e, n = g * width + within, tl.arange(0, NP)
    tile = e[:, None] * states + n[None, :]
    there = (within < width)[:, None] & (n < states)[None, :]
    return chunk, image, g, block, e, within < width, n, n < states, tile, there


@triton.jit  # type: ignore[untyped-decorator]
def ends(  # type: ignore[no-untyped-def]
    u, d, A, B, own, sums, length, channels, groups, states, chunks, blocks, ADJOINT: tl.constexpr,
    REVERSE: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, NP: tl.constexpr,
):  # fmt: skip
    """What a chunk that begins with zeros ends with, and its sum of d. With ADJOINT (u is dy, B is C) what it passes on
    to the chunk before it."""
    chunk, image, g, _, e, in_e, n, in_n, tile, there = place(channels, groups, states, chunks, blocks, BD, NP)
    weight = tl.load(A + tile, there, 0.0)
    h = tl.zeros((BD, NP), tl.float32)
    total = tl.zeros((BD,), tl.float32)
    for j in tl.static_range(T):
        t = chunk * T + (T - 1 - j if ADJOINT else j)
        row = image * length + (length - 1 - t if REVERSE else t)
        d_t = tl.load(d + row * channels + e, in_e & (t < length), 0.0)
        u_t = tl.load(u + row * channels + e, in_e & (t < length), 0.0)
        b_t = tl.load(B + (row * groups + g) * states + n, in_n & (t < length), 0.0)
        a = tl.exp(d_t[:, None] * weight)
        h = a * (h + u_t[:, None] * b_t[None, :]) if ADJOINT else a * h + (d_t * u_t)[:, None] * b_t[None, :]
        total += d_t
    tl.store(own + (image * chunks + chunk) * channels * states + tile, h, there)
    tl.store(sums + (image * chunks + chunk) * channels + e, total, in_e)


@triton.jit  # type: ignore[untyped-decorator]
def borders(  # type: ignore[no-untyped-def]
    own, sums, A, first, kept, last, size, states, chunks, parts, FIRST: tl.constexpr, ADJOINT: tl.constexpr,
    AHEAD: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """From what each chunk adds (own) the state before it (kept); the chunks in order, with ADJOINT from the last."""
    pid = tl.program_id(0)
    image = (pid // parts).to(tl.int64)
    i = pid % parts * FLAT + tl.arange(0, FLAT)
    there = i < size
    weight = tl.load(A + i, there, 0.0)
    h = tl.load(first + image * size + i, there, 0.0) if FIRST else tl.zeros((FLAT,), tl.float32)
    for start in range(0, chunks, AHEAD):
        ahead, total = (), ()
        for j in tl.static_range(AHEAD):
            row = image * chunks + (chunks - 1 - start - j if ADJOINT else start + j)
            still = there & (start + j < chunks)
            ahead += (tl.load(own + row * size + i, still, 0.0),)  # type: ignore[assignment]
            total += (tl.load(sums + row * (size // states) + i // states, still, 0.0),)  # type: ignore[assignment]
        for j in tl.static_range(AHEAD):
            row = image * chunks + (chunks - 1 - start - j if ADJOINT else start + j)
            tl.store(kept + row * size + i, h, there & (start + j < chunks))
            h = tl.exp(total[j] * weight) * h + ahead[j]
    tl.store(last + image * size + i, h, there)


@triton.jit  # type: ignore[untyped-decorator]
def walk(  # type: ignore[no-untyped-def]
    u, d, A, B, C, kept, y, length, channels, groups, states, chunks, blocks, REVERSE: tl.constexpr,
    T: tl.constexpr, BD: tl.constexpr, NP: tl.constexpr,
):  # fmt: skip
    """y over a chunk, from the state before it."""
    chunk, image, g, _, e, in_e, n, in_n, tile, there = place(channels, groups, states, chunks, blocks, BD, NP)
    weight = tl.load(A + tile, there, 0.0)
    h = tl.load(kept + (image * chunks + chunk) * channels * states + tile, there, 0.0)
    for j in tl.static_range(T):
        t = chunk * T + j
        row = image * length + (length - 1 - t if REVERSE else t)
        d_t = tl.load(d + row * channels + e, in_e & (t < length), 0.0)
        u_t = tl.load(u + row * channels + e, in_e & (t < length), 0.0)
        b_t = tl.load(B + (row * groups + g) * states + n, in_n & (t < length), 0.0)
        c_t = tl.load(C + (row * groups + g) * states + n, in_n & (t < length), 0.0)
        h = tl.exp(d_t[:, None] * weight) * h + (d_t * u_t)[:, None] * b_t[None, :]
        tl.store(y + row * channels + e, tl.sum(h * c_t[None, :], 1), in_e & (t < length))


@triton.jit  # type: ignore[untyped-decorator]
def back(  # type: ignore[no-untyped-def]
    u, d, A, B, C, kept, dy, carry, du, dd, dA, dB, dC, length, channels, groups, states, chunks, blocks,
    REVERSE: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, NP: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """The gradients over a chunk, from the state before it (kept) and the gradient of the one after it (carry); dA
    (B chunks D N), dB and dC (blocks B L G N) get this program's shares. PART steps at a time, from the last, of which
    all states are in registers."""
    chunk, image, g, block, e, in_e, n, in_n, tile, there = place(channels, groups, states, chunks, blocks, BD, NP)
    images = tl.num_programs(0) // (chunks * groups * blocks)
    weight = tl.load(A + tile, there, 0.0)
    border = (image * chunks + chunk) * channels * states + tile
    s = tl.load(carry + border, there, 0.0)
    share = tl.zeros((BD, NP), tl.float32)
    for part in range(0, T, PART):
        begin = chunk * T + T - PART - part
        h = tl.load(kept + border, there, 0.0)
        for t in range(chunk * T, begin):
            row = image * length + (length - 1 - t if REVERSE else t)
            d_t = tl.load(d + row * channels + e, in_e & (t < length), 0.0)
            u_t = tl.load(u + row * channels + e, in_e & (t < length), 0.0)
            b_t = tl.load(B + (row * groups + g) * states + n, in_n & (t < length), 0.0)
            h = tl.exp(d_t[:, None] * weight) * h + (d_t * u_t)[:, None] * b_t[None, :]
        before = ()
        for j in tl.static_range(PART):
            t = begin + j
            row = image * length + (length - 1 - t if REVERSE else t)
            d_t = tl.load(d + row * channels + e, in_e & (t < length), 0.0)
            u_t = tl.load(u + row * channels + e, in_e & (t < length), 0.0)
            b_t = tl.load(B + (row * groups + g) * states + n, in_n & (t < length), 0.0)
            before += (h,)  # type: ignore[assignment]
            h = tl.exp(d_t[:, None] * weight) * h + (d_t * u_t)[:, None] * b_t[None, :]
        for j in tl.static_range(PART):
            t = begin + PART - 1 - j
            row = image * length + (length - 1 - t if REVERSE else t)
            d_t = tl.load(d + row * channels + e, in_e & (t < length), 0.0)
            u_t = tl.load(u + row * channels + e, in_e & (t < length), 0.0)
            dy_t = tl.load(dy + row * channels + e, in_e & (t < length), 0.0)
            b_t = tl.load(B + (row * groups + g) * states + n, in_n & (t < length), 0.0)
            c_t = tl.load(C + (row * groups + g) * states + n, in_n & (t < length), 0.0)
            s += dy_t[:, None] * c_t[None, :]
            at = ((block * images * length + row) * groups + g) * states + n
            tl.store(dC + at, tl.sum(dy_t[:, None] * h, 0), in_n & (t < length))
            tl.store(dB + at, tl.sum(s * (d_t * u_t)[:, None], 0), in_n & (t < length))
            through = tl.sum(s * b_t[None, :], 1)
            h = before[PART - 1 - j]
            s = s * tl.exp(d_t[:, None] * weight)
            slope = s * h  # of the exponent d A
            share += slope * d_t[:, None]
            tl.store(du + row * channels + e, through * d_t, in_e & (t < length))
            tl.store(dd + row * channels + e, through * u_t + tl.sum(slope * weight, 1), in_e & (t < length))
    tl.store(dA + border, share, there)
