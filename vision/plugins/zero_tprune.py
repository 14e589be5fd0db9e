"""Zero-TPrune, https://arxiv.org/abs/2305.17328: tokens are pruned by the graph of attention, without training.

The graph of a block is A = softmax(q k' / (tau sqrt(d))), one for each head. Behind such a block come three stages:

I'  importance by a single vote, only to rank for S.
S   the less important half of the patches is set A, the other set B; by the cosine of their keys (mean over heads) each
    of A has its nearest of B, and those of A that are nearest to theirs go.
I   weighted page rank s <- s A among the tokens that are left, in each head; importance = sqrt(mean_h s_h²) over the
    heads that the variance filter leaves; the least important go.

The filter leaves out heads whose variance over n patches is outside [v_min, v_max]. The paper does not say on which
scale: here it is that of n s / sum(s), with mean 1 (0 for a head that sees all alike, n - 1 for one that sees a single
patch), since no distribution over so many patches has a variance near the paper's 0.01. Where every head is outside,
all count. `ZeroTPrune.early` is the form in which the first author published it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.linear import eager_float32
from ..tokens import Probe, Tokens, select
from . import Host, Placed, note, reducible
from .pruning import beside_special, blocks_at, check_at, check_behind, check_keep, lead

T = TypeVar("T")
DEPTHS = (30, 5, 1)  # steps of page rank in shallow, middle and deep blocks


@dataclass(frozen=True)
class ZeroTPrune:
    """Behind each of the blocks `at` of the last stage (None: where its first three quarters end, 2, 5 and 8 of 12)
    int(keep n) of n patches stay, in their order. The defaults take 34.9 % of DeiT-S's MACs away, those of the graphs
    counted in."""

    keep: float | tuple[float, ...] = 0.72
    at: tuple[int, ...] | None = None
    similar: float = 0.5  # which part of the pruning is S's
    steps: int | tuple[int, ...] | None = None  # of page rank; None: 30, 5 or 1 by the third of the depth
    heavy: bool = True  # the class token begins sqrt(N) times as heavy as others; else all begin alike
    tau: float = 1.0
    v_min: float = 0.01
    v_max: float = 0.7

    def __post_init__(self) -> None:
        for keep in listed(self.keep):
            check_keep(keep)
        check_at(self.at)
        if self.steps is not None and any(s < 1 for s in listed(self.steps)):
            raise ValueError(f"steps={self.steps!r}: at least one step of page rank; None for the usual ones")
        if not 0 <= self.similar <= 1:
            raise ValueError(f"similar={self.similar!r}: a share of the pruning, from 0 to 1")
        if not self.tau > 0:
            raise ValueError(f"tau={self.tau!r}: a temperature above 0")
        if not 0 <= self.v_min <= self.v_max:
            raise ValueError(f"v_min={self.v_min!r}, v_max={self.v_max!r}: 0 <= v_min <= v_max (0 and inf: no filter)")

    @classmethod
    def early(cls, at: tuple[int, ...], keep: float | tuple[float, ...], steps: int = 5) -> "ZeroTPrune":
        """The early code: importance only, of sharper graphs, from an even start and over all heads."""
        return cls(keep, at, 0.0, steps, heavy=False, tau=0.5, v_min=0.0, v_max=torch.inf)

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        depth = hosts[-1].depth
        at = blocks_at(hosts, self.at or sorted({max(0, depth * i // 4 - 1) for i in (1, 2, 3)}))
        check_behind(hosts, at)
        usual = tuple(DEPTHS[3 * h.place // len(hosts)] for h in at)
        keep, steps = each("keep", self.keep, at), each("steps", self.steps or usual, at)
        layers = []
        for host, share, count in zip(at, keep, steps, strict=True):
            ranking = RankLayer(self, share, count)
            layers.append(Placed(reducible(host, "queries", "keys"), "after_mixer", ranking))
            layers.append(Placed(host, "after_block", LeaveLayer()))
        return layers


def listed(value: T | tuple[T, ...]) -> tuple[T, ...]:
    return value if isinstance(value, tuple) else (value,)


def each(name: str, value: T | tuple[T, ...], at: Sequence[Host]) -> tuple[T, ...]:
    """A value for each of the blocks."""
    values = value if isinstance(value, tuple) else (value,) * len(at)
    if len(values) != len(at):
        raise ValueError(f"{name}={value}: one for each of the {len(at)} blocks that prune, or a single one for all")
    return values


class RankLayer(nn.Module):
    """(Tokens, probe with queries and keys (B h N d)) -> Tokens whose `keep` are those that stay behind the block."""

    def __init__(self, spec: ZeroTPrune, keep: float, steps: int):
        super().__init__()
        self.spec, self.keep, self.steps = spec, keep, steps

    def forward(self, t: Tokens, probe: Probe) -> Tokens:
        patches = t.x.shape[1] - len(t.special)
        stay = max(1, int(patches * self.keep))
        if stay == patches:
            return t
        q, k = probe["queries"], probe["keys"]
        with torch.no_grad(), torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):
            kept, _ = beside_special(t, self.choose(q.float(), k.float(), t.special, stay))
        note("kept", kept)
        return replace(t, keep=kept)

    def choose(self, q: Tensor, k: Tensor, special: tuple[int, ...], stay: int) -> Tensor:
        """(B stay): the patches that stay, counted among patches, in their order."""
        (b, h, n), spec = q.shape[:3], self.spec
        patches = torch.tensor([i for i in range(n) if i not in special], device=q.device)
        graph = attention_graph(q, k, spec.tau)  # B*h N N
        start = graph.new_ones(b * h, 1, n)
        if spec.heavy and special:
            start[..., special[0]] = n**0.5
        start /= start.sum(-1, keepdim=True)
        alike = min(int((len(patches) - stay) * spec.similar), len(patches) // 2)  # as many go in S
        present = graph.new_ones(b, n)
        if alike:
            rough = self.importance(page_rank(graph, start, 1), patches, b)
            gone = duplicates(k.mean(1)[:, patches], rough, alike)
            present = present.scatter(1, patches[gone], 0)
            of_heads = present.repeat_interleave(h, 0)[:, None]
            rank = page_rank(graph, start * of_heads, self.steps, of_heads)
        else:
            rank = page_rank(graph, start, self.steps)
        importance = self.importance(rank, patches, b, alike)
        note("importance", importance)
        return importance.masked_fill(present[:, patches] == 0, -1).topk(stay).indices.sort(-1).values

    def importance(self, rank: Tensor, patches: Tensor, images: int, absent: int = 0) -> Tensor:
        """rank (B*h 1 N) -> (B n): of the patches, `absent` of which have 0, over all heads."""
        of_heads = rank.view(images, -1, rank.shape[-1])[..., patches]  # B h n
        return combined(of_heads, len(patches) - absent, self.spec.v_min, self.spec.v_max)

    def extra_repr(self) -> str:
        return f"keep={self.keep}, steps={self.steps}"


class LeaveLayer(nn.Module):
    """Only the tokens that `keep` names stay."""

    def forward(self, t: Tokens) -> Tokens:
        if t.keep is None:
            return t
        k = len(t.special)
        first = lead(t, t.keep.shape[1] - k)
        return replace(select(t, t.keep, tuple(range(first, first + k))), keep=None)


def attention_graph(q: Tensor, k: Tensor, tau: float = 1.0) -> Tensor:
    """softmax(q k' / (tau sqrt(d))): q, k (B h N d) -> (B*h N N)."""
    q, k = q.flatten(0, 1), k.flatten(0, 1)
    score = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5 / tau)
    return torch.softmax(score, -1, out=score) if eager_float32(score) else score.softmax(-1)


