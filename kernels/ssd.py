"""State space duality (Mamba-2, https://arxiv.org/abs/2405.21060), and its non-causal form (VSSD,
https://arxiv.org/abs/2407.18559).

    d_t = softplus(dt_t + bias_h)    H_t = exp(d_t A_h) H_{t-1} + d_t x_t B_t'    y_t = H_t C_t + D_h x_t

for each head, with one decay A_h. State and decays are kept in float32 (float64 where x is).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .chunks import in_float32, refuse_growth, without_autocast
from .gated_linear_attention import Backend, gated_linear_attention


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, dt_bias: Tensor | None = None, *,
    softplus: bool = True, state: Tensor | None = None, return_state: bool = False, backend: Backend = "chunked",
    chunk: int | None = None,
) -> Any:  # fmt: skip
    """x (B L h P), dt (B L h), A (h) negative, B, C (B L G N) where a group serves h / G heads that lie side by side, D
    and dt_bias (h), state (B h P N) -> y (B L h P), and the last state with `return_state`."""
    shaped(x, dt, A, B, C)
    kept = in_float32(x)
    with without_autocast(x):
        x_, d = x.to(kept), step_sizes(dt.to(kept), dt_bias, softplus)
        q, k = (of_heads(t.to(kept), x.shape[2]) for t in (C, B))
        y, last = gated_linear_attention(
            q, k, x_ * d[..., None], d * A.to(kept), scale=1.0, state=None if state is None else state.mT,
            return_state=True, backend=backend, chunk=chunk,
        )  # fmt: skip
        if D is not None:
            y = y + D.to(kept)[:, None] * x_
        y = y.to(x.dtype)
    return (y, last.mT) if return_state else y


def noncausal_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
                  dt_bias: Tensor | None = None, *, softplus: bool = True) -> Tensor:  # fmt: skip
    """One state for all tokens: H = sum_t -A_h d_t x_t B_t', y_t = H C_t + D_h x_t; shapes as in `ssd`. There is no
    order, no decay and no normalisation."""
    shaped(x, dt, A, B, C)
    kept = in_float32(x)
    with without_autocast(x):
        x_, d = x.to(kept), step_sizes(dt.to(kept), dt_bias, softplus)
        n, length, groups = B.shape[:3]
        weighted = (x_ * (d * -A.to(kept))[..., None]).reshape(n, length, groups, -1)  # a group's heads side by side
        b, c = (t.to(kept).transpose(1, 2) for t in (B, C))  # B G L N
        state = b.mT @ weighted.transpose(1, 2)  # B G N h/G*P
        y = (c @ state).transpose(1, 2).reshape(x.shape)  # B L h P
        if D is not None:
            y = y + D.to(kept)[:, None] * x_
        return y.to(x.dtype)


def step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, D: Tensor | None = None,
         dt_bias: Tensor | None = None, *, softplus: bool = True) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One token: x (B h P), dt (B h), B, C (B G N), state (B h P N) -> y (B h P) and the next state."""
    y, last = ssd(x[:, None], dt[:, None], A, B[:, None], C[:, None], D, dt_bias, softplus=softplus, state=state,
                  return_state=True, backend="reference")  # fmt: skip
    return y[:, 0], last


def step_sizes(dt: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    d = dt if bias is None else dt + bias.to(dt.dtype)
    return F.softplus(d) if softplus else d


def of_heads(t: Tensor, heads: int) -> Tensor:
    """(B L G N) -> (B L h N): each head's group."""
    return t.repeat_interleave(heads // t.shape[2], 2)


def shaped(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    if x.ndim != 4 or B.ndim != 4 or B.shape != C.shape or B.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"ssd takes x (B L h P) and B, C (B L G N); got {tuple(x.shape)}, {tuple(B.shape)}, {tuple(C.shape)}"
        )
    if dt.shape != x.shape[:3] or A.shape != x.shape[2:3]:
        raise ValueError(
            f"ssd: dt {tuple(dt.shape)} and A {tuple(A.shape)} must be {tuple(x.shape[:3])} and ({x.shape[2]},)"
        )
    if x.shape[2] % B.shape[2]:
        raise ValueError(f"ssd: {x.shape[2]} heads do not divide into {B.shape[2]} groups of B and C")
    refuse_growth(A, "ssd")
