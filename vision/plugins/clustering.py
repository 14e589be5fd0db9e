"""Token clustering and reconstruction (Expedit), https://arxiv.org/abs/2210.01035: after some blocks the map becomes a
smaller one of centroids, the blocks that follow compute on that, and at the end each place is a sum of centroids again.

No parameters, no training. For models with global attention (one map, special tokens set aside and put back) and with
windows (each window is clustered by itself, the windows are joined to a smaller map, padding stays in it). The full map
comes back where the stage ends, or where somebody asks for it (`t.whole()`): behind a final norm, as in the Segmenter,
since the reconstruction does not commute with a norm. The arithmetic is in kernels/clustering.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.clustering import cluster, spread
from ...kernels.windows import unwindow, windows
from ..tokens import Tokens, in_front
from . import Host, Placed, SeamError, reducible

Grid = tuple[int, int]


@dataclass(frozen=True)
class Clustering:
    """The first `at` blocks of a stage see the full map (half of them, unless given); then it is clustered to `scale`
    times each of its sides, or to `grid` (28, or 28+20 for rows and columns); where blocks attend in windows, each
    window is.

    `stage` counts from 0; None: the one with the most blocks of those that can take it. `neighbourhood` (lambda) x
    `neighbourhood` centroids around a place take part of it in each of `n_iters` rounds; its k nearest make it up again
    (-1: all), with weights exp(-temperature distance²). scale=1, and a map no larger than `grid`, change nothing.
    """

    at: int | None = None
    scale: float | None = None  # 0.7 where there is no grid either
    grid: tuple[int, int] | int | None = None
    stage: int | None = None
    n_iters: int = 5
    neighbourhood: int = 5
    temperature: float = 0.02
    k: int = 20

    def __post_init__(self) -> None:
        if self.scale is not None and self.grid is not None:
            raise ValueError(f"scale={self.scale} and grid={self.grid} say the same twice: give one of them")
        if self.scale is not None and not 0 < self.scale <= 1:
            raise ValueError(f"scale={self.scale}: a share of each side, above 0 and at most 1")
        for name, value, least in (("at", self.at, 0), ("stage", self.stage, 0), ("n_iters", self.n_iters, 1),
                                   ("grid", self.pair and min(self.pair), 1)):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f"{name}={getattr(self, name)}: {least} or more")
        if self.neighbourhood < 1 or self.neighbourhood % 2 == 0:
            raise ValueError(f"neighbourhood={self.neighbourhood}: an odd number of cells, 1 or more")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature}: above 0")
        if self.k == 0:
            raise ValueError("k=0: how many centroids make up a place, 1 or more, or -1 for all")

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        rest = self.blocks(hosts)
        inside = [h for h in hosts if h.stage == rest[0].stage]
        windowed = [h for h in inside if getattr(h.mixer, "rescales", False) and h.mixer.size is not None]
        if not windowed:
            return [Placed(rest[0], "before_block", ClusterLayer(self))]
        first = windowed[0].mixer
        for host in windowed:
            if host.mixer.size != first.size:
                raise host.refuse(f"has windows of {host.mixer.size}, those before it of {first.size}: no common grid")
        if self.pair is not None and self.pair[0] != self.pair[1]:
            raise windowed[0].refuse(f"has square windows, which are not clustered to {self.grid}")
        return [Placed(rest[0], "before_block", ClusterLayer(self, first.size, first.dense))]

    def blocks(self, hosts: Sequence[Host]) -> list[Host]:
        """Those that are to compute on the smaller map."""
        stages: dict[int, list[Host]] = {}
        for h in hosts:
            if self.stage in (None, h.stage) and h.index >= (h.depth // 2 if self.at is None else self.at):
                stages.setdefault(h.stage, []).append(h)
        refusal: SeamError | None = None
        for rest in sorted(stages.values(), key=lambda s: -s[0].depth):
            try:
                return [coarse(h) for h in rest]
            except SeamError as error:
                refusal = refusal or error
        if refusal is None:
            depths = {h.stage: h.depth for h in hosts}
            raise ValueError(f"at={self.at}, stage={self.stage}: no block is left to see the smaller map; the stages "
                             f"have {', '.join(f'{s}: {n}' for s, n in depths.items())} blocks")  # fmt: skip
        raise refusal

    @property
    def pair(self) -> Grid | None:
        """`grid` as rows and columns."""
        return (self.grid, self.grid) if isinstance(self.grid, int) else self.grid

    def sides(self, full: Grid) -> Grid:
        """How many centroids along each side of a map."""
        if self.pair is not None:
            return min(self.pair[0], full[0]), min(self.pair[1], full[1])
        scale = 0.7 if self.scale is None else self.scale
        return max(1, round(scale * full[0])), max(1, round(scale * full[1]))


def coarse(host: Host) -> Host:
    """The host, if it can compute on a coarser map; else raises SeamError."""
    if getattr(host.mixer, "rescales", False) and not getattr(getattr(host.block, "ffn", None), "needs_grid", False):
        return host
    return reducible(host)


class ClusterLayer(nn.Module):
    """Tokens -> their centroids on a smaller grid, special tokens among them as before. `window` is the side of the
    blocks' windows (None: they see the whole map), `fixed` whether it stays that where the map is smaller."""

    def __init__(self, plan: Clustering, window: int | None = None, fixed: bool = False):
        super().__init__()
        self.plan, self.window, self.fixed = plan, window, fixed

    def forward(self, t: Tokens) -> Tokens:
        if t.turn:  # the block runs again
            return t
        if t.grid is None or t.source is not None or t.size is not None or t.policy is not None:
            raise ValueError("clustering takes a full map of tokens that count the same, and another plugin came "
                             "before it: detach that one")  # fmt: skip
        if self.window is None:
            small = self.plan.sides(t.grid)
            return t if small == t.grid else self.whole(t, small)
        side = self.window if self.fixed else min(self.window, *t.grid)
        s, _ = self.plan.sides((side, side))
        return t if s == side else self.windowed(t, side, s)

    def clustered(self, m: Tensor, small: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """Of maps m (B H W C): centroids (B M C), labels (B N), and the weights of the reconstruction (B N M)."""
        p = self.plan
        c = cluster(m, small, p.n_iters, p.neighbourhood, p.temperature)
        return c, *spread(m.flatten(1, 2), c, p.temperature, p.k)

    def whole(self, t: Tokens, small: Grid) -> Tokens:
        x, labels, weight = self.clustered(t.map(), small)
        special = t.special
        if special:
            first, k = min(special), len(special)
            if max(special) - first != k - 1:
                raise ValueError(f"special tokens at {special}: they stand apart, and the patches are no map")
            at = round(first * x.shape[1] / max(1, t.x.shape[1] - k))  # in front, in the middle or last, as before
            x = torch.cat([x[:, :at], t.x[:, first : first + k], x[:, at:]], 1)
            weight = torch.cat([weight[..., :at], weight.new_zeros(*weight.shape[:2], k), weight[..., at:]], -1)
            labels = labels + k * (labels >= at)
            special = tuple(at + i - first for i in special)
        return replace(t, x=x, grid=small, special=special, source=labels, spread=weight, full=t.grid)

    def windowed(self, t: Tokens, side: int, s: int) -> Tokens:
        """Windows of side x side places become ones of s x s."""
        assert t.grid is not None
        h, w = t.grid
        m = F.pad(t.map(), (0, 0, 0, -w % side, 0, -h % side))
        down, across = m.shape[1] // side, m.shape[2] // side
        x, labels, weight = self.clustered(windows(m, side).unflatten(1, (side, side)), (s, s))  # type: ignore[no-untyped-call]
        y = unwindow(x, down * s, across * s, s)
        place = torch.arange(down * s * across * s, device=x.device).view(1, down * s, across * s, 1)
        own = windows(place, s)[..., 0].repeat(len(m), 1).gather(1, labels)  # B*n side*side: each place's token in y
        source = unwindow(own[..., None], down * side, across * side, side)[:, :h, :w].flatten(1)
        x = torch.cat([in_front(t), y.flatten(1, 2)], 1)
        return replace(t, x=x, grid=(down * s, across * s), source=source + len(t.special), spread=weight, full=t.grid,
                       window=s)  # fmt: skip

    def extra_repr(self) -> str:
        return f"{self.plan}, window={self.window}"
