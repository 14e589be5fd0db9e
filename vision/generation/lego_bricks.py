"""Bricks of LEGO-Diffusion: small DiTs whose attention stays within pieces of the image, https://arxiv.org/abs/2310.06389.

Shapes: B samples, C channels of the image or latent, D channels of a brick, H W the image, h w its tokens.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..block import Seams
from ..mixers.attention import SelfAttention
from ..mixers.convolution import convolve
from ..tokens import Probe, Tokens
from .adaln import AdaLNZero, FinalLayer
from .position import PlaneEmbedding


@dataclass(frozen=True)
class Brick:
    """`depth` blocks on pieces of size x size, in patches of patch x patch."""

    size: int
    patch: int
    depth: int

    def __post_init__(self) -> None:
        if min(self.size, self.patch, self.depth) < 1 or self.size % self.patch:
            raise ValueError(f"{self}: at least 1 each, and a size that the patch divides, are wanted")

    def takes(self, side: int) -> bool:
        """Whether an image of that side is a whole number of pieces, or a part of one."""
        return side % (self.patch if side < self.size else self.size) == 0


class PieceAttention(SelfAttention):
    """Self-attention among the tokens of each side x side piece of the grid (h w), which is a whole number of pieces,
    or no larger than one."""

    needs_grid, offers = True, ()

    def __init__(self, dim: int, heads: int, side: int):
        super().__init__(dim, heads)
        self.side = side

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        assert t.grid is not None
        (h, w), side = t.grid, self.side
        if h <= side and w <= side:
            return super().forward(t, probe)
        y, x = min(side, h), min(side, w)
        m = t.map().unflatten(1, (-1, y)).unflatten(3, (-1, x)).transpose(2, 3)  # type: ignore[no-untyped-call]
        pieces = super().forward(Tokens(m.reshape(-1, y * x, m.shape[-1]), None), probe)
        return pieces.view(m.shape).transpose(2, 3).reshape(t.x.shape)


class BrickNet(nn.Module):
    """(B C' H W) and the condition (B D) -> (B C H W); every piece is computed as if it were alone."""

    projections = ("embed",)

    def __init__(self, spec: Brick, dim: int, heads: int, channels: tuple[int, int]):
        super().__init__()
        self.spec, side = spec, spec.size // spec.patch
        self.embed = nn.Conv2d(channels[0], dim, spec.patch, spec.patch)
        self.position = PlaneEmbedding(dim, (side, side))
        self.blocks = nn.ModuleList(modulated(dim, heads, side, i) for i in range(spec.depth))
        self.final = FinalLayer(dim, dim, spec.patch, channels[1])
        self.grad_checkpointing = False

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        m = convolve(self.embed, x.permute(0, 2, 3, 1))  # B h w D
        grid = (m.shape[1], m.shape[2])
        t = Tokens(m.flatten(1, 2) + self.places(grid), grid, condition=c)
        for block in self.blocks:
            keep = self.grad_checkpointing and torch.is_grad_enabled()
            t = cast(Tokens, checkpoint(block, t, use_reentrant=False) if keep else block(t))
        return self.final(t.x, c, grid)  # type: ignore[no-any-return]

    def places(self, grid: tuple[int, int]) -> Tensor:
        """(1 h*w D): the table of one piece, as often as there are pieces."""
        (h, w), (rows, columns) = self.position.grid, grid
        table = self.position.table.view(1, h, w, -1)[:, :rows, :columns]
        tiled = table.repeat(1, max(rows // h, 1), max(columns // w, 1), 1)
        return tiled.flatten(1, 2)


def modulated(dim: int, heads: int, side: int, index: int) -> nn.Module:
    block = AdaLNZero().conditioned(dim, None).build(dim, index, PieceAttention(dim, heads, side), 4.0, None, 0.0)
    assert isinstance(block, Seams)
    block.dim = dim
    return block
