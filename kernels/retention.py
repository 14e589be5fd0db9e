"""Retention: linear attention whose state decays by a constant for each head (RetNet, https://arxiv.org/abs/2307.08621).

S_t = g_h S_{t-1} + k_t v_t'        o_t = s S_t' q_t

"""

from typing import Any

import torch
from torch import Tensor

from .gated_linear_attention import Backend, gated_linear_attention


def retention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, *, scale: float | None = None, state: Tensor | None = None,
    return_state: bool = False, backend: Backend = "chunked", chunk: int | None = None,
) -> Any:  # fmt: skip
    """q, k (B L h K), v (B L h V), decay (h) in (0, 1], state (B h K V) -> o (B L h V), and the last state with
    `return_state`. Raises ValueError where shapes do not fit or a decay lies outside of (0, 1]."""
    if decay.shape != (q.shape[2],):
        raise ValueError(f"retention takes a decay for each of {q.shape[2]} heads; got {tuple(decay.shape)}")
    gate = decay.log().expand(*q.shape[:2], -1)
    return gated_linear_attention(
        q, k, v, gate, scale=scale, state=state, return_state=return_state, backend=backend, chunk=chunk
    )


def retnet_decay(heads: int) -> Tensor:
    """(h): 1 - 2^(-5 - h), RetNet's."""
    return 1 - 2.0 ** (-5 - torch.arange(heads))


def softmax_retention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax((q k') * M) v with M the decays below the diagonal and 0 above: what ViR's release computes in its
    parallel mode. A later token keeps the score 0, so it is not causal. q, k, v (B L h d) -> (B L h d)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    n = q.shape[1]
    i = torch.arange(n, device=q.device)
    apart = (i[:, None] - i).clamp(min=0).to(torch.float32)
    mask = (decay.float().log()[:, None, None] * apart).exp().tril()  # h L L
    scores = (q.transpose(1, 2) * scale).float() @ k.transpose(1, 2).float().mT
    return ((scores * mask).softmax(-1).to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
