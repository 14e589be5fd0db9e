"""Attention inside windows that shift from block to block, https://arxiv.org/abs/2103.14030."""

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ...kernels.windows import attend_beside, attend_windows, roll
from ..layers import Linear
from ..position import resize
from ..tokens import Probe, Tokens, in_front


class WindowAttention(nn.Module):
    """softmax(q k' / sqrt(d) + bias of the offset) v inside s x s windows of the map, rolled by `shift` beforehand.

    Any map: one whose sides are no multiples of s is padded with zeros at right and bottom. `dense=False` (the
    classifier of the paper): padded places are masked, and where the shorter side is no longer than a window the window
    shrinks to it and nothing shifts. `dense=True` (the authors' detection form): padded places take part as keys,
    windows never shrink and odd blocks always shift.

    Special tokens, in front of the patches, stand in every window, without a bias; what they get is the mean over the
    windows.
    """

    needs_grid, offers, projections, takes_special = True, (), ("qkv", "proj"), True
    seams: tuple[str, ...] = ("attending",)
    rescales = True  # on a coarser map that a plugin made (Tokens.window): smaller windows, the table interpolated

    def __init__(self, dim: int, heads: int, size: int, shift: int, dense: bool = False):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        if size < 1:
            raise ValueError(f"window size {size}: it takes at least 1")
        self.heads, self.size, self.shift, self.dense = heads, size, shift, dense
        self.entries = () if dense else ("qkv",)  # dense: zeros beside the map are read as well
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.table = nn.Parameter(nn.init.normal_(torch.empty((2 * size - 1) ** 2, heads), std=0.02))
        self.attending: nn.Module | None = None

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        m = t.map()  # B H W C
        h, w = m.shape[1:3]
        s, shift = (self.size, self.shift) if t.window is None else (t.window, round(self.shift * t.window / self.size))
        if not self.dense and min(h, w) <= s:
            s, shift = min(h, w), 0
        down, right = -h % s, -w % s
        if down or right:
            m = F.pad(m, (0, 0, 0, right, 0, down))
        qkv, bias = self.qkv(roll(m, -shift)), self.bias(h, w, s, shift, self.stands_for(t, s))
        if not t.special and self.attending is None:
            y = self.attend(qkv, bias, s)
            return self.proj(roll(y, shift)[:, :h, :w].flatten(1, 2))  # type: ignore[no-any-return]
        by = attend if self.attending is None else partial(self.attending, t=t)
        special = self.qkv(in_front(t))
        y, seen = attend_beside(qkv, special, free(bias, special.shape[1]), self.heads, s, by)
        return self.proj(torch.cat([seen, roll(y, shift)[:, :h, :w].flatten(1, 2)], 1))  # type: ignore[no-any-return]

    def attend(self, qkv: Tensor, bias: Tensor, s: int) -> Tensor:
        """(B H W 3C) -> (B H W C)."""
        return attend_windows(qkv, bias, self.heads, s)

    def stands_for(self, t: Tokens, s: int) -> int:
        """The side of the windows that those of s were before a plugin made them smaller."""
        if t.window is None:
            return s
        assert t.full is not None
        return self.size if self.dense else min(self.size, *t.full)

    def bias(self, h: int, w: int, s: int, shift: int, whole: int) -> Tensor:
        """(1 or n h s*s s*s): the learned bias of each pair's offset, and -inf where a pair must not meet; windows of s
        that stand for ones of `whole` have the latter's biases, interpolated."""
        table: Tensor = self.table
        size = self.size
        if s != whole:
            middle = slice(size - whole, size + whole - 1)
            square = table.view(2 * size - 1, 2 * size - 1, -1)[middle, middle].flatten(0, 1)
            table = resize(square[None], (2 * whole - 1,) * 2, (2 * s - 1,) * 2, "bilinear")[0]
            size = s
        bias = table[torch.from_numpy(offsets(size, s))].permute(2, 0, 1)[None].contiguous()
        mask = apart(h, w, s, shift, not self.dense)
        if mask is None:
            return bias
        return bias + torch.from_numpy(mask).to(bias)[:, None]

    def resample(self, name: str, value: Tensor) -> Tensor | None:
        """A published bias table of another window size, resampled to this one; None where it is none."""
        want = self.table.shape
        if name != "table" or value.ndim != 2 or value.shape[-1] != want[-1]:
            return None
        old, new = (round(n**0.5) for n in (value.shape[0], want[0]))
        if old * old != value.shape[0] or old % 2 == 0:
            return None
        return resize(value[None], (old, old), (new, new), antialias=False)[0]

    def extra_repr(self) -> str:
        return f"heads={self.heads}, size={self.size}, shift={self.shift}, dense={self.dense}"


