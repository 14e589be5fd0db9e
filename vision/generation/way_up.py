"""From the coarsest tokens of a pyramid back to the finest, with what the way down had at each resolution.

Shapes: B samples, H W a grid of tokens, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.sizes import always
from ..backbone import Backbone, Stage, StageBlocks, Staged
from ..layers import Linear
from ..stem import Down
from ..tokens import Tokens


class Rise(nn.Module):
    """Coarse tokens on the grid of finer ones: join([up(x), skip]), where up is a linear layer to r x r places of half
    as many channels each, cut off where the finer grid is not a multiple of r, and join another linear layer."""

    projections = ("up", "join")

    def __init__(self, dim: int, out: int, factor: int):
        super().__init__()
        self.factor = factor
        self.up, self.join = Linear(dim, factor * factor * out), Linear(2 * out, out)

    def forward(self, t: Tokens, skip: Tokens) -> Tokens:
        assert skip.grid is not None
        (h, w), r = skip.grid, self.factor
        m: Tensor = self.up(t.whole()).permute(0, 3, 1, 2)
        m = F.pixel_shuffle(m, r).permute(0, 2, 3, 1)
        if not (always(m.shape[1] == h) and always(m.shape[2] == w)):
            m = m[:, :h, :w]
        return replace(skip, x=self.join(torch.cat([m.flatten(1, 2), skip.patches()], -1)))


class Stay(nn.Module):
    """Tokens of another width at the same places."""

    projections = ("linear",)

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.linear = Linear(dim, out)

    def forward(self, t: Tokens) -> Tokens:
        return replace(t, x=self.linear(t.x))


@dataclass(frozen=True)
class Same(Down):
    """No step between two stages, but to another width where they have one."""

    @property
    def stride(self) -> int:
        return 1

    def build(self, dim: int, out: int) -> nn.Module:
        return nn.Identity() if dim == out else Stay(dim, out)


class WayUp(Staged):
    """The stages of a backbone but its last, once more and the other way round; each takes what the same stage gave on
    the way down as well."""

    def __init__(self, stages: Sequence[Stage], strides: Sequence[int]):
        super().__init__()
        self.specs, self.first = tuple(stages[-2::-1]), len(stages)
        self.rises, self.stages = nn.ModuleList(), nn.ModuleList()
        for below, s, (fine, coarse) in zip(stages[:0:-1], self.specs, pairs(strides), strict=True):
            self.rises.append(Rise(below.dim, s.dim, coarse // fine))
            blocks = [
                s.block.build(s.dim, j, s.mixer.build(s.dim, j), ratio, s.scale, 0.0)
                for j, ratio in enumerate(s.ratios())
            ]
            norm = None if s.norm is None else s.norm.build(s.dim)
            self.stages.append(StageBlocks(nn.Identity(), blocks, norm))
        self.channels, self.specials = [s.dim for s in self.specs], [() for _ in self.specs]

    def forward(self, t: Tokens, skips: Sequence[Tokens], backbone: Backbone) -> Tokens:
        """`skips` are what the stages gave on the way down, finest first; `backbone` says whether to keep what blocks
        compute."""
        for rise, stage, skip in zip(self.rises, self.stages, reversed(skips), strict=True):
            t = rise(t.restored(), skip.restored())
            for block in stage.blocks:  # type: ignore[union-attr]
                t = backbone.step(block, t)
            if not isinstance(stage.norm, nn.Identity):
                t = t.through(stage.norm)  # type: ignore[arg-type]
        return t


def pairs(strides: Sequence[int]) -> list[tuple[int, int]]:
    """(fine, coarse) strides of neighbours, the coarsest first."""
    return [(strides[i - 1], strides[i]) for i in range(len(strides) - 1, 0, -1)]
