"""Token merging (ToMe), https://arxiv.org/abs/2210.09461: in each block the r most alike pairs of tokens become one.

A = tokens at even positions, B = those at odd ones; S = cosine of their keys (mean over heads). Each token of A picks
its best of B; the r closest pairs merge into the weighted mean x' = sum(s x) / sum(s), s' = sum(s), with sizes s that
begin as 1. Attention then counts a token s times (log s is added to its scores). The matching is outside the graph, the
mean inside it. Written anew; the original is CC-BY-NC.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..tokens import Probe, Tokens, moved, summed
from . import Host, Placed, reducible


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

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        layers = []
        for host, r in zip(hosts, self.schedule(len(hosts)), strict=True):
            layers.append(Placed(reducible(host, "keys"), "after_mixer", MergeLayer(r)))
            if not self.prop:
                layers.append(Placed(host, "after_norm", HideSize()))
        return layers

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
    """(Tokens, probe with keys (B h N d)) -> Tokens with r fewer; special tokens stand first afterwards."""

    def __init__(self, r: int):
        super().__init__()
        self.r = r

    def forward(self, t: Tokens, probe: Probe) -> Tokens:
        r = removable(self.r, t.x.shape[1], t.special)
        return t if r == 0 else merge(t, *match(probe["keys"].mean(1), r, t.special))

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
    order = best.topk(best.shape[1]).indices
    gone, stay = order[:, :r], order[:, r:]
    if special:
        stay = stay.sort(-1).values
    kept = torch.cat([2 * stay, 2 * torch.arange(n // 2, device=keys.device).expand(b, -1) + 1], 1)  # B N-r
    if special:
        rank = torch.full((n,), len(special), device=keys.device)
        rank[list(special)] = torch.arange(len(special), device=keys.device)
        key = rank[kept] * n + torch.arange(n - r, device=keys.device)  # without ties: ONNX has no stable sort
        kept = kept.gather(1, key.argsort(dim=-1))
    place = kept.new_zeros(b, n).scatter(1, kept, torch.arange(n - r, device=keys.device).expand(b, -1))
    return kept, 2 * gone, place.gather(1, 2 * into.gather(1, gone) + 1)


def merge(t: Tokens, kept: Tensor, gone: Tensor, into: Tensor) -> Tokens:
    """`t` with the tokens `gone` summed, by size, into those at the new positions `into`."""

    (b, n), k = t.x.shape[:2], len(t.special)
    size = torch.ones_like(t.x[..., :1]) if t.size is None else t.size
    total = summed(size, kept, gone, into)
    to = kept.new_zeros(b, n).scatter(1, kept, torch.arange(kept.shape[1], device=kept.device).expand(b, -1))
    to = to.scatter(1, gone, into)  # each present token's new position
    return moved(t, to, summed(t.x * size, kept, gone, into) / total, tuple(range(k)), total)
