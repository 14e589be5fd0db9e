"""The side network of hierarchical side-tuning: four stages of narrow blocks beside a frozen trunk, which they read.

Shapes: B images, N = H W places of a side stage, C channels of the trunk, m of a side stage, n meta tokens.
"""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...kernels.attend import attend
from ..backbone import Backbone, StageBlocks
from ..conv import ConvNorm
from ..layers import Linear, Mlp
from ..norm import Norm
from ..position import same
from ..stem import Convolution, Stem, Strided
from ..tokens import Tokens, beside

QUARTERS = 2  # by how many the map's means stand where no meta tokens are, on each side


@dataclass(frozen=True)
class Level:
    """A stage of the side network: its width, its heads, and the trunk's block that each of its blocks reads."""

    dim: int
    heads: int
    reads: tuple[int, ...]


class ShallowTokens(nn.Module):
    """image (B 3 H W) -> Tokens at a quarter of its size: convolution 3x3 by 2, batch norm, ReLU, convolution 2x2 by 2,
    norm."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.enter = ConvNorm(channels, dim, 3, 2, act="relu")
        self.halve = Convolution(nn.Conv2d(dim, dim, 2, 2), None, nn.LayerNorm(dim))

    def forward(self, image: Tensor) -> Tokens:
        m = self.halve(self.enter(image.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)))
        return Tokens(m.flatten(1, 2), (m.shape[1], m.shape[2]))


@dataclass(frozen=True)
class Shallow(Stem):
    """The stem of a side network."""

    @property
    def stride(self) -> int:
        return 4

    def build(self, channels: int, dim: int) -> nn.Module:
        return ShallowTokens(channels, dim)


class Looking(nn.Module):
    """softmax(q k' / sqrt(d)) v of tokens (B N m) to a few others (B K m)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        parts = ((self.q, x), (self.k, seen), (self.v, seen))
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, y in parts)  # B h · d
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SideBlock(nn.Module):
    """x += attention(norm1(x), [norm(g), mean(v)]); x += v; x += ffn(norm2(x)), where g (B n m) are meta tokens and
    v (B N m) the map of the trunk's block that it reads."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.meta_norm, self.norm1, self.norm2 = (nn.LayerNorm(dim) for _ in range(3))
        self.mixer, self.ffn = Looking(dim, heads), Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, g: Tensor, v: Tensor) -> Tensor:
        seen = torch.cat([self.meta_norm(g), v.mean(1, keepdim=True)], 1)
        x = x + self.mixer(self.norm1(x), seen) + v
        return x + self.ffn(self.norm2(x))  # type: ignore[no-any-return]


class SideStage(nn.Module):
    """The step down to a stage, its blocks and its norm; `bridges` bring the trunk's channels to its own, one for each
    stage of the trunk that it reads from."""

    def __init__(self, down: nn.Module, level: Level, bridges: dict[str, int]):
        super().__init__()
        self.down, self.norm = down, nn.LayerNorm(level.dim)
        self.bridges = nn.ModuleDict({name: Linear(dim, level.dim) for name, dim in bridges.items()})
        self.blocks = nn.ModuleList(SideBlock(level.dim, level.heads) for _ in level.reads)

    def bridged(self, t: Tokens, stage: int, meta: slice | None, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """g (B n m) and v (B N m) out of the trunk's tokens. The bridge comes before the map is resized, which is the
        same, as weights of a bilinear mean add up to 1, and fewer rows."""
        bridge, m = self.bridges[str(stage)], t.whole()
        g = F.adaptive_avg_pool2d(m.permute(0, 3, 1, 2), QUARTERS).flatten(2).mT if meta is None else t.x[:, meta]
        v = bridge(m)
        if not same((m.shape[1], m.shape[2]), grid):
            v = F.interpolate(v.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        return bridge(g), v.flatten(1, 2)


class SideNetwork(nn.Module):
    """image (B 3 H W) -> one `Tokens` a side stage, with what else a `Backbone` has: it stands in place of the trunk
    that it reads.

    Before each block of the trunk its own `meta` tokens stand before the class token (in front where there is none),
    in place of the block's before; with none, the means over the quarters of the map say what they would. `fixed`: they
    do not learn, and no gradient enters the trunk.
    """

    prompts = (0, 0)

    def __init__(self, trunk: Backbone, levels: Sequence[Level], meta: int, fixed: bool):
        super().__init__()
        self.trunk, self.specs, self.fixed, self.meta = trunk, tuple(levels), fixed, meta
        self.in_chans, self.drop_path, self.stem_spec = trunk.in_chans, 0.0, Shallow()
        self.channels, self.strides = [s.dim for s in levels], [4 * 2**j for j in range(len(levels))]
        self.specials: list[tuple[int, ...]] = [() for _ in levels]
        self.special: tuple[int, ...] = ()
        run, dim = 1 + max(s.reads[-1] for s in levels), trunk.channels[0]
        tokens = [nn.init.xavier_uniform_(torch.empty(1, meta, dim)) for _ in range(run if meta else 0)]
        self.tokens = nn.ParameterList(nn.Parameter(t, requires_grad=not fixed) for t in tokens)
        self.shallow = self.stem_spec.build(trunk.in_chans, levels[0].dim)
        self.levels = nn.ModuleList()  # named as nothing of the trunk is, whose names files have too
        for j, level in enumerate(levels):
            step: nn.Module = nn.Identity()
            if j > 0:
                step = Strided(after=Norm()).build(levels[j - 1].dim, level.dim)
            read = {stage_of(trunk, place)[0] for place in level.reads}
            self.levels.append(SideStage(step, level, {str(i): trunk.channels[i] for i in sorted(read)}))

    @property
    def grad_checkpointing(self) -> bool:
        return self.trunk.grad_checkpointing

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self.trunk.grad_checkpointing = enable

    @property
    def taps(self) -> list[tuple[int, int]]:
        """(stage, block) after which features may be taken: the end of each stage."""
        return [(j, len(s.reads) - 1) for j, s in enumerate(self.specs)]

    def module_at(self, stage: int, block: int) -> str:
        """As `Backbone.module_at`."""
        return f"levels.{stage}.blocks.{block}"

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """As `Backbone.grids`."""
        h, w = ((s + 1) // 2 // 2 for s in size)
        found = [(h, w)]
        for _ in self.specs[1:]:
            h, w = (h + 1) // 2, (w + 1) // 2
            found.append((h, w))
        return found

    def forward(self, image: Tensor) -> list[Tokens]:
        return self.walk(image, self.taps)[1]

    def last(self, image: Tensor) -> Tokens:
        """The tokens of the last stage."""
        return self.walk(image, ())[0]

    def walk(
        self, image: Tensor, wanted: Collection[tuple[int, int]], stop: bool = False
    ) -> tuple[Tokens, list[Tokens]]:
        """As `Backbone.walk`."""
        self.trunk.check(image)
        side, taken = cast(Tokens, self.shallow(image)), []
        at, flow = -1, self.begun(image)
        for j, stage in enumerate(self.levels):
            assert isinstance(stage, SideStage)
            side = stage.down(side)
            assert side.grid is not None
            x = side.x
            for block, place in zip(stage.blocks, self.specs[j].reads, strict=True):
                while at < place:
                    at += 1
                    flow = self.advanced(flow, at)
                x = self.step(block, x, *stage.bridged(flow, stage_of(self.trunk, at)[0], self.where(flow), side.grid))
            side = replace(side, x=stage.norm(x))
            if (j, len(stage.blocks) - 1) in wanted:
                taken.append(side)
                if stop and len(taken) == len(wanted):
                    break
        return side, taken

    def begun(self, image: Tensor) -> Tokens:
        """What enters the trunk's first block; meta tokens hold their places there."""
        with torch.no_grad():  # nothing in it learns
            t = cast(Tokens, self.trunk.stem(image))
            if not self.meta:
                return t
            p = min(t.special, default=0)
            room = t.x.new_zeros(t.x.shape[0], self.meta, t.x.shape[2])
            x = torch.cat([t.x[:, :p], room, t.x[:, p:]], 1)
            return replace(t, x=x, special=beside(t.special, p, self.meta))

    def advanced(self, t: Tokens, place: int) -> Tokens:
        """The tokens behind the trunk's block `place`, given those before it."""
        i, j = stage_of(self.trunk, place)
        stage = self.trunk.stages[i]
        assert isinstance(stage, StageBlocks)
        with torch.no_grad() if self.fixed else nullcontext():
            if j == 0:
                t = stage.down(t.restored())
            if (meta := self.where(t)) is not None:
                own = self.tokens[place].expand(t.x.shape[0], -1, -1).to(t.x.dtype)
                t = replace(t, x=torch.cat([t.x[:, : meta.start], own, t.x[:, meta.stop :]], 1))
            t = self.trunk.step(stage.blocks[j], t)
            if j == len(stage.blocks) - 1 and not isinstance(stage.norm, nn.Identity):
                t = t.through(stage.norm)
        return t

    def where(self, t: Tokens) -> slice | None:
        """Of the meta tokens, which stand side by side."""
        if not self.meta:
            return None
        first = t.special[-self.meta]
        return slice(first, first + self.meta)

    def step(self, block: nn.Module, x: Tensor, g: Tensor, v: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, x, g, v, use_reentrant=False))
        return cast(Tensor, block(x, g, v))


def stage_of(trunk: Backbone, place: int) -> tuple[int, int]:
    """(stage, block in it) of the trunk's block `place`."""
    for i, spec in enumerate(trunk.specs):
        if place < spec.depth:
            return i, place
        place -= spec.depth
    raise AssertionError(f"the trunk ends {place + 1} blocks before")