def free(bias: Tensor, k: int) -> Tensor:
    """The bias with k more tokens in front, of which each meets all others but padding that is hidden:
    (1 or n h k+s*s k+s*s)."""
    if not k:
        return bias
    hidden = (bias == -torch.inf).any(2, keepdim=True)  # from those of the map
    first = F.pad(torch.zeros_like(bias[:, :, :1]).masked_fill(hidden, -torch.inf), (k, 0))
    return torch.cat([first.expand(-1, -1, k, -1), F.pad(bias, (k, 0))], 2)


def windows_of(place: np.ndarray, s: int) -> np.ndarray:
    """`windows` for a table of places, (H W) -> (H/s*W/s s*s)."""
    h, w = place.shape
    return place.reshape(h // s, s, w // s, s).swapaxes(1, 2).reshape(-1, s * s)


# The two tables below depend on nothing but sizes. They are kept as numpy arrays: a tensor kept from one call to the
# next would carry the first call's inference mode, device or tracer into all later ones.


@lru_cache(maxsize=64)
def offsets(size: int, s: int) -> np.ndarray:
    """(s*s s*s): the row of a table for windows of `size` that holds the bias of each pair in a window of s <= size."""
    y, x = (p.ravel() for p in np.indices((s, s)))
    dy, dx = (p[:, None] - p[None, :] + size - 1 for p in (y, x))
    return (dy * (2 * size - 1) + dx).astype(np.int64)


@lru_cache(maxsize=64)
def apart(h: int, w: int, s: int, shift: int, hide_padding: bool) -> np.ndarray | None:
    """(n s*s s*s): -100 (as published) between places that a cyclic shift brought into one window, -inf towards padding
    if that is to be hidden; None where every pair may meet."""
    high, wide = h + -h % s, w + -w % s
    padded = hide_padding and (high, wide) != (h, w)
    if not shift and not padded:
        return None
    region = np.zeros((high, wide), np.int64)
    if shift:
        row, column = ((np.arange(n) >= n - s).astype(int) + (np.arange(n) >= n - shift) for n in (high, wide))
        region = row[:, None] * 3 + column
    region = windows_of(region, s)  # n s*s
    mask = np.where(region[:, :, None] != region[:, None, :], np.float32(-100), np.float32(0))
    if padded:
        row, column = ((np.arange(p) + shift) % p >= n for p, n in ((high, h), (wide, w)))
        outside = windows_of(row[:, None] | column, s)
        mask[np.broadcast_to(outside[:, None, :], mask.shape)] = -np.inf
        mask[np.broadcast_to(outside[:, :, None], mask.shape)] = 0  # what padding attends to is cut off anyway
    return mask


@dataclass(frozen=True)
class Window:
    """Attention inside size x size windows; every second block shifts them by half a window."""

    heads: int
    size: int = 7
    dense: bool = False  # the authors' detection form: see WindowAttention

    def build(self, dim: int, index: int) -> nn.Module:
        return WindowAttention(dim, self.heads, self.size, self.size // 2 * (index % 2), self.dense)
