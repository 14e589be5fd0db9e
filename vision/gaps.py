"""Walks over sequences out of which tokens were taken, for mixers that keep account of what is missing.

Shapes: B images, an H x W grid of patches, K tokens that are left, C channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mixers.convolution import convolve
from .tokens import Tokens, flat, rows


def among_zeros(x: Tensor, at: Tensor, count: int) -> Tensor:
    """x (B K C) at the places `at` (B K) of `count`, zeros elsewhere: (B count C)."""
    b, k, c = x.shape
    return x.new_zeros(b * count, c).index_copy_(0, flat(at, count), x.reshape(b * k, c)).view(b, count, c)


class Walk(NamedTuple):
    """The order of a walk over the tokens (None: their own), and what is missing on it (None: nobody counts)."""

    order: Tensor | None = None  # B K, or K: which token comes when
    back: Tensor | None = None  # as order: when each token comes
    at: Tensor | None = None  # B K: where on the whole walk each step is
    before: Tensor | None = None  # B K: how many tokens are missing between each step and the one before it
    behind: Tensor | None = None  # B K: and between it and the next

    def along(self, x: Tensor) -> Tensor:
        """x (B K C) in the order of the walk."""
        return picked(x, self.order)

    def home(self, y: Tensor) -> Tensor:
        """What `along` rearranged, put back."""
        return picked(y, self.back)


def picked(x: Tensor, order: Tensor | None) -> Tensor:
    if order is None:
        return x
    return x[:, order] if order.ndim == 1 else rows(x, order)


def walk(at: Tensor, counted: bool = True) -> Walk:
    """The walk on whose places `at` (B K) the tokens stand; `counted`: with what is missing between them."""
    at, order = at.sort(1)
    steps = torch.arange(at.shape[1], device=at.device).expand_as(order)
    back = torch.zeros_like(order).scatter(1, order, steps)
    if not counted:
        return Walk(order, back, at)
    missing = at.diff(dim=1) - 1
    return Walk(order, back, at, F.pad(missing, (1, 0)), F.pad(missing, (0, 1)))


def patches_of(t: Tokens) -> tuple[Tensor, tuple[int, int], Tensor | None]:
    """The map (B H W C), its grid, and None; or, where patches are gone, those that are left (B K C), the grid, and
    where on it they stand (B K)."""
    if t.source is None:
        m = t.map()
        return m, (m.shape[1], m.shape[2]), None
    assert t.full is not None
    return t.x, t.full, t.place if t.place is not None else standing(t.source, t.x.shape[1])


def standing(source: Tensor, count: int) -> Tensor:
    """source (B H*W): the token of each patch, -1 for none -> the patch of each of `count` tokens (B count)."""
    b, n = source.shape
    to = source.where(source >= 0, count)
    patches = torch.arange(n, device=source.device).expand(b, -1)
    return source.new_zeros(b, count + 1).scatter(1, to, patches)[:, :count]


def convolved(conv: nn.Module, x: Tensor, grid: tuple[int, int], at: Tensor | None) -> Tensor:
    """conv on what `patches_of` gave, zeros where patches are gone: (B H*W C'), or at the K places (B K C')."""
    if at is None:
        return convolve(conv, x).flatten(1, 2)
    m = among_zeros(x, at, grid[0] * grid[1]).unflatten(1, grid)  # type: ignore[no-untyped-call]
    return rows(convolve(conv, m).flatten(1, 2), at)
