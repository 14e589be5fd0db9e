"""A backbone is a stem and a list of stages; a stage is a token mixer repeated `depth` times at one resolution."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .block import BlockSpec, Mixer, PreNorm, Tokens
from .stem import Down, Merge2x2, Patchify, Stem


@dataclass(frozen=True)
class Stage:
    mixer: Mixer
    dim: int
    depth: int
    ratio: float = 4.0  # hidden width of the MLP over dim
    scale: float | None = None  # initial LayerScale, None for none
    block: BlockSpec = PreNorm()

    def __post_init__(self) -> None:
        if self.dim < 1 or self.depth < 1:
            raise ValueError(f"a stage takes dim and depth of at least 1; got dim={self.dim}, depth={self.depth}")


class StageBlocks(nn.Module):
    """A stage as it was built: the step down to its resolution, then its blocks."""

    def __init__(self, down: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.down, self.blocks = down, nn.ModuleList(blocks)


class Backbone(nn.Module):
    """image (B 3 H W) -> one `Tokens` a stage; `channels` and `strides` describe them.

    `drop_path` rises linearly from 0 at the first block to its value at the last.
    """

    def __init__(self, stages: Sequence[Stage], stem: Stem | None = None, down: Down | None = None, *,
                 patch: int = 4, in_chans: int = 3, drop_path: float = 0.0):  # fmt: skip
        super().__init__()
        if not stages:
            raise ValueError("a backbone takes at least one stage; got none")
        self.specs, self.stem_spec = tuple(stages), Patchify(patch) if stem is None else stem
        self.down_spec = Merge2x2() if down is None else down
        self.in_chans, self.drop_path = in_chans, drop_path
        self.channels = [s.dim for s in stages]
        self.strides = [self.stem_spec.stride * self.down_spec.stride**i for i in range(len(stages))]
        self.grad_checkpointing = False
        self.stem = self.stem_spec.build(in_chans, stages[0].dim)
        total = sum(s.depth for s in stages)
        rates = [drop_path * i / max(1, total - 1) for i in range(total)]
        self.stages = nn.ModuleList()
        for i, s in enumerate(stages):
            down_module = nn.Identity() if i == 0 else self.down_spec.build(stages[i - 1].dim, s.dim)
            blocks = [
                s.block.build(s.dim, s.mixer.build(s.dim, j), s.ratio, s.scale, rates.pop(0)) for j in range(s.depth)
            ]
            self.stages.append(StageBlocks(down_module, blocks))

    @property
    def taps(self) -> list[tuple[int, int]]:
        """(stage, block) after which features may be taken: the end of each stage, or of each block where there is one
        stage only. Block -1 is the stem, which counts where there would be fewer than three."""
        if len(self.specs) == 1:
            return [(0, j) for j in range(-1 if self.specs[0].depth < 3 else 0, self.specs[0].depth)]
        return [(i, s.depth - 1) for i, s in enumerate(self.specs)]

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
        t, taken = cast(Tokens, self.stem(image)), []
        if (0, -1) in wanted:
            taken.append(t)
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, StageBlocks)
            t = stage.down(t)
            for j, block in enumerate(stage.blocks):
                t = self.step(block, t)
                if (i, j) in wanted:
                    taken.append(t)
                    if stop and len(taken) == len(wanted):
                        return t, taken
        return t, taken

    def step(self, block: nn.Module, t: Tokens) -> Tokens:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return cast(Tokens, checkpoint(block, t, use_reentrant=False))
        return cast(Tokens, block(t))

    def check(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != self.in_chans:
            raise ValueError(f"images of shape (B, {self.in_chans}, H, W) are wanted; got {tuple(image.shape)}")
