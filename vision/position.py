"""Position embeddings and special tokens: what is put on and before the tokens of an image."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.sizes import always
from .tokens import Tokens


def resize(
    table: Tensor, grid: tuple[int, int], to: tuple[int, int], mode: str = "bicubic", antialias: bool = True
) -> Tensor:
    """A table of one row a place, (1 h*w C) on `grid`, resampled to the grid `to`: (1 H*W C); antialiased where it is
    bicubic, unless told not to."""
    if same(grid, to):
        return table
    m = table.unflatten(1, grid).permute(0, 3, 1, 2).float()  # type: ignore[no-untyped-call]
    m = F.interpolate(m, to, mode=mode, antialias=antialias and mode == "bicubic", align_corners=False)
    return m.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)


def same(grid: tuple[int, int], to: tuple[int, int]) -> bool:
    """Whether nothing is to be resized."""
    return always(grid[0] == to[0]) and always(grid[1] == to[1])


def resize_pairs(matrix: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """A number for each pair of places, (h*w h*w) on `grid`, read as a map over (y, x, y', x') and resized bilinearly
    to the grid `to`."""
    if same(grid, to):
        return matrix
    (h, w), (y, x) = grid, to
    r = F.interpolate(matrix.view(1, h * w, h, w), to, mode="bilinear", align_corners=False)
    r = r.view(h, w, y * x).permute(2, 0, 1)[None]  # 1 y*x(keys) h w(queries)
    return F.interpolate(r, to, mode="bilinear", align_corners=False).view(y * x, y * x).mT


def sinusoid(count: int, dim: int) -> Tensor:
    """(1 N C): sin (even j) or cos (odd j) of p / 10000^(2 floor(j/2) / C) for place p."""
    j = torch.arange(dim)
    angle = torch.arange(count)[:, None] / 10000 ** (2 * (j // 2) / dim)
    return torch.where(j % 2 == 0, angle.sin(), angle.cos())[None]


class Embedding(nn.Module):
    """Puts k special tokens in front (or in the middle, or at the end) and adds a position embedding that was made for
    `grid`, resized to the image's.

    The table has rows for the special tokens as well, where they stand, unless told otherwise; they are never resized.
    """

    table: Tensor

    def __init__(self, dim: int, spec: "Position"):
        super().__init__()
        self.spec = spec
        k, n = spec.special, spec.grid[0] * spec.grid[1]
        self.tokens = nn.ParameterList(nn.init.normal_(torch.empty(1, 1, dim), std=spec.token_std) for _ in range(k))
        self.rows = k = k if spec.rows else 0
        if spec.kind == "learned":
            self.table = nn.Parameter(nn.init.normal_(torch.empty(1, k + n, dim), std=spec.std))
        else:
            self.register_buffer("table", sinusoid(k + n, dim))
        self.drop = nn.Dropout(spec.drop) if spec.drop else nn.Identity()

    def forward(self, t: Tokens) -> Tokens:
        assert t.grid is not None
        k = self.spec.special
        x = t.x
        if not self.spec.rows:
            x = x + self.resized(t.grid).to(x.dtype)
        if k:
            tokens = [p.expand(x.shape[0], -1, -1).to(x.dtype) for p in self.tokens]
            p = self.place(x.shape[1])
            x = torch.cat([x[:, :p], *tokens, x[:, p:]], 1)
        p = self.place(x.shape[1] - k)
        if self.spec.rows:
            x = x + self.resized(t.grid).to(x.dtype)
        return replace(t, x=self.drop(x), special=tuple(p + i for i in range(k)))

    def place(self, patches: int) -> int:
        """Where the special tokens begin in a sequence with so many patches."""
        return {"first": 0, "middle": patches // 2, "last": patches}[self.spec.where]

    def resized(self, grid: tuple[int, int]) -> Tensor:
        """(1 k+N C) for the given grid."""
        k, spec, table = self.rows, self.spec, self.table
        if same(grid, spec.grid):
            return table
        if spec.kind == "sinusoid":  # a function of the place: computed, not resampled
            return sinusoid(k + grid[0] * grid[1], table.shape[-1]).to(table)
        return self.fitted(table, spec.grid, grid)

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published table made for another square grid, resampled to this one; None where it is none."""
        k, want = self.rows, self.table.shape
        if name != "table" or value.ndim != 3 or value.shape[-1] != want[-1]:
            return None
        side = round((value.shape[1] - k) ** 0.5)
        if side * side + k != value.shape[1]:
            return None
        return self.fitted(value, (side, side), self.spec.grid)

    def fitted(self, table: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
        """(1 k+N C) resized from `grid` to another, but for the rows of special tokens."""
        k, spec = self.rows, self.spec
        p, q = self.place(grid[0] * grid[1]), self.place(to[0] * to[1])
        rest = resize(torch.cat([table[:, :p], table[:, p + k :]], 1), grid, to, spec.resize, spec.antialias)
        return torch.cat([rest[:, :q], table[:, p : p + k], rest[:, q:]], 1)


@dataclass(frozen=True)
class Position:
    """A learned or sinusoidal position embedding made for a (height, width) grid, and `special` tokens in front, in the
    middle of the sequence (behind half of the patches, rounded down) or at its end."""

    grid: tuple[int, int]
    kind: Literal["learned", "sinusoid"] = "learned"
    special: int = 0
    std: float = 0.02
    token_std: float = 0.0
    resize: Literal["bicubic", "bilinear"] = "bicubic"
    drop: float = 0.0
    antialias: bool = True  # of the bicubic resize
    where: Literal["first", "middle", "last"] = "first"
    rows: bool = True  # special tokens have rows of the table too

    @property
    def places(self) -> tuple[int, ...]:
        """Where the special tokens stand in a sequence of the grid that it was made for; negative: from its end."""
        if self.where == "last":
            return tuple(range(-self.special, 0))
        first = self.grid[0] * self.grid[1] // 2 if self.where == "middle" else 0
        return tuple(range(first, first + self.special))

    def build(self, dim: int) -> nn.Module:
        if self.kind not in ("learned", "sinusoid"):
            raise ValueError(f"position kind {self.kind!r} is not known; there are learned and sinusoid")
        return Embedding(dim, self)
