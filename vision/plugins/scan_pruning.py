"""Token pruning for state space models (ToP), https://arxiv.org/abs/2409.18962: the tokens of which the scan says least
are dropped, and the state still decays over the places where they stood.

Importance of a token behind a block: sum over channels of max(0, y), y what the block's scan gave (both directions',
or all walks', before the gate). The lowest go, for the rest of the network; special tokens never do. A pruned place
counts as a step without input, of the size softplus(dt bias) that a zero token would get (the paper leaves open which
size it is). Only what remains is computed, in the order of `Tokens.place`:

    h = exp((d + g c) A) h + d B u      g pruned places between this token and the one before it, c = softplus(dt bias)

What is not a scan: Vim's short convolution runs over the tokens that remain, side by side; those of PlainMamba and
VMamba run on the map, with zeros where patches are gone. A stage that is followed by another (VMamba) has its full map
again at its end; a dropped patch then holds what it held when it was dropped, and so it does in maps for dense heads.

Vim's class token is put into the exact middle of what remains, as in the release, so that it stands at the same place
in every image; for the scan the rows are rearranged to the order in which they stood before, with it between the same
patches as ever. The release itself does not align (`align=False`), and scores a token by `score="release"`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor, nn

from ..tokens import Probe, Tokens, unmerge
from . import Host, Placed
from .pruning import behind, leave, scanning

NEEDS = {"clip": ("scan",), "release": ("scan", "back", "gate")}  # score -> what the mixer must show
WIDE = 256  # channels from which on a model is cut at three places, as Vim-S is, and not at two, as Vim-T is


@dataclass(frozen=True)
class ScanPruning:
    """Keeps the share `keep` of the patches behind each cut: ceil(n keep) of n, made even beside special tokens.

    `at`: after how many blocks of the model; None: in the deepest stage after 5, 10 and 15 of 24 blocks (Vim-S), in
    models of less than 256 channels after 10 and 20 (Vim-T), in proportion where there are more or fewer. `align=False`
    closes the gaps. score: "clip", the paper's; "release", that of its code: the gated output of the backward direction
    summed without a clip, and read backwards, so that each token is judged by the one opposite.
    """

    keep: float | tuple[float, ...] = 0.7
    at: int | tuple[int, ...] | None = None
    align: bool = True
    score: str = "clip"

    def __post_init__(self) -> None:
        keeps = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        if not keeps or not all(0 < k <= 1 for k in keeps):
            raise ValueError(f"keep={self.keep!r}: the share of patches to keep at a cut, above 0 and up to 1")
        at = (self.at,) if isinstance(self.at, int) else self.at
        if at is not None and (not at or at[0] < 1 or list(at) != sorted(set(at))):
            raise ValueError(f"at={self.at!r}: after how many blocks to prune, from 1 on and rising")
        if self.score not in NEEDS:
            raise ValueError(f"score={self.score!r}: it is {' or '.join(NEEDS)}")

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        cuts = self.cuts(hosts)
        for host in behind(hosts, [h for h, _ in cuts]):
            scanning(host)
        return [
            Placed(scanning(h, NEEDS[self.score]), "after_mixer", PruneByScan(k, self.align, self.score))
            for h, k in cuts
            if k < 1
        ]

    def cuts(self, hosts: Sequence[Host]) -> list[tuple[Host, float]]:
        """The blocks behind which patches are dropped, and the share that each keeps."""
        at = (self.at,) if isinstance(self.at, int) else self.at or usual(hosts)
        keeps = self.keep if isinstance(self.keep, tuple) else (self.keep,) * len(at)
        if at[-1] > len(hosts):
            raise ValueError(f"at={self.at!r}: this model has {len(hosts)} blocks")
        if len(keeps) != len(at):
            raise ValueError(f"keep={self.keep!r}: one for each of {len(at)} cuts, after {at} blocks")
        return [(hosts[a - 1], k) for a, k in zip(at, keeps, strict=True)]


def usual(hosts: Sequence[Host]) -> tuple[int, ...]:
    """After how many blocks a model is cut where nobody says."""
    first = max(hosts, key=lambda h: h.depth)  # of the deepest stage
    parts = (10, 20) if first.dim < WIDE else (5, 10, 15)
    return tuple(first.place + n for n in sorted({max(1, first.depth * p // 24) for p in parts}))


class PruneByScan(nn.Module):
    """(Tokens, probe with scan (B N E)) -> the Tokens that are kept, in their order, and the special ones before them,
    in their exact middle or behind them, as they were."""

    def __init__(self, keep: float, align: bool, score: str):
        super().__init__()
        self.keep, self.align, self.score = keep, align, score

    def forward(self, t: Tokens, probe: Probe) -> Tokens:
        n, s = t.x.shape[1], len(t.special)
        k = left(n - s, self.keep, bool(s))
        if k == n - s:
            return t
        score = released(probe) if self.score == "release" else clipped(probe)
        of_patches = replace(t, x=score[..., None]).patches()[..., 0]
        kept = of_patches.topk(k, 1, sorted=False).indices.sort(1).values
        return leave(replace(t, lost=unmerge(t)), kept, self.align)

    def extra_repr(self) -> str:
        return f"keep={self.keep}, align={self.align}, score={self.score}"


def left(patches: int, keep: float, even: bool) -> int:
    """How many of the patches stay."""
    k = ceil(patches * keep)
    return min(patches, max(2, k - k % 2)) if even else k


def clipped(probe: Probe) -> Tensor:
    """B N"""
    return probe["scan"].detach().relu().sum(-1, dtype=torch.float32)


def released(probe: Probe) -> Tensor:
    """B N"""
    back, gate = probe["back"].detach(), probe["gate"].detach()
    return (back * nn.functional.silu(gate)).sum(-1, dtype=torch.float32).flip(1)
