"""One level of the two-dimensional dual-tree complex wavelet transform (DTCWT) and its inverse, with the filters
near_sym_b: https://ieeexplore.ieee.org/document/1550194 (Selesnick, Baraniuk, Kingsbury, 2005).

Shapes: a map m (B H W C); low (B H W C); high (6 2 B H/2 W/2 C), the orientations 15, 45, 75, 105, 135, 165 degrees and
real and imaginary parts first. Odd sides are made even by repeating the last row and column, in low too.

Each filter runs along one axis over the map, extended by reflection about the edges of its border pixels (x1 x0 | x0
x1). With h0 and h1, low and high, the bands are (along rows, then columns) LL = low and LH, HL, HH; each of the latter
gives two orientations from the quadruples a b / c d of its neighbours: ((a - d) + i (b + c)) / sqrt2 and ((a + d) +
i (b - c)) / sqrt2. The inverse undoes both with g0 and g1; `synthesise(*analyse(m))` is m, padded to even sides.

`reference` filters by convolution. `products` multiplies by banded matrices that hold filter and reflection: a few
times as many operations, in large products, which is faster up to sides of some hundred. All in float32 (float64 for
float64), under autocast too; the results have m's type.
"""

from array import array
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .sizes import always, is_open, modulo, table

Filter = Callable[[Tensor, str, int], Tensor]  # map, name of the taps, axis (1 down, 2 across) -> map
WIDEST = 128  # side up to which `products` is the faster


def symmetric(*half: float) -> tuple[float, ...]:
    """Taps from their first half and the middle one."""
    return (*half, *half[-2::-1])


def alternating(taps: tuple[float, ...]) -> tuple[float, ...]:
    """The same with every second sign turned, the middle one's not."""
    return tuple(tap * (-1.0) ** (i - len(taps) // 2) for i, tap in enumerate(taps))


# fmt: off
H0 = symmetric(-0.0017578125, 0, 0.022265625, -0.046875, -0.0482421875, 0.296875, 0.55546875)
H1 = symmetric(
    -7.062639508928571e-05, 0, 0.0013419015066964285, -0.0018833705357142855, -0.007156808035714285,
    0.023856026785714284, 0.05564313616071428, -0.05168805803571428, -0.29975760323660716, 0.5594308035714286,
)
# fmt: on
TAPS = {"h0": H0, "h1": H1, "g0": alternating(H1), "g1": alternating(H0)}


def analyse(m: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """m (B H W C) -> low (B H W C), high (6 2 B H/2 W/2 C)."""
    run = chosen(m, backend)
    with unmixed(m):
        x = even(m.to(wide(m)))
        lo, hi = run(x, "h0", 2), run(x, "h1", 2)
        low = run(lo, "h0", 1)
        bands = torch.stack([run(lo, "h1", 1), run(hi, "h1", 1), run(hi, "h0", 1)])  # LH HH HL: 3 B H W C
        h, w = x.shape[1] // 2, x.shape[2] // 2
        fours = bands.unflatten(3, (w, 2)).unflatten(2, (h, 2))  # type: ignore[no-untyped-call]
        a, b, c, d = (fours[:, :, :, i, :, j] for i in (0, 1) for j in (0, 1))
        first, second = torch.stack([a - d, b + c], 1), torch.stack([a + d, b - c], 1)
        high = torch.cat([first, second.flip(0)]) * 0.5**0.5
    return low.to(m.dtype), high.to(m.dtype)


def synthesise(low: Tensor, high: Tensor, *, backend: str = "auto") -> Tensor:
    """low (B H W C), high (6 2 B H/2 W/2 C) -> m (B H W C)."""
    run = chosen(low, backend)
    with unmixed(low):
        high = high.to(wide(low)) * 0.5**0.5
        (r1, i1), (r2, i2) = high[:3].unbind(1), high[3:].flip(0).unbind(1)  # 3 B H/2 W/2 C each
        upper = torch.stack([r1 + r2, i1 + i2], 4).flatten(3, 4)
        lower = torch.stack([i1 - i2, r2 - r1], 4).flatten(3, 4)
        lh, hh, hl = torch.stack([upper, lower], 3).flatten(2, 3)
        hi = run(hh, "g1", 1) + run(hl, "g0", 1)
        lo = run(lh, "g1", 1) + run(low.to(wide(low)), "g0", 1)
        m = run(hi, "g1", 2) + run(lo, "g0", 2)
    return m.to(low.dtype)


def even(m: Tensor) -> Tensor:
    """m with its last row or column repeated where their number is odd."""
    for axis in (1, 2):
        if not always(m.shape[axis] % 2 == 0):
            m = torch.cat([m, m.narrow(axis, m.shape[axis] - 1, 1)], axis)
            if is_open(m.shape[axis]):
                m = m.narrow(axis, 0, m.shape[axis] // 2 * 2)
    return m


# ----------------------------------------------------------------------------------------------------------- filters


def reference(m: Tensor, name: str, axis: int) -> Tensor:
    """Defines the operation: m (B H W C) filtered along an axis by `TAPS[name]`."""
    taps, channels = TAPS[name], m.shape[-1]
    index = table(reflected, m.shape[axis], len(taps) // 2).to(m.device)
    x = m.index_select(axis, index).permute(0, 3, 1, 2)
    kernel = torch.tensor(taps, dtype=m.dtype, device=m.device).view((-1, 1) if axis == 1 else (1, -1))
    return F.conv2d(x, kernel.expand(channels, 1, -1, -1), groups=channels).permute(0, 2, 3, 1)


def products(m: Tensor, name: str, axis: int) -> Tensor:
    """The same as a product with a banded matrix."""
    side = m.shape[axis]
    matrix = torch.frombuffer(banded(side, name), dtype=torch.float64).view(side, side).to(m)
    x = m.flatten(2) if axis == 1 else m.flatten(0, 1)
    return torch.bmm(matrix.expand(x.shape[0], -1, -1), x).view(m.shape)


def reflected(side: int, border: int, xp: Any = np) -> Any:
    """The places -border ... side + border - 1 of a side that is reflected to and fro, its ends standing twice."""
    place = modulo(xp.arange(side + 2 * border) - border, 2 * side, xp)
    return xp.minimum(place, 2 * side - 1 - place)


@lru_cache(maxsize=256)
def banded(side: int, name: str) -> "array[float]":
    """The (side side) numbers with which a column is multiplied."""
    taps = TAPS[name]
    index, matrix = reflected(side, len(taps) // 2), array("d", bytes(8 * side * side))
    for row in range(side):
        for k, tap in enumerate(taps):
            matrix[row * side + index[row + k]] += tap
    return matrix


BACKENDS: dict[str, Filter] = {"reference": reference, "products": products}


def chosen(m: Tensor, backend: str) -> Filter:
    if backend == "auto" and is_open(*m.shape[1:3]):
        backend = "reference"
    if backend == "auto":  # recorded or counted: as what defines it
        recorded = torch.compiler.is_compiling() or m.is_meta or torch._C._len_torch_dispatch_stack() > 0
        backend = "reference" if recorded or max(m.shape[1:3]) > WIDEST else "products"
    if backend not in BACKENDS:
        raise ValueError(f"back end {backend!r} is not known; there are auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend]


def wide(m: Tensor) -> torch.dtype:
    return torch.float64 if m.dtype == torch.float64 else torch.float32


def unmixed(m: Tensor) -> torch.autocast:
    """Without autocast."""
    return torch.autocast("cpu" if m.is_meta else m.device.type, enabled=False)
