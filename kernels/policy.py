"""Attention in which some tokens do not count, as pruning is trained (DynamicViT, https://arxiv.org/abs/2106.02034):

    s = scale q k' + bias,   G_ij = 1 where i = j, else policy_j,   e_ij = exp(s_ij - max_j s_ij) G_ij
    w_ij = (e_ij + eps / N) / (sum_j e_ij + eps),   result = w v

Shapes: q, k, v (B h N d), policy (B N 1) of 1 and 0, bias broadcastable to (B h N N); the result is (B h N d). Every
token sees itself. A token that does not count still passes the gradient of what it would say to its policy, which an
additive mask of log(policy) would not. The maximum is outside the graph. Scores and weights are float32 (float64 for
float64).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def reference(q: Tensor, k: Tensor, v: Tensor, policy: Tensor, bias: Tensor | None = None, *,
              scale: float | None = None, dropout: float = 0.0) -> Tensor:  # fmt: skip
    """Defines the operation; `dropout` as in `attend`."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    score = q.to(wide) @ k.to(wide).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    e = counted(score if bias is None else score + bias, policy)
    weight = (e + EPS / e.shape[-1]) / (e.sum(-1, keepdim=True) + EPS)
    return (F.dropout(weight, dropout) @ v.to(wide)).to(v.dtype)


def attend_policy(q: Tensor, k: Tensor, v: Tensor, policy: Tensor, bias: Tensor | None = None, *,
                  scale: float | None = None, dropout: float = 0.0) -> Tensor:  # fmt: skip
    """The same with fewer passes over the scores: sums and eps go in behind the product with v."""
    if dropout:
        return reference(q, k, v, policy, bias, scale=scale, dropout=dropout)
    wide = torch.promote_types(q.dtype, torch.float32)
    score = (q @ k.mT).to(wide) * (q.shape[-1] ** -0.5 if scale is None else scale)
    e = counted(score if bias is None else score + bias, policy)  # B h N N
    total = (e.to(v.dtype) @ v).to(e.dtype) + EPS / e.shape[-1] * v.sum(-2, keepdim=True, dtype=e.dtype)
    return (total / (e.sum(-1, keepdim=True) + EPS)).to(v.dtype)


def counted(score: Tensor, policy: Tensor) -> Tensor:
    """exp(s_ij - max_j s_ij) G_ij, (B h N N)."""
    row = policy.to(score.dtype).mT[:, None]  # B 1 1 N
    seen = row + (1 - row) * torch.eye(score.shape[-1], dtype=score.dtype, device=score.device)
    return (score - score.detach().amax(-1, keepdim=True)).exp() * seen
