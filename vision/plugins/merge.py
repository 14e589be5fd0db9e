"""Token merging (ToMe), https://arxiv.org/abs/2210.09461: in each block the r most alike pairs of tokens become one.

A = tokens at even positions, B = those at odd ones; S = cosine of their keys (mean over heads). Each token of A picks
its best of B; the r closest pairs merge into the weighted mean x' = sum(s x) / sum(s), s' = sum(s), with sizes s that
begin as 1. Attention then counts a token s times (log s is added to its scores). The matching is outside the graph, the
mean inside it. Written anew; the original is CC-BY-NC.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import Probe, Tokens
from . import SeamError


@dataclass(frozen=True)
class Merge:
    """Removes r tokens in each block: the same number everywhere, or a tuple of numbers (blocks beyond it: 0).

    With `inflect` f, block i of L removes int(lo + i (hi - lo) / (L - 1)), lo = int(r (1 - f)), hi = 2 r - lo: -1 falls
    from 2 r to 0, 1 rises from 0 to 2 r. r is cut where a block would merge more than half of its unprotected tokens.
    """

    r: int | tuple[int, ...]
    inflect: float = 0.0
    prop: bool = True  # attention in proportion to size

    def __post_init__(self) -> None:
        numbers = [self.r] if isinstance(self.r, int) else self.r
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers):
            raise ValueError(f"r={self.r!r}: how many tokens to remove, 0 or more, or a tuple of such numbers")
        if not -1 <= self.inflect <= 1 or (self.inflect and not isinstance(self.r, int)):
            raise ValueError(f"inflect={self.inflect!r} with r={self.r!r}: between -1 and 1, and only with a single r")

    @property
    def seams(self) -> tuple[str, ...]:
        return ("after_mixer",) if self.prop else ("after_norm", "after_mixer")

    def check(self, name: str, host: nn.Module) -> None:
        mixer: Any = host.mixer
        if mixer.needs_grid or "keys" not in mixer.offers:
            why = "needs a full grid" if mixer.needs_grid else "shows no keys"
            raise SeamError(f"{name}: {type(mixer).__name__} {why}, so its tokens cannot be merged")
        if getattr(ffn := getattr(host, "ffn", None), "needs_grid", False):
            raise SeamError(f"{name}: {type(ffn).__name__} needs a full grid, so its tokens cannot be merged")

    def layer(self, seam: str, index: int, count: int) -> nn.Module:
        return HideSize() if seam == "after_norm" else MergeLayer(self.schedule(count)[index])

    def schedule(self, count: int) -> list[int]:
        """How many tokens each of `count` blocks removes."""
        if not isinstance(self.r, int):
            return (list(self.r) + [0] * count)[:count]
        low = int(self.r * (1 - self.inflect))
        step = (2 * self.r - 2 * low) / max(1, count - 1)
        return [int(low + i * step) for i in range(count)]


class HideSize(nn.Module):
    """The mixer behind it counts every token once."""

    def forward(self, t: Tokens) -> Tokens:
        return replace(t, size=None)


class MergeLayer(nn.Module):
    """(Tokens, probe with keys (B N d)) -> Tokens with r fewer; special tokens stand first afterwards."""

    def __init__(self, r: int):
        super().__init__()
        self.r = r

    def forward(self, t: Tokens, probe: Probe) -> Tokens:
        r = removable(self.r, t.x.shape[1], t.special)
        return t if r == 0 else merge(t, *match(probe["keys"], r, t.special))

    def extra_repr(self) -> str:
        return f"r={self.r}"


def removable(r: int, n: int, special: tuple[int, ...]) -> int:
    """r, cut to what n tokens allow: (n - |special|) // 2, the sources there are, and 0 without a destination."""
    even = sum(i % 2 == 0 for i in special)
    sources, targets = (n + 1) // 2 - even, n // 2 - (len(special) - even)
    return max(0, min(r, (n - len(special)) // 2, sources)) if targets > 0 else 0


@torch.no_grad()
def match(keys: Tensor, r: int, special: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """From keys (B N d): the present tokens to keep, in their new order (B N-r); those that go (B r); and the new
    positions that these go into (B r).

    The order is special tokens, other unmerged of A, other of B; of A by position, or without special tokens by
    falling similarity, as the original has it.
    """
    b, n = keys.shape[:2]
    keys = keys / keys.norm(dim=-1, keepdim=True)
    score = keys[:, ::2] @ keys[:, 1::2].mT  # B |A| |B|
    for i in special:  # in A never a source, in B never a destination
        (score[:, i // 2] if i % 2 == 0 else score[:, :, i // 2]).fill_(-torch.inf)
    best, into = score.max(-1)
    if special:
        best[:, [i // 2 for i in special if i % 2 == 0]] = -torch.inf
    order = best.argsort(dim=-1, descending=True, stable=True)
    gone, stay = order[:, :r], order[:, r:]
    if special:
        stay = stay.sort(-1).values
    kept = torch.cat([2 * stay, 2 * torch.arange(n // 2, device=keys.device).expand(b, -1) + 1], 1)  # B N-r
    if special:
        rank = torch.full((n,), len(special), device=keys.device)
        rank[list(special)] = torch.arange(len(special), device=keys.device)
        kept = kept.gather(1, rank[kept].argsort(dim=-1, stable=True))
    place = kept.new_zeros(b, n).scatter(1, kept, torch.arange(n - r, device=keys.device).expand(b, -1))
    return kept, 2 * gone, place.gather(1, 2 * into.gather(1, gone) + 1)


def merge(t: Tokens, kept: Tensor, gone: Tensor, into: Tensor) -> Tokens:
    """`t` with the tokens `gone` summed, by size, into those at the new positions `into`."""

    def fold(y: Tensor) -> Tensor:  # B N C -> B N-r C
        wide = (-1, -1, y.shape[-1])
        rest, moved = (y.gather(1, i[..., None].expand(wide)) for i in (kept, gone))
        return rest.scatter_add(1, into[..., None].expand(wide), moved)

    (b, n), k = t.x.shape[:2], len(t.special)
    size = torch.ones_like(t.x[..., :1]) if t.size is None else t.size
    total = fold(size)
    to = kept.new_zeros(b, n).scatter(1, kept, torch.arange(kept.shape[1], device=kept.device).expand(b, -1))
    to = to.scatter(1, gone, into)  # each present token's new position
    source = patch_positions(t) if t.source is None else t.source
    source = to.gather(1, source.clamp(min=0)).where(source >= 0, -1)
    return replace(t, x=fold(t.x * size) / total, grid=None, special=tuple(range(k)), size=total, source=source)


def patch_positions(t: Tokens) -> Tensor:
    """B H*W: where each patch stands among tokens of which none is gone yet."""
    n, special = t.x.shape[1], set(t.special)
    return torch.tensor([i for i in range(n) if i not in special], device=t.x.device).expand(len(t.x), -1)


def unmerge(t: Tokens) -> Tensor:
    """B H*W C: for every patch, in raster order, the token that holds it; 0 where it was dropped."""
    if t.source is None:
        return t.patches()
    at = t.source[..., None]
    return t.x.gather(1, at.clamp(min=0).expand(-1, -1, t.x.shape[-1])).where(at >= 0, 0)
