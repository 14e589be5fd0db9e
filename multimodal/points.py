"""Sets of points: which lie far apart, which lie near each other."""

import torch
from torch import Tensor

from ..vision.tokens import rows


def farthest(points: Tensor, n: int, hollow: float = 0.0) -> Tensor:
    """(B M 3) -> (B n): the first point, then always the one that lies farthest from all that were chosen, the first of
    equals. Those nearer to the origin than `hollow` are passed over while there are others (PointNet++'s CUDA kernel
    passes over those below sqrt(0.001)). Raises ValueError where there are fewer points than n."""
    b, m, _ = points.shape
    if not 1 <= n <= m:
        raise ValueError(f"{n} of {m} points: from 1 to as many as there are can be chosen")
    out = (
        (points.square().sum(-1) <= hollow**2) if hollow else torch.zeros(b, m, dtype=torch.bool, device=points.device)
    )
    at = torch.zeros(b, dtype=torch.long, device=points.device)
    chosen, distance = [at], torch.full((b, m), torch.inf, device=points.device, dtype=points.dtype)
    for _ in range(n - 1):
        distance = torch.minimum(distance, (points - rows(points, at[:, None])).square().sum(-1))
        at = distance.masked_fill(out, -1).argmax(1)
        chosen.append(at)
    return torch.stack(chosen, 1)


def nearest(points: Tensor, centres: Tensor, k: int) -> Tensor:
    """(B M 3), (B n 3) -> (B n k): the k points nearest to each centre, the nearest first."""
    if not 1 <= k <= points.shape[1]:
        raise ValueError(f"k={k}: there are {points.shape[1]} points")
    return torch.cdist(centres, points, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False).indices


def gathered(x: Tensor, at: Tensor) -> Tensor:
    """(B M C), (B n k) -> (B n k C)"""
    return rows(x, at.flatten(1)).unflatten(1, at.shape[1:])  # type: ignore[no-untyped-call, no-any-return]
