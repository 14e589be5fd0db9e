"""What the chunked recurrences share: sequences cut into chunks, segments of them computed again in the backward
pass."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .linear import eager

AT_ONCE = 16  # chunks in a segment; between two segments only the state is kept for the backward pass

Part = Callable[..., tuple[Tensor, Tensor]]


def in_float32(x: Tensor) -> torch.dtype:
    """The type that states and decays are kept in beside x: float32, or float64 where x is that."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def without_autocast(x: Tensor) -> Any:
    kind = "cpu" if x.is_meta else x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def refuse_growth(A: Tensor, operation: str) -> None:
    """Raises ValueError for a positive entry of A, where it can be looked at without waiting: eager, on a CPU."""
    if eager(A.dtype, A) and bool((A > 0).any()):
        raise ValueError(
            f"{operation}: A must not be positive, or states grow without bound; its largest entry is "
            f"{float(A.max()):.4g} (models take A = -exp(A_log))"
        )


def in_segments(
    part: Part, size: int, state: Tensor, *sequences: Tensor, at_once: int = AT_ONCE
) -> tuple[Tensor, Tensor]:
    """part(state, *pieces) -> (y, state) over pieces of the sequences (B L …) of `at_once` chunks of `size`, one after
    another; each is computed again in the backward pass. Only the last is shorter."""
    if torch.compiler.is_exporting():
        return in_steps(part, size, state, *sequences)
    length, stride = sequences[0].shape[1], size * at_once
    ys = []
    for i in range(0, length, stride):
        pieces = [s[:, i : i + stride] for s in sequences]
        if torch.is_grad_enabled() and length > stride:
            y, state = checkpoint(part, state, *pieces, use_reentrant=False)
        else:
            y, state = part(state, *pieces)
        ys.append(y)
    return (ys[0] if len(ys) == 1 else torch.cat(ys, 1)), state


def in_steps(part: Part, size: int, state: Tensor, *sequences: Tensor) -> tuple[Tensor, Tensor]:
    """`in_segments` as one operator that repeats `part` for each chunk, for an exported graph, whose length need not be
    known; the last chunk is filled up with zeros."""
    length = sequences[0].shape[1]
    count = (length + size - 1) // size + (0 if isinstance(length, int) else 1)  # an open count must not be 1
    fill = count * size - length
    places = torch.arange(count, device=state.device)[:, None] * size + torch.arange(size, device=state.device)
    padded = (F.pad(s, (0, 0) * (s.ndim - 2) + (0, fill)).transpose(0, 1) for s in sequences)  # L B …

    def step(state: Tensor, pieces: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        y, state = part(state, *(p.transpose(0, 1) for p in pieces))
        return state, y.transpose(0, 1).contiguous()

    # by indices, as views and slices would ask what divides the length
    last, ys = scan(step, state, tuple(p[places] for p in padded))
    return ys.flatten(0, 1)[torch.arange(length, device=state.device)].transpose(0, 1), last


def scan(step: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor]], state: Tensor,
         steps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:  # fmt: skip
    """step(state, one of each of `steps`, along dimension 0) -> (next state, y): the last state and all y. One operator
    of the graph while a model is exported (ONNX: Scan)."""
    from torch._higher_order_ops import scan as operator

    return operator(step, state, steps)


def cut(x: Tensor, size: int) -> Tensor:
    """(B L h …) -> (B h n size …): n chunks, the last filled up with zeros."""
    short = -x.shape[1] % size
    if short:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, short))
    return x.unflatten(1, (-1, size)).movedim(3, 1)  # type: ignore[no-untyped-call, no-any-return]


def join(y: Tensor, length: int) -> Tensor:
    """(B h n size d) -> (B L h d), without what `cut` added."""
    return y.movedim(1, 3).flatten(1, 2)[:, :length]


def decays(g: Tensor) -> Tensor:
    """g (… c), log decays a step -> (… c c): exp(sum of g over s < r <= t) for s <= t, 0 above. Each sum is taken by
    itself, not as a difference of two long ones."""
    c = g.shape[-1]
    below = torch.ones(c, c, dtype=torch.bool, device=g.device).tril(-1)
    sums = g[..., None].expand(*g.shape, c).masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(~below.logical_or(torch.eye(c, dtype=torch.bool, device=g.device)), -torch.inf).exp()
