"""Orders in which a sequence mixer may walk over a map: each is a value with `paths(h, w)`, the places (row-major
numbers) in the order of each walk, (K, h*w).

They depend on nothing but sizes, and are kept as numpy arrays (see vision/mixers/window.py for why not as tensors).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from ..kernels.sizes import OpenSizeError, is_open

Kind = Literal["raster", "cross", "zigzag", "continuous", "window"]
KINDS = ("raster", "cross", "zigzag", "continuous", "window")


@dataclass(frozen=True)
class Order:
    """raster: along rows; with `both`, backwards too. cross: along rows and columns, with `both` backwards too
    (VMamba). zigzag: along the anti-diagonals, every second one backwards. continuous: a snake whose every step goes to
    a neighbour, along rows from the top and from the bottom, along columns from the left and from the right
    (PlainMamba). window: rows inside squares of `size`, square by square (LocalMamba)."""

    kind: Kind = "raster"
    both: bool = False
    size: int = 7

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"scan order {self.kind!r} is not known; there are {', '.join(KINDS)}")
        if self.size < 1:
            raise ValueError(f"a scan order's window size is at least 1; got {self.size}")

    @property
    def count(self) -> int:
        """How many walks there are."""
        one = {"cross": 2, "continuous": 4}.get(self.kind, 1)
        return 2 * one if self.both and self.kind != "continuous" else one

    def paths(self, h: int, w: int) -> np.ndarray:
        """(K h*w) int64. Raises OpenSizeError where an export leaves the sizes open."""
        if is_open(h, w):
            raise OpenSizeError(f"walks in {self.kind!r} order are tables for one size")
        return paths(self.kind, self.both, self.size, h, w)


@lru_cache(maxsize=256)
def paths(kind: str, both: bool, size: int, h: int, w: int) -> np.ndarray:
    place = np.arange(h * w).reshape(h, w)
    if kind == "continuous":
        found = [p for p, _ in snakes(h, w)]
    elif kind == "cross":
        found = [place.ravel(), place.T.ravel()]
    elif kind == "zigzag":
        y, x = np.indices((h, w))
        along = np.where((y + x) % 2 == 0, x, y)
        found = [place.ravel()[np.lexsort((along.ravel(), (y + x).ravel()))]]
    elif kind == "window":
        y, x = np.indices((h, w))
        found = [place.ravel()[np.lexsort((x.ravel(), y.ravel(), x.ravel() // size, y.ravel() // size))]]
    else:
        found = [place.ravel()]
    if both and kind != "continuous":
        found += [p[::-1] for p in found]
    return np.ascontiguousarray(np.stack(found), np.int64)


START, RIGHT, LEFT, UP, DOWN = range(5)  # how a step of a snake arrived


Walks = tuple[tuple[Any, Any], ...]


@lru_cache(maxsize=64)
def snakes(h: int, w: int) -> Walks:
    """`walks` as numpy arrays."""
    return tuple((np.ascontiguousarray(p), np.ascontiguousarray(c)) for p, c in walks(h, w, np))


def walks(h: int, w: int, xp: Any) -> Walks:
    """Four walks (places, how each was reached), each (h*w), by numpy or torch, which need not know the sizes: rows
    from (0, 0); rows from the last one upwards, ending at where the first began; columns from (0, 0); columns from the
    last one leftwards."""
    y, x = xp.arange(h), xp.arange(w)
    rows = y[:, None] + 0 * x, xp.where(y[:, None] % 2 == 0, x, w - 1 - x)  # h w
    columns = xp.where(x[:, None] % 2 == 0, y, h - 1 - y), x[:, None] + 0 * y  # w h
    found = []
    for ys, xs in (rows, columns):
        ys, xs = ys.reshape(-1), xs.reshape(-1)
        for ys_, xs_ in ((ys, xs), (xp.flip(ys, (0,)), xp.flip(xs, (0,)))):
            found.append((ys_ * w + xs_, arrivals(ys_, xs_, xp)))
    return tuple(found)


def arrivals(y: Any, x: Any, xp: Any) -> Any:
    """How each step of a walk over neighbours was reached."""
    dy, dx = (p - xp.concatenate([p[:1], p[:-1]]) for p in (y, x))
    across = xp.where(dx == 1, RIGHT, xp.where(dx == -1, LEFT, START))
    return across + xp.where(dy == 1, DOWN, xp.where(dy == -1, UP, START))
