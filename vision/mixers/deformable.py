"""Multi-scale deformable attention as a layer, https://arxiv.org/abs/2010.04159 (kernels/deformable.py)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...kernels.deformable import deformable
from ..layers import Linear

Shapes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """proj(sum of weight · value at (its place + offset) over `points` samples of each of `levels` maps); offsets, in
    cells of their level, and weights, which sum to 1 over all samples, are linear in the query.

    Values are `ratio` times as wide as dim. Offsets begin as a ring: head i looks into direction i, sample j at j
    cells' distance. Parameters keep Deformable DETR's initialisation.
    """

    projections = ("value", "proj")

    def __init__(self, dim: int, heads: int, levels: int = 3, points: int = 4, ratio: float = 1.0):
        super().__init__()
        inner = int(dim * ratio)
        if inner % heads:
            raise ValueError(f"{inner} channels of values do not divide into {heads} heads")
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets, self.weigh = (Linear(dim, heads * levels * points * n) for n in (2, 1))
        self.value, self.proj = Linear(dim, inner), Linear(inner, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in (self.offsets, self.weigh):
            nn.init.zeros_(layer.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angle.cos(), angle.sin()], -1)  # h 2
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)[:, None]
        with torch.no_grad():
            self.offsets.bias.copy_((ring[:, None, None] * steps).expand(-1, self.levels, -1, -1).flatten())
        for layer in (self.value, self.proj):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, query: Tensor, value: Tensor, shapes: Shapes, at: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B Q C), value (B N C): the maps of `shapes` one behind the other; at (1 or B, Q, L, 2): each query's
        place in every level, (x, y) in 0..1; mask (B N): True where a value is padding and counts as 0 -> (B Q C)."""
        if len(shapes) != self.levels:
            raise ValueError(f"{len(shapes)} maps for deformable attention that is made for {self.levels}")
        v = self.value(value)
        if mask is not None:
            v = v.masked_fill(mask[..., None], 0)
        split = (self.heads, self.levels, self.points)
        weights = self.weigh(query).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, split[1:])
        offsets = self.offsets(query).unflatten(-1, (*split, 2)).float()  # B Q h L P 2; places need all their digits
        size = torch.tensor([(w, h) for h, w in shapes], device=query.device, dtype=torch.float32)
        places = at.float()[:, :, None, :, None] + offsets / size[:, None]
        return self.proj(deformable(v.unflatten(-1, (self.heads, -1)), shapes, places, weights))  # type: ignore[no-any-return]


def cells(shapes: Shapes, strides: Sequence[float], device: torch.device | None = None) -> Tensor:
    """(1 N L 2): the centre of each cell of the maps of `shapes`, one behind the other, as (x, y) in 0..1 of every map.
    `strides`: pixels a cell; maps of an image that no stride divides reach beyond it, each by other than the next."""
    found = []
    for (h, w), stride in zip(shapes, strides, strict=True):
        y, x = (torch.arange(n, device=device, dtype=torch.float32).add(0.5).mul(stride) for n in (h, w))
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flip(-1)  # H W 2: x, y in pixels
        found.append(grid.flatten(0, 1))
    extent = torch.tensor([(w * s, h * s) for (h, w), s in zip(shapes, strides, strict=True)], device=device)
    return (torch.cat(found)[:, None] / extent)[None]
