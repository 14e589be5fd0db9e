"""Clustering a map into a smaller one, and spreading what became of it back (Expedit, https://arxiv.org/abs/2210.01035).

Shapes: B maps of H x W places with C channels, N = H W; h x w centroids, M = h w. Everything in float32 (float64 of
float64), whatever comes in.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def cluster(m: Tensor, grid: Pair, iterations: int, reach: int, temperature: float) -> Tensor:
    """m (B H W C) -> its centroids (B M C) on `grid`.

    They begin as means of the cells that `grid` divides the map into. Then, so many times,
    Q = softmax(-temperature |f - c|²) over the centroids at most reach // 2 cells away from a place's own along both
    sides, and c = sum_p Q f / sum_p Q. Only the last of these sums has a graph; Q has none.

    Bands of rows are taken one after the other, with the centroids that are candidates there.
    """
    with exact(m):
        x = wide(m)
        f = x.flatten(1, 2)
        c = F.adaptive_avg_pool2d(x.detach().permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1).flatten(1, 2)
        hidden = far((m.shape[1], m.shape[2]), grid, reach).to(f)
        cuts = bands((m.shape[1], m.shape[2]), grid, reach)
        parts = [(p, q, hidden[p, q]) for p, q in ((slice(*a), slice(*b)) for a, b in cuts)]
        for i in range(iterations):
            given = f if i == iterations - 1 else f.detach()
            total, count = torch.zeros_like(c), c.new_zeros(*c.shape[:2], 1)
            for p, q, away in parts:
                with torch.no_grad():
                    weight = closeness(f[:, p], c[:, q], temperature).add_(away).softmax(-1)  # B n m
                total[:, q].baddbmm_(weight.mT, given[:, p])
                count[:, q] += weight.sum(1)[..., None]
            c = total / count.clamp(min=1e-16)
        return c.to(m.dtype)


@torch.no_grad()
def spread(f: Tensor, c: Tensor, temperature: float, k: int) -> tuple[Tensor, Tensor]:
    """From the places f (B N C) and centroids c (B M C) as they were: each place's label (B N), its nearest centroid of
    all, and the weights (B N M) that make a map of the centroids' later values: exp(-temperature |f - c|²), of each
    place the k largest (equals stay; k < 0: all), divided by their Euclidean norm, as the authors' code has it (their
    text reads as if they summed to one)."""
    with exact(f):
        score = closeness(wide(f), wide(c), temperature)
        best, label = score.max(-1, keepdim=True)
        weight = (score - best).exp()  # a common factor, so that none are all 0
        if 0 <= k < c.shape[1]:
            weight = weight.where(score >= score.topk(k).values[..., -1:], 0)
        return label[..., 0], F.normalize(weight, dim=-1)


def exact(x: Tensor) -> torch.autocast:
    """No autocast, where x lies."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def closeness(f: Tensor, c: Tensor, temperature: float) -> Tensor:
    """(B N M): -temperature |f - c|², but for what is the same for all centroids of a place."""
    return torch.baddbmm(-temperature * c.square().sum(-1)[:, None], f, c.mT, alpha=2 * temperature)


def far(size: Pair, grid: Pair, reach: int) -> Tensor:
    """(N M): -inf where a centroid is no candidate of a place, 0 where it is."""
    y, x = (torch.from_numpy(beyond(n, m, reach)) for n, m in zip(size, grid, strict=True))
    return (y[:, None, :, None] + x[None, :, None, :]).flatten(2, 3).flatten(0, 1)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def bands(size: Pair, grid: Pair, reach: int) -> tuple[tuple[Pair, Pair], ...]:
    """Where the bands of places (of N) begin and end that make up the map, and where in M their candidates do: as many
    rows of cells as there are candidates beside them, so that few of the products are for nothing."""
    edge = reach // 2
    step = max(1, 2 * edge)
    row = cells(size[0], grid[0])
    found = []
    for first in range(0, grid[0], step):
        begin, end = np.searchsorted(row, (first, first + step)).tolist()
        low, high = max(0, first - edge), min(grid[0], first + step + edge)
        found.append(((begin * size[1], end * size[1]), (low * grid[1], high * grid[1])))
    return tuple(found)


@lru_cache(maxsize=64)
def beyond(length: int, count: int, reach: int) -> np.ndarray:
    """(length count): `far` along one side."""
    apart = np.abs(cells(length, count)[:, None] - np.arange(count))
    return np.where(apart <= reach // 2, 0, -np.inf).astype(np.float32)


def cells(length: int, count: int) -> np.ndarray:
    """(length): the cell of each place along one side, rounded as torch's nearest resize rounds."""
    step = np.float32(count) / np.float32(length)
    found: np.ndarray = np.minimum(np.floor(np.arange(length, dtype=np.float32) * step), count - 1)
    return found.astype(np.int64)
