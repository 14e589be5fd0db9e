"""The state that runs through a backbone.

Shapes: B images, N tokens, C channels, an H x W grid of patches.
"""

from dataclasses import dataclass, replace

from torch import Tensor

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

    def map(self) -> Tensor:
        """B H W C, a view where there are no special tokens; its `permute(0, 3, 1, 2)` is an NCHW tensor in
        channels_last memory."""
        if self.grid is None:
            raise ValueError("these tokens no longer fill a grid (some were merged or dropped); unmerge them first")
        return self.patches().unflatten(1, self.grid)  # type: ignore[no-untyped-call, no-any-return]

    def with_map(self, m: Tensor) -> "Tokens":
        """The same with the map m (B H W C) as its tokens; for tokens without special ones."""
        return replace(self, x=m.flatten(1, 2), grid=(m.shape[1], m.shape[2]))