def page_rank(graph: Tensor, s: Tensor, steps: int, present: Tensor | None = None) -> Tensor:
    """s A^steps: graph (G N N), s (G 1 N) -> (G 1 N). `present` (G 1 N), 1 or 0: in the graph of these tokens alone,
    whose rows are made to sum to 1 again."""
    if present is None:
        for _ in range(steps):
            s = torch.bmm(s, graph)
        return s
    total = torch.bmm(graph, present.mT).mT.clamp(min=1e-30)  # what is left of each row
    for _ in range(steps):
        s = torch.bmm(s / total, graph) * present
    return s


def combined(rank: Tensor, count: int, v_min: float, v_max: float) -> Tensor:
    """sqrt(mean_h rank_h²) over the heads with v_min <= var(count rank / sum(rank)) <= v_max, or all where none has:
    (B h n) -> (B n). All but `count` tokens have rank 0 and are none of the distribution."""
    square = rank.square()
    variance = (square.sum(-1) * count / rank.sum(-1).square() - 1).clamp(min=0)  # B h
    inside = (variance >= v_min) & (variance <= v_max)
    weight = (inside | ~inside.any(1, keepdim=True)).to(rank.dtype)
    return torch.bmm(weight[:, None], square)[:, 0].div(weight.sum(1, keepdim=True)).sqrt()


def duplicates(keys: Tensor, rough: Tensor, count: int) -> Tensor:
    """(B count): of the half with the lower `rough` (B n), those whose keys (B n d) have the nearest of the others."""
    order = rough.argsort(-1, descending=True)
    keys = F.normalize(keys, dim=-1).gather(1, order[..., None].expand_as(keys))
    half = order.shape[1] - order.shape[1] // 2  # of an odd number the more important ones have one more
    nearest = torch.bmm(keys[:, half:], keys[:, :half].mT).amax(-1)
    return order[:, half:].gather(1, nearest.topk(count).indices)
