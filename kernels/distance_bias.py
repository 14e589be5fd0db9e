"""A bias of attention that depends on how far apart query and key lie: |dy| rows and |dx| columns (LeViT,
https://arxiv.org/abs/2104.01136), spread from a table over all pairs.

The gradient of picking from a table adds up in no order that a processor likes: 38,416 pairs of a 14x14 window fall on
196 entries, one at a time. But rows and columns are picked independently, so that it is two small matrix products.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .linear import eager_float32
from .sizes import table as of_sizes

Grid = tuple[int, int]


def reference(table: Tensor, grid: Grid, step: int = 1) -> Tensor:
    """table (h H*W) for keys on an H x W grid -> (h n H*W): table[:, |s y - y'| W + |s x - x'|] for query (y, x) and
    key (y', x'); queries stand on every `step`-th row and column. Defines the operation."""
    return table[:, of_sizes(places, *grid, step).to(table.device)]


def distance_bias(table: Tensor, grid: Grid, step: int = 1) -> Tensor:
    """`reference`, with a gradient by matrix products in eager float32 on a CPU."""
    if not eager_float32(table):
        return reference(table, grid, step)
    if torch.is_grad_enabled() and table.requires_grad:
        return _Spread.apply(table, grid, step)  # type: ignore[no-any-return]
    return _spread(table, grid, step)


def places(h: int, w: int, step: int, xp: Any = np) -> Any:
    """(n H*W): the entry of the table for each pair."""
    rows, columns = (apart(n, step, xp) for n in (h, w))
    return (rows[:, None, :, None] * w + columns[None, :, None, :]).reshape(-1, h * w)


def apart(n: int, step: int, xp: Any = np) -> Any:
    """(n/step n): |s i - j|."""
    return abs(xp.arange((n + step - 1) // step)[:, None] * step - xp.arange(n)[None, :])


@lru_cache(maxsize=64)
def one_hot(n: int, step: int) -> np.ndarray:
    """(n n/step*n): 1 where the pair of a column is as far apart as its row says."""
    same: np.ndarray = apart(n, step).reshape(1, -1) == np.arange(n)[:, None]
    return same.astype(np.float32)


def _spread(table: Tensor, grid: Grid, step: int) -> Tensor:
    place = of_sizes(places, *grid, step)
    return table.index_select(1, place.view(-1)).view(table.shape[0], *place.shape)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, grid: Grid, step: int) -> Tensor:
        ctx.grid, ctx.step = grid, step
        return _spread(table, grid, step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (dy,), (h, w) = grads, ctx.grid
        rows, columns = (torch.from_numpy(one_hot(n, ctx.step)).to(dy.dtype) for n in ctx.grid)
        up, across = rows.shape[1] // h, columns.shape[1] // w
        pairs = dy.view(-1, up, across, h, w).transpose(2, 3).reshape(-1, up * h, across * w)
        return (rows @ (pairs @ columns.t())).reshape(-1, h * w), None, None
