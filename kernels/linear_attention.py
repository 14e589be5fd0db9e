"""Attention without a softmax, in time linear in the tokens (https://arxiv.org/abs/2006.16236):

    y_t = sum_s (q_t k_s) v_s / (sum_s q_t k_s + eps)

over all s, or over s <= t (causal). q and k are what a feature map made of queries and keys (kernels/feature_maps.py,
or `exponential_features`); sums are kept in float32 (float64 for float64), under autocast too.

Shapes over all tokens: q (... N m), k (... M m), v (... M d) -> (... N d); causal, as the other recurrences have them:
q, k (B L h m), v (B L h d) -> (B L h d).
"""

from typing import Any

import torch
from torch import Tensor

from .gated_linear_attention import Backend, gated_linear_attention
from .sizes import always


def reference(q: Tensor, k: Tensor, v: Tensor, eps: float = 0.0) -> Tensor:
    """Defines the operation, by the N x M weights."""
    with widened(v):
        q, k, wide = (upcast(t) for t in (q, k, v))
        weight = q @ k.mT
        return (weight @ wide / (weight.sum(-1, keepdim=True) + eps)).to(v.dtype)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float = 0.0) -> Tensor:
    """`reference`, through the m x d sums of k_s' v_s: nothing grows with N M. Few tokens of wide features go through
    the weights all the same, which is less to compute there."""
    (n, m), (s, d) = q.shape[-2:], v.shape[-2:]
    if always(n * s * (m + d) < (n + s) * m * d):
        return reference(q, k, v, eps)
    with widened(v):
        q, k, wide = (upcast(t) for t in (q, k, v))
        total = q @ k.sum(-2).unsqueeze(-1)  # ... N 1
        return (q @ (k.mT @ wide) / (total + eps)).to(v.dtype)


def causal_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, eps: float = 0.0, *, state: Tensor | None = None, return_state: bool = False,
    backend: Backend = "chunked", chunk: int | None = None,
) -> Any:  # fmt: skip
    """Each token sees itself and those before it, and those that `state` (B h m d+1) stands for: the sums of k_s' v_s
    and, as the last column, of k_s. -> (B L h d), and the last state with `return_state`. One chunk is the parallel
    form, `backend="reference"` the recurrence.

    Raises ValueError where shapes do not fit."""
    with widened(v):
        q, k, wide = (upcast(t) for t in (q, k, v))
        with_one = torch.cat([wide, torch.ones_like(wide[..., :1])], -1)
        o, last = gated_linear_attention(
            q, k, with_one, scale=1.0, state=state, return_state=True, backend=backend, chunk=chunk
        )
        y = (o[..., :-1] / (o[..., -1:] + eps)).to(v.dtype)
    return (y, last) if return_state else y


def step(q: Tensor, k: Tensor, v: Tensor, state: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """One token of the causal form: q, k (B h m), v (B h d), state (B h m d+1) -> y (B h d) and the next state."""
    y, last = causal_linear_attention(
        q[:, None], k[:, None], v[:, None], eps, state=state, return_state=True, backend="reference"
    )
    return y[:, 0], last


def exponential_features(x: Tensor, w: Tensor) -> Tensor:
    """exp(x w' - |x|² / 2) / sqrt(m), positive random features of the softmax kernel
    (https://arxiv.org/abs/2009.14794): x (... e), w (m e) -> (... m) in float32."""
    with widened(x):
        x, w = upcast(x), upcast(w)
        half = x.square().sum(-1, keepdim=True).mul(0.5)
        return (x @ w.mT - half).exp() * float(w.shape[0] ** -0.5)


def upcast(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widened(x: Tensor) -> torch.autocast:
    """Within it autocast narrows nothing."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)
