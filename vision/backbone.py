"""A backbone is a stem and a list of stages; a stage is a token mixer repeated `depth` times at one resolution."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .block import BlockSpec, Mixer, PreNorm
from .norm import Norm
from .spec import Spec, sized
from .stem import Down, Merge2x2, Patchify, Stem
from .tokens import Tokens


@dataclass(frozen=True)
class Stage(Spec):
    """`depth` blocks at one resolution. Where blocks differ: a `ratio` each, `Each` as the mixer, `EachBlock` as the
    block."""

    mixer: Mixer
    dim: int
    depth: int
    ratio: float | tuple[float, ...] = 4.0  # hidden width of the MLP over dim
    scale: float | None = None  # initial LayerScale, None for none
    block: BlockSpec = PreNorm()
    down: Down | None = None  # how this resolution is reached, where it is not the backbone's way
    norm: Norm | None = None  # behind the last block
    drop_path: tuple[float, ...] | None = None  # a share of the backbone's rate for each block; None: its linear rise

    def __post_init__(self) -> None:
        if self.dim < 1 or self.depth < 1:
            raise ValueError(f"a stage takes dim and depth of at least 1; got dim={self.dim}, depth={self.depth}")
        for what, value in (("ratio", self.ratio), ("drop_path", self.drop_path)):
            if isinstance(value, tuple) and len(value) != self.depth:
                raise ValueError(f"{what} {value} of a stage: one for each of its {self.depth} blocks is wanted")

    def ratios(self) -> tuple[float, ...]:
        return self.ratio if isinstance(self.ratio, tuple) else (self.ratio,) * self.depth

    def sized(self, grid: tuple[int, int]) -> "Stage":
        down = None if self.down is None else sized(self.down, grid)
        return replace(self, mixer=sized(self.mixer, grid), block=sized(self.block, grid), down=down)

    def first(self) -> "Stage":
        """The same with one block only."""
        return replace(self, depth=1, ratio=self.ratios()[0], drop_path=None)


class StageBlocks(nn.Module):
    """A stage as it was built: the step down to its resolution, its blocks, and a norm or none."""

    def __init__(self, down: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None):
        super().__init__()
        self.down, self.blocks = down, nn.ModuleList(blocks)
        self.norm = nn.Identity() if norm is None else norm


class Staged(nn.Module):
    """A network whose blocks stand in stages, of which the first is number `first` of the model."""

    first = 0
    stages: nn.ModuleList
    channels: list[int]
    specials: list[tuple[int, ...]]


class Backbone(Staged):
    """image (B 3 H W) -> one `Tokens` a stage; `channels` and `strides` describe them.

    `drop_path` rises linearly from 0 at the first block to its value at the last, where a stage does not share it out
    otherwise. `specials` are the positions of each stage's special tokens, `special` those of the last. `tasks` is a
    seam, Tokens -> Tokens before each block: which task they are for, and what adapters share (adapters/tasks.py).
    """

    seams = ("tasks",)

    def __init__(self, stages: Sequence[Stage], stem: Stem | None = None, down: Down | None = None, *,
                 patch: int = 4, in_chans: int = 3, drop_path: float = 0.0):  # fmt: skip
        super().__init__()
        if not stages:
            raise ValueError("a backbone takes at least one stage; got none")
        self.specs, self.stem_spec = tuple(stages), Patchify(patch) if stem is None else stem
        self.down_spec = Merge2x2() if down is None else down
        self.in_chans, self.drop_path = in_chans, drop_path
        self.channels = [s.dim for s in stages]
        self.strides, self.specials = [self.stem_spec.stride], [self.stem_spec.special]
        self.prompts = (0, 0)  # where an adapter's tokens stand among those of the last stage, and how many
        self.grad_checkpointing = False
        self.tasks: nn.Module | None = None
        self.stem = self.stem_spec.build(in_chans, stages[0].dim)
        total, past = sum(s.depth for s in stages), 0
        self.stages = nn.ModuleList()
        for i, s in enumerate(stages):
            step: nn.Module = nn.Identity()
            if i > 0:
                how = s.down or self.down_spec
                step = how.build(stages[i - 1].dim, s.dim)
                self.strides.append(self.strides[-1] * how.stride)
                self.specials.append(self.specials[-1] if how.special is None else how.special)
            shares = s.drop_path or tuple((past + j) / max(1, total - 1) for j in range(s.depth))
            blocks = [
                s.block.build(s.dim, j, s.mixer.build(s.dim, j), ratio, s.scale, drop_path * share)
                for j, (ratio, share) in enumerate(zip(s.ratios(), shares, strict=True))
            ]
            self.stages.append(StageBlocks(step, blocks, None if s.norm is None else s.norm.build(s.dim)))
            past += s.depth

    def arguments(self) -> dict[str, Any]:
        """What it was made of, by the names of the constructor."""
        return {"stages": self.specs, "stem": self.stem_spec, "down": self.down_spec, "in_chans": self.in_chans,
                "drop_path": self.drop_path}  # fmt: skip

    @property
    def special(self) -> tuple[int, ...]:
        return self.specials[-1]

    @property
    def taps(self) -> list[tuple[int, int]]:
        """(stage, block) after which features may be taken: the end of each stage, or of each block where there is one
        resolution only. Block -1 is the stem, which counts where there would be fewer than three."""
        if len(set(self.strides)) == 1:
            every = [(i, j) for i, s in enumerate(self.specs) for j in range(s.depth)]
            return every if len(every) >= 3 else [(0, -1), *every]
        return [(i, s.depth - 1) for i, s in enumerate(self.specs)]

    def module_at(self, stage: int, block: int) -> str:
        """The name of the module after which (stage, block) of `taps` is taken."""
        return f"stages.{stage}.blocks.{block}" if block >= 0 else "stem"

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of each stage's tokens for an image of `size`."""
        return grids(self.specs, self.stem_spec, self.down_spec, size, self.in_chans)

    def forward(self, image: Tensor) -> list[Tokens]:
        ends = [(i, s.depth - 1) for i, s in enumerate(self.specs)]
        return self.walk(image, ends)[1]

    def last(self, image: Tensor) -> Tokens:
        """The tokens of the last stage."""
        return self.walk(image, ())[0]

    def walk(
        self, image: Tensor, wanted: Collection[tuple[int, int]], stop: bool = False
    ) -> tuple[Tokens, list[Tokens]]:
        """The last tokens computed, and those after each (stage, block) of `wanted`, in order; `stop`: compute no more
        than they need."""
        self.check(image)
        return self.onward(cast(Tokens, self.stem(image)), wanted, stop)

    def onward(self, t: Tokens, wanted: Collection[tuple[int, int]], stop: bool = False) -> tuple[Tokens, list[Tokens]]:
        """`walk` from the stem's tokens on."""
        taken = []
        if (0, -1) in wanted:
            taken.append(t)
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, StageBlocks)
            t = stage.down(t.restored())
            for j, block in enumerate(stage.blocks):
                t = self.step(block, t)
                if j == len(stage.blocks) - 1 and not isinstance(stage.norm, nn.Identity):
                    t = t.through(stage.norm)
                if (i, j) in wanted:
                    taken.append(t)
                    if stop and len(taken) == len(wanted):
                        return t, taken
        return t, taken

    def step(self, block: nn.Module, t: Tokens) -> Tokens:
        if self.tasks is not None:
            t = self.tasks(t)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return cast(Tokens, checkpoint(block, t, use_reentrant=False))
        return cast(Tokens, block(t))

    def check(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise ValueError(f"images of shape (B, {self.in_chans}, H, W) are wanted; got {tuple(image.shape)}")


def grids(
    stages: Sequence[Stage], stem: Stem, down: Down, size: tuple[int, int], in_chans: int = 3
) -> list[tuple[int, int]]:
    """(H, W) of each stage's tokens for an image of `size`: walked with one block a stage, without memory."""
    with torch.device("meta"), torch.no_grad():
        probe = Backbone([s.first() for s in stages], stem, down, in_chans=in_chans).to(torch.float32).eval()
        walked = probe(torch.empty(1, in_chans, *size, dtype=torch.float32))
    assert all(t.grid is not None for t in walked)
    return [t.grid for t in walked]
