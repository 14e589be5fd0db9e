"""The state that runs through a backbone.

Shapes: B images, N tokens, C channels, an H x W grid of patches.

A plugin that reduces tokens leaves behind how the patches are had back from those that remain (`source`, or `spread`),
in the order of the grid `full` on which there were all of them; `unmerge` does that. Everything else that it leaves is
for later layers of its own or for mixers that take account of it; what a mixer cannot take account of, the plugin
refuses when it is attached.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from ..kernels.windows import unwindow, windows

Probe = dict[str, Tensor]  # what a mixer shows on its way, by the names that it `offers`


@dataclass(frozen=True)
class Tokens:
    """The tokens of one batch. Replaced, never mutated, never stored on a module."""

    x: Tensor  # B N C
    grid: tuple[int, int] | None  # H, W with H * W == N - len(special); None once tokens no longer fill a grid
    special: tuple[int, ...] = ()  # positions of class, register and prompt tokens, the class token's first
    size: Tensor | None = None  # B N 1: how many patches each token stands for; None: one each
    source: Tensor | None = None  # B H*W: the present token of each patch, -1 where it was dropped; None: all present
    inner: Tensor | None = None  # B*H*W n c: the n smaller tokens that a patch is made of (TNT); None: it has none
    turn: int = 0  # how often the block that computes has run right before (blocks.recursive)
    full: tuple[int, int] | None = None  # H, W of the patches that `source` and `spread` tell of; None: the grid
    spread: Tensor | None = None  # B H*W N: patches as sums of tokens, where a patch is not one of them; None: it is;
    # with `window`, window by window (B*n s*s w*w) for n windows of s x s patches that are w x w tokens now
    policy: Tensor | None = None  # B N 1: 1 for tokens that count, 0 for those that are only masked; None: all count
    keep: Tensor | None = None  # B K: the tokens that will stay behind the block that computes; None: all
    place: Tensor | None = None  # B N: where each token stood when none was gone, for mixers that close no gaps
    lost: Tensor | None = None  # B H*W C: what patches held when they were dropped; None: nobody kept it
    window: int | None = None  # the side of windows that were made smaller; None: the mixer's own
    task: str | None = None  # whose adapters act, where several tasks share them (adapters/tasks.py); None: nobody said
    condition: Tensor | None = None  # B D: what all tokens of an image are modulated by (a denoiser's time and class)
    context: Tensor | None = None  # B L d: other tokens that these may look at (a caption's)

    def patches(self) -> Tensor:
        """B H*W C: the tokens that stand for patches, in raster order."""
        if not self.special:
            return self.x
        n, k = self.x.shape[1], len(self.special)
        if sorted(self.special) == list(range(k)):
            return self.x[:, k:]
        if sorted(self.special) == list(range(n - k, n)):
            return self.x[:, : n - k]
        kept = [i for i in range(n) if i not in set(self.special)]
        return self.x[:, kept]

    def through(self, norm: Callable[[Tensor], Tensor]) -> "Tokens":
        """The same with each token, and what each dropped patch held, normalised."""
        return replace(self, x=norm(self.x), lost=None if self.lost is None else norm(self.lost))

    def map(self) -> Tensor:
        """B H W C, a view where there are no special tokens; its `permute(0, 3, 1, 2)` is an NCHW tensor in
        channels_last memory."""
        if self.grid is None:
            raise ValueError("these tokens no longer fill a grid (some were merged or dropped); unmerge them first")
        return self.patches().unflatten(1, self.grid)  # type: ignore[no-untyped-call, no-any-return]

    def with_map(self, m: Tensor) -> "Tokens":
        """The same with the map m (B H W C) as its tokens; for tokens without special ones."""
        return replace(self, x=m.flatten(1, 2), grid=(m.shape[1], m.shape[2]))

    def whole(self) -> Tensor:
        """B H W C: `map`, or where tokens were reduced the map that `unmerge` restores."""
        if self.source is None and self.spread is None:
            return self.map()
        if self.full is None:
            raise ValueError("tokens were reduced, and nothing says which grid they came from: set `full`")
        return unmerge(self).unflatten(1, self.full)  # type: ignore[no-untyped-call, no-any-return]

    def restored(self) -> "Tokens":
        """All patches on their full grid again, behind the special tokens."""
        if self.source is None and self.spread is None:
            return self
        patches, k = unmerge(self), len(self.special)
        x = torch.cat([self.x[:, list(self.special)], patches], 1) if k else patches
        return Tokens(x, self.full, tuple(range(k)), inner=self.inner, turn=self.turn, condition=self.condition,
                      context=self.context)  # fmt: skip


def unmerge(t: Tokens) -> Tensor:
    """B H*W C: for every patch, in raster order, the token that holds it, or its sum of tokens; where it was
    dropped what it held then, or 0 if nobody kept that."""
    if t.spread is not None and t.window is not None:
        return of_windows(t, t.spread.to(t.x.dtype), t.window)
    if t.spread is not None:
        return t.spread.to(t.x.dtype) @ t.x
    if t.source is None:
        return t.patches()
    there = t.source[..., None] >= 0
    return rows(t.x, t.source.clamp(min=0)).where(there, 0 if t.lost is None else t.lost)


def beside(special: tuple[int, ...], at: int, n: int) -> tuple[int, ...]:
    """`special` once n more special tokens stand at `at`, and those; negative positions count from the end."""
    return (*(p + n if p >= at else p for p in special), *range(at, at + n))


def in_front(t: Tokens) -> Tensor:
    """B k C: the special tokens, which have to stand before the patches."""
    k = len(t.special)
    if sorted(t.special) != list(range(k)):
        raise ValueError(f"special tokens at {t.special}: they are wanted in front of the patches")
    return t.x[:, :k]


def rows(x: Tensor, at: Tensor) -> Tensor:
    """(B N C), (B K) -> (B K C): each image's rows at its positions. One index for the whole batch: `gather`, which
    takes one for every channel, is up to seven times as slow on a CPU."""
    b, n, c = x.shape
    return x.reshape(b * n, c).index_select(0, flat(at, n)).view(b, -1, c)


def flat(at: Tensor, n: int) -> Tensor:
    """Positions (B K) among n tokens of an image -> (B*K) among those of all images."""
    return (at + n * torch.arange(at.shape[0], device=at.device)[:, None]).flatten()


def summed(x: Tensor, kept: Tensor, gone: Tensor, into: Tensor) -> Tensor:
    """(B K C): the tokens `kept` (B K) of x (B N C), each with those of `gone` (B r) added that go into it; `into`
    (B r) counts among the kept."""
    b, k = kept.shape
    total = rows(x, kept).flatten(0, 1).index_add(0, flat(into, k), rows(x, gone).flatten(0, 1))
    return total.view(b, k, -1)


def of_windows(t: Tokens, spread: Tensor, window: int) -> Tensor:
    """B H*W C: `spread` taken window by window, and what was padding left out."""
    assert t.grid is not None
    assert t.full is not None
    s, (h, w) = isqrt(spread.shape[1]), t.full
    y = spread @ windows(t.map(), window)  # B*n s*s C
    return unwindow(y, t.grid[0] // window * s, t.grid[1] // window * s, s)[:, :h, :w].flatten(1, 2)


def patch_positions(t: Tokens) -> Tensor:
    """B H*W: where each patch stands among tokens of which none is gone yet."""
    n, special = t.x.shape[1], set(t.special)
    return torch.tensor([i for i in range(n) if i not in special], device=t.x.device).expand(len(t.x), -1)


def moved(t: Tokens, to: Tensor, x: Tensor, special: tuple[int, ...], size: Tensor | None = None) -> Tokens:
    """`t` with the tokens x (B K C) in place of its own, of which token i became `to[:, i]` (B N), -1 where it was
    dropped; `special` and `size` are those of x."""
    source = patch_positions(t) if t.source is None else t.source
    source = to.gather(1, source.clamp(min=0)).where(source >= 0, -1)
    return replace(t, x=x, grid=None, special=special, size=size, source=source, full=t.full or t.grid)


def select(t: Tokens, kept: Tensor, special: tuple[int, ...]) -> Tokens:
    """`t` with the tokens `kept` (B K) alone, in that order, of which those at `special` are its special ones. What
    goes with each token (size, policy, place) goes with it."""

    def own(y: Tensor | None) -> Tensor | None:
        return None if y is None else rows(y, kept)

    (b, n), k = t.x.shape[:2], kept.shape[1]
    to = torch.full((b, n), -1, device=kept.device)
    to = to.scatter(1, kept, torch.arange(k, device=kept.device).expand(b, -1))
    place = None if t.place is None else t.place.gather(1, kept)
    return replace(moved(t, to, rows(t.x, kept), special, own(t.size)), policy=own(t.policy), place=place)
