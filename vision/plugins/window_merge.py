"""Merging inside windows, for stages whose mixers need the whole grid: token merging (ToMe,
https://arxiv.org/abs/2210.09461) of what the MLP sees, after which every patch has its place again.

Right behind the mixer the map is cut into side x side cells, coloured like chess boards. Each patch of the first colour
picks the most alike one of the second colour in its cell, by the cosine of their normalised tokens; of these pairs the
r closest of the whole image merge, into groups with the mean of their normalised tokens. The MLP runs once a group, and
each patch gets its group's answer: x_i' = x_i + mlp(mean over the group of i). Mixers see the full map at every block,
so any of them will do. What is saved is the share r / (H W) of the MLP's work, nothing of the mixer's; the matching
costs a tenth of the MLP's time where it is 96 wide, a fiftieth where it is 384. `start` leaves earlier stages alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ..tokens import Tokens, patch_positions, rows, summed
from . import Host, Placed, note


@dataclass(frozen=True)
class WindowMerge:
    """Merges `share` of the patches away before each MLP, or `r` of them for each whole cell, from stage `start` on; at
    most those of the first colour, about half of all."""

    share: float | None = None  # 0.4 where there is no r either
    r: int | None = None
    side: int = 7
    start: int = 0  # the first stage, from 0

    def __post_init__(self) -> None:
        if self.side < 2:
            raise ValueError(f"side={self.side}: cells of 2 x 2 patches or more are wanted")
        if self.share is not None and self.r is not None:
            raise ValueError(f"share={self.share} and r={self.r} say the same twice: give one of them")
        if self.share is not None and not 0 <= self.share <= 0.5:
            raise ValueError(f"share={self.share}: the part of the patches to merge away, 0 to 0.5")
        if self.r is not None and not 0 <= self.r <= (most := (self.side**2 + 1) // 2):
            raise ValueError(f"r={self.r}: patches to merge away in a cell of side={self.side}, 0 to {most}")
        if self.start < 0:
            raise ValueError(f"start={self.start}: the first stage, 0 or more")

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        share = self.r / self.side**2 if self.r is not None else 0.4 if self.share is None else self.share
        chosen = [h for h in hosts if h.stage >= self.start]
        if not chosen:
            raise ValueError(f"start={self.start}: the last stage of this model is {hosts[-1].stage}")
        return [Placed(pointwise(h), "around_ffn", WindowMergeLayer(share, self.side)) for h in chosen]


def pointwise(host: Host) -> Host:
    """The host, if it has an MLP that takes each token by itself; else raises SeamError."""
    ffn = getattr(host.block, "ffn", None)
    if ffn is None:
        raise host.refuse("has no MLP behind it whose tokens could be merged")
    if "around_ffn" not in host.block.seams:
        raise host.refuse("needs a full grid, so its tokens cannot become fewer", ffn)
    return host


class WindowMergeLayer(nn.Module):
    """(Tokens on their full grid, y, normed (B N C), then) -> the stream behind the MLP (B N C). Notes as "groups"
    which of the MLP's tokens each patch shares (B H*W)."""

    def __init__(self, share: float, side: int):
        super().__init__()
        self.share, self.side = share, side

    def forward(self, t: Tokens, y: Tensor, normed: Tensor, then: Callable[..., Tensor]) -> Tensor:
        if t.grid is None:
            raise ValueError("these tokens no longer fill a grid to be cut into cells; detach what reduced them")
        r = min(int(self.share * t.grid[0] * t.grid[1]), sources(*t.grid, self.side))
        if r == 0:
            return then(t.x, normed)
        kept, gone, group = self.match(t, normed, r)
        note("groups", group.gather(1, patch_positions(t)))
        return then(t.x, mean(normed, kept, gone, group.gather(1, gone)), lambda said: rows(said, group))

    @torch.no_grad()
    def match(self, t: Tokens, normed: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the tokens that stay (B N-r) and of those that go (B r), and for every token which of those
        that stay it is, or goes into (B N)."""
        assert t.grid is not None
        (b, n), device = normed.shape[:2], normed.device
        cells, there = (torch.from_numpy(a).to(device) for a in board(*t.grid, self.side))  # cells side²
        if t.special:
            cells = patch_positions(t)[0, cells]
        a = (self.side**2 + 1) // 2  # places of the first colour, which come first
        x = rows(normed, cells.flatten().expand(b, -1)).unflatten(1, cells.shape)  # type: ignore[no-untyped-call]
        length = x.norm(dim=-1).clamp(min=1e-12)  # B cells side²
        score = (x[:, :, :a] @ x[:, :, a:].mT) / length[:, :, None, a:]
        best, partner = score.masked_fill(~there[:, None, a:], -torch.inf).max(-1)  # B cells a
        best = (best / length[..., :a]).masked_fill(~there[:, :a], -torch.inf)
        pair = best.flatten(1).topk(r, sorted=False).indices  # B r
        gone = cells[:, :a].flatten()[pair]
        target = cells.flatten()[pair // a * self.side**2 + a + partner.flatten(1).gather(1, pair)]
        stays = torch.ones(b, n, dtype=torch.long, device=device).scatter(1, gone, 0)
        group = stays.cumsum(1) - 1  # of those that stay
        slots = group.where(stays == 1, n - r)  # those that go share a slot more, which is cut off
        every = torch.arange(n, device=device).expand(b, -1)
        kept = every.new_zeros(b, n - r + 1).scatter(1, slots, every)[:, :-1]
        return kept, gone, group.scatter(1, gone, group.gather(1, target))

    def extra_repr(self) -> str:
        return f"share={self.share:g}, side={self.side}"


def mean(x: Tensor, kept: Tensor, gone: Tensor, into: Tensor) -> Tensor:
    """(B K C): the tokens `kept` (B K) of x (B N C), each the mean with those of `gone` (B r) that go into it (B r)."""
    return summed(x, kept, gone, into) / summed(torch.ones_like(x[..., :1]), kept, gone, into)


@lru_cache(maxsize=64)  # numpy arrays, which carry no inference mode, device or tracer from one call to the next
def board(h: int, w: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """For each cell of an H x W map its places in raster order, those of the first colour before the others, and
    whether they are there; cells at right and bottom are cut (cells side²)."""
    row, column = np.indices((side, side)).reshape(2, -1)
    order = np.argsort((row + column) % 2, kind="stable")
    top, left = np.indices((-(-h // side), -(-w // side))).reshape(2, -1, 1) * side
    y, x = top + row[order], left + column[order]
    there = (y < h) & (x < w)
    return np.where(there, y * w + x, 0), there


def sources(h: int, w: int, side: int) -> int:
    """How many patches of an H x W map are of the first colour and have one of the second in their cell."""
    sides = [[(side, n // side), (n % side, 1)] for n in (h, w)]  # of cells, and how many have it; the last is cut
    return sum(m * n * ((a * b + 1) // 2) for a, m in sides[0] for b, n in sides[1] if a * b > 1)
