"""softmax(scale q k') over all keys, and only then the mask r + (1 - r) [j <= i]: the soft causal mask of iLLaMA,
https://arxiv.org/abs/2404.06773.

Shapes: q, k, v (B h N d) -> (B h N d). Rows are not made to sum to 1 again: with r = 0 query i keeps the weights of
keys 0..i that it had among all keys, which causal attention (softmax over those keys alone) does not give.
"""

import torch
from torch import Tensor

from .attend import attend


def reference(q: Tensor, k: Tensor, v: Tensor, rate: float = 0.0, *, scale: float | None = None) -> Tensor:
    """Defines the operation: every step in float32 (float64 for float64)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    score = q.to(wide) @ k.to(wide).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return ((score.softmax(-1) * mask(score, rate)) @ v.to(wide)).to(v.dtype)


def soft_masked(q: Tensor, k: Tensor, v: Tensor, rate: float = 0.0, *, scale: float | None = None) -> Tensor:
    """The same in four calls, softmax in float32; a rate of 1 hides nothing and is plain attention."""
    if rate == 1:
        return attend(q, k, v, scale=scale)
    b, h, n, d = q.shape
    q, k, v = (x.reshape(b * h, n, -1) for x in (q, k, v))
    score = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=d**-0.5 if scale is None else scale)  # B*h N N
    weight = score.softmax(-1, dtype=torch.float32 if score.dtype in (torch.float16, torch.bfloat16) else None)
    weight = weight.tril() if rate == 0 else weight * mask(weight, rate)
    return torch.bmm(weight.to(v.dtype), v).view(b, h, n, -1)


def mask(score: Tensor, rate: float) -> Tensor:
    """(N N): 1 up to the diagonal, `rate` beyond it."""
    n = score.shape[-1]
    return score.new_full((n, n), 1 - rate).tril_().add_(rate)
