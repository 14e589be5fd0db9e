"""Spatial pyramid pooling (https://arxiv.org/abs/1406.4729) in the fast form of the YOLO family: chained max pools."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conv import LinearNorm
from ..tokens import Probe, Tokens


class PyramidPooling(nn.Module):
    """after([x, pool(x), pool(pool(x)), …] of x = before(map)), `times` max pools of size x size that keep the map."""

    needs_grid, offers, projections = True, (), ()

    def __init__(self, dim: int, size: int, times: int, eps: float):
        super().__init__()
        self.size, self.times = size, times
        self.before = LinearNorm(dim, dim // 2, act="silu", eps=eps)
        self.after = LinearNorm((times + 1) * (dim // 2), dim, act="silu", eps=eps)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        seen = [self.before(t.map()).permute(0, 3, 1, 2)]
        for _ in range(self.times):
            seen.append(F.max_pool2d(seen[-1], self.size, 1, self.size // 2))
        return self.after(torch.cat(seen, 1).permute(0, 2, 3, 1)).flatten(1, 2)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PyramidPool:
    """`times` max pools of size x size, and what goes into them, side by side."""

    size: int = 5
    times: int = 3
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0 or self.times < 1:
            raise ValueError(f"PyramidPool takes an odd size and at least one pool; got {self}")

    def build(self, dim: int, index: int) -> nn.Module:
        return PyramidPooling(dim, self.size, self.times, self.eps)
