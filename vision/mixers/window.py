"""Attention inside windows that shift from block to block, https://arxiv.org/abs/2103.14030."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attend import attend
from ...kernels.sizes import OpenSizeError, always, is_open, kept, missing, modulo
from ...kernels.sizes import table as of_sizes
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
        if not self.dense:
            s, shift = shrunk(h, w, s, shift)
        if not (always(h % s == 0) and always(w % s == 0)):
            m = F.pad(m, (0, 0, 0, missing(w, s), 0, missing(h, s)))
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
        bias = table[of_sizes(offsets, size, s)].permute(2, 0, 1)[None].contiguous()
        if not is_open(h, w) and kept(apart, h, w, s, shift, not self.dense) is None:
            return bias
        return bias + of_sizes(apart, h, w, s, shift, not self.dense).to(bias)[:, None]

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


def shrunk(h: int, w: int, s: int, shift: int) -> tuple[int, int]:
    """(size, shift) of the windows on a map of h x w: the whole shorter side and no shift where that is no longer than
    a window. Where an export leaves sides open, none may be shorter than that."""
    if not is_open(h, w):
        return (min(h, w), 0) if min(h, w) <= s else (s, shift)
    if not (always(h >= s) and always(w >= s)):
        raise OpenSizeError(f"maps with sides below {s} and above have windows of different sizes")
    bounded = always(h > s) and always(w > s)
    return s, shift if bounded else shift * (1 - s // h) * (1 - s // w)  # 0 where one is just as long


def windows_of(place: Any, s: int) -> Any:
    """`windows` for a table of places, (H W) -> (H/s*W/s s*s)."""
    h, w = place.shape
    return place.reshape(h // s, s, w // s, s).swapaxes(1, 2).reshape(-1, s * s)


def offsets(size: int, s: int, xp: Any = np) -> Any:
    """(s*s s*s): the row of a table for windows of `size` that holds the bias of each pair in a window of s <= size."""
    place = xp.arange(s * s)
    dy, dx = (p[:, None] - p[None, :] + size - 1 for p in (place // s, place % s))
    return dy * (2 * size - 1) + dx


def apart(h: int, w: int, s: int, shift: int, hide_padding: bool, xp: Any = np) -> Any:
    """(n s*s s*s): -100 (as published) between places that a cyclic shift brought into one window, -inf towards padding
    if that is to be hidden; None where every pair may meet."""
    high, wide = h + missing(h, s), w + missing(w, s)
    if not is_open(h, w) and not shift and not (hide_padding and (high, wide) != (h, w)):
        return None
    row, column = ((xp.arange(n) >= n - s) * 1 + (xp.arange(n) >= n - shift) for n in (high, wide))
    region = windows_of(row[:, None] * 3 + column, s)  # n s*s; without a shift one region a window
    mask = xp.where(region[:, :, None] != region[:, None, :], -100.0, 0.0)
    if hide_padding:
        row, column = (modulo(xp.arange(p) + shift, p, xp) >= n for p, n in ((high, h), (wide, w)))
        outside = windows_of(row[:, None] | column, s)
        mask = xp.where(outside[:, None, :], -xp.inf, mask)
        mask = xp.where(outside[:, :, None], 0.0, mask)  # what padding attends to is cut off anyway
    return xp.asarray(mask, dtype=xp.float32)


@dataclass(frozen=True)
class Window:
    """Attention inside size x size windows; every second block shifts them by half a window."""

    heads: int
    size: int = 7
    dense: bool = False  # the authors' detection form: see WindowAttention

    def build(self, dim: int, index: int) -> nn.Module:
        return WindowAttention(dim, self.heads, self.size, self.size // 2 * (index % 2), self.dense)
