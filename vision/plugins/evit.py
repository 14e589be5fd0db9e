"""Token reorganisation (EViT), https://arxiv.org/abs/2202.07800: those patches stay that the class token attends to.

Behind the mixer of some blocks, with a = mean over heads of the class token's row of softmax(q k' / sqrt(d)): of n
patches the ceil(keep n) with the largest a stay, most attended first. Behind them stands the sum of a_j x_j over the
others (not divided by the sum of a_j), from then on a patch like any; or the others are dropped. While training the
published share falls from 1 to `keep` (train/callbacks/keep_rate.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..tokens import Probe, Tokens, moved, rows, select
from . import Host, Placed, note, reducible
from .pruning import blocks_at, check_at, check_behind, check_keep, staying


@dataclass(frozen=True)
class Evit:
    """Keeps the share `keep` at each of the blocks `at` of the last stage (None: at a quarter, half and three quarters
    of it, the published 3, 6 and 9 of 12); `fuse`: the others become one token, which stands for their patches."""

    keep: float = 0.7
    fuse: bool = True
    at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_keep(self.keep)
        check_at(self.at)

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        at = blocks_at(hosts, self.at)
        check_behind(hosts, at)
        for host in at:
            if not reducible(host, "queries", "keys").special:
                raise host.refuse("has no class token among its tokens, by whose attention EViT goes")
        return [Placed(host, "after_mixer", EvitLayer(self.keep, self.fuse)) for host in at]


class EvitLayer(nn.Module):
    """(Tokens, probe with queries and keys (B h N d)) -> special tokens, those that stay, and the fused one. Shows the
    positions of the former two among the tokens that came as "kept"."""

    def __init__(self, keep: float, fuse: bool):
        super().__init__()
        self.final = self.keep = keep  # the share that counts now is on its way to the final one while training
        self.fuse = fuse

    def forward(self, t: Tokens, probe: Probe) -> Tokens:
        k = len(t.special)
        n = t.x.shape[1] - k
        count = staying(self.keep, n)
        if count == n:
            return t
        a = class_attention(t, probe)
        rank = a.detach().clone()
        for i, place in enumerate(t.special):
            rank[:, place] = 1 + k - i  # above all patches, in their order
        kept = rank.topk(k + count).indices
        note("kept", kept)
        return fused(t, kept, tuple(range(k)), a) if self.fuse else select(t, kept, tuple(range(k)))

    def extra_repr(self) -> str:
        return f"keep={self.keep}, fuse={self.fuse}"


def class_attention(t: Tokens, probe: Probe) -> Tensor:
    """B N: how much the first special token attends to each token, mean over the heads. One row, not N of them."""
    first, keys = t.special[0], probe["keys"]
    query = probe["queries"][:, :, first : first + 1] * keys.shape[-1] ** -0.5
    score = (keys * query).sum(-1)  # B h N; no copy of the keys, as a product of matrices would make
    if t.size is not None:
        score = score + t.size.log().mT
    return score.softmax(-1).mean(1)  # type: ignore[no-any-return]


def fused(t: Tokens, kept: Tensor, special: tuple[int, ...], weight: Tensor) -> Tokens:
    """The tokens `kept` (B K), and behind them the sum of the others by `weight` (B N)."""
    (b, n), k = t.x.shape[:2], kept.shape[1]
    to = torch.full((b, n), k, device=kept.device)
    to = to.scatter(1, kept, torch.arange(k, device=kept.device).expand(b, -1))

    def with_sum(y: Tensor, w: Tensor) -> Tensor:  # B N C -> B K+1 C
        rest = w.scatter(1, kept, 0)[:, None] @ y
        return torch.cat([rows(y, kept), rest], 1)

    size = None if t.size is None else with_sum(t.size, torch.ones_like(t.size[..., 0]))
    return moved(t, to, with_sum(t.x, weight.to(t.x.dtype)), special, size)
