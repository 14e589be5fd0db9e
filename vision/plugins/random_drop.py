"""Patches dropped at random: the baseline of every method that chooses them.

In evaluation the choice depends on seed, block and number of patches alone: all images lose the same, and get the same
answer every time. In training each image loses others at every step, by torch's generator. What else a method does for
the patches that it drops is done for them too: state space models are told of the gaps as in scan_pruning.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor, nn

from ..tokens import Probe, Tokens, unmerge
from . import Host, Placed
from .merge import Merge, removable
from .pruning import behind, blocks_at, check_at, check_gaps, check_keep, drawn, leave, scans, staying

PRIME = 2**31 - 1


@dataclass(frozen=True)
class RandomDrop:
    """Drops as many patches in each block as ToMe merges there (`r` and `inflect`, see merge.py), or keeps the share
    `keep` (0.7 unless given) at the blocks `at` of the last stage, as EViT does. Patches stay in their order."""

    r: int | tuple[int, ...] | None = None
    inflect: float = 0.0
    keep: float | None = None
    at: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.r is None and self.inflect:
            raise ValueError(f"inflect={self.inflect!r} without r: it shapes the schedule of r; give both")
        if self.r is None:
            check_keep(self.share)
            check_at(self.at)
        elif self.keep is not None or self.at is not None:
            raise ValueError(f"r={self.r!r} with keep={self.keep!r}, at={self.at!r}: give r, or keep and at")
        else:
            Merge(self.r, self.inflect)  # says what is wrong with them

    @property
    def share(self) -> float:
        return 0.7 if self.keep is None else self.keep

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        if self.r is None:
            at, drops = blocks_at(hosts, self.at), [0] * len(hosts)
        else:
            drops = Merge(self.r, self.inflect).schedule(len(hosts))
            at = [h for h, r in zip(hosts, drops, strict=True) if r] or [hosts[0]]
        check_gaps(behind(hosts, at))
        share = self.share if self.r is None else 1.0
        return [
            Placed(h, "after_mixer", RandomLayer(drops[h.place], share, f"{self.seed} {h.place}", scans(h))) for h in at
        ]


class RandomLayer(nn.Module):
    """(Tokens, probe) -> Tokens: r patches fewer and, of the others, the share `keep`. `seed` decides which."""

    def __init__(self, r: int, keep: float, seed: str, aligned: bool = False):
        super().__init__()
        self.r, self.keep, self.seed, self.aligned = r, keep, seed, aligned
        draw = Random(seed)
        self.factors = [draw.randrange(PRIME) for _ in range(4)]

    def forward(self, t: Tokens, probe: Probe) -> Tokens:
        total = t.x.shape[1]
        n = total - len(t.special)
        count = staying(self.keep, n - removable(self.r, total, t.special))
        if count == n:
            return t
        patches = drawn(t, count) if self.training else self.chosen(n, count, t.x.device).expand(len(t.x), -1)
        t = replace(t, lost=unmerge(t)) if self.aligned else t
        return leave(t, patches.sort(1).values, self.aligned)

    def chosen(self, n: int, count: int, device: torch.device) -> Tensor:
        """(K): `count` of n places: those with the least a + b i + c i² + d i³ modulo a prime, a polynomial
        whose values at any four places are independent where its factors are random."""
        i = torch.arange(n, device=device)
        a, b, c, d = self.factors
        value = (d * i + c) % PRIME
        value = (value * i + b) % PRIME
        value = (value * i + a) % PRIME
        return value.argsort()[:count]

    def extra_repr(self) -> str:
        return f"r={self.r}, keep={self.keep}, seed={self.seed!r}"
