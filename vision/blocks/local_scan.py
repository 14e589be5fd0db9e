"""Mamba YOLO's blocks, https://arxiv.org/abs/2406.05835: a scan that sees a token's neighbours first, and a gated MLP
that sees them too.

Shapes: B images, N tokens, C channels, an H x W grid.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from ..block import BlockSpec, Seams
from ..conv import ConvNorm, LinearNorm
from ..depthwise import ResidualDepthwise
from ..layers import Linear, Mlp
from ..norm import Norm
from ..residual import Add, join
from ..tokens import Tokens

EPS, MOMENTUM = 1e-3, 0.03  # of all batch norms


def slow(module: nn.Module) -> nn.Module:
    """The module, its batch norms keeping statistics of more steps than usual."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.momentum = MOMENTUM
    return module


class Local(nn.Module):
    """m + mlp(norm(depthwise 3x3(m))), on a map B H W C."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv, self.mlp = ConvNorm(dim, dim, 3, groups=dim, bias=True, eps=EPS), Mlp(dim, dim)

    def forward(self, m: Tensor) -> Tensor:
        return m + self.mlp(self.conv(m))  # type: ignore[no-any-return]


class GatedConvMlp(nn.Module):
    """fc2(gelu(a + depthwise 3x3(a)) * v) with (a, v) = fc1(m), on a map B H W C."""

    needs_grid, projections = True, ("fc1", "fc2")

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.conv, self.fc2 = Linear(dim, 2 * hidden), ResidualDepthwise(hidden), Linear(hidden, dim)

    def forward(self, m: Tensor) -> Tensor:
        a, v = self.fc1(m).chunk(2, -1)
        return self.fc2(F.gelu(self.conv(a)) * v)  # type: ignore[no-any-return]


class LocalScanBlock(Seams):
    """enter -> local -> norm1 -> mixer -> add1, around local and mixer, -> [after_mixer] -> norm2 -> ffn on the map ->
    [on_ffn] -> add2."""

    seams, needs_grid = (*Seams.seams, "on_ffn"), True

    def __init__(self, dim: int, hidden: int, enter: nn.Module, mixer: nn.Module, adds: tuple[Add, Add]):
        super().__init__()
        self.enter, self.local = enter, slow(Local(dim))
        self.norm1, self.norm2 = (Norm(eps=1e-6).build(dim) for _ in range(2))
        self.mixer, self.ffn = mixer, GatedConvMlp(dim, hidden)
        self.add1, self.add2 = adds

    def run(self, t: Tokens) -> Tokens:
        t = replace(t, x=self.enter(t.x))
        y, probe = self.mix(t, self.norm1(self.local(t.map()).flatten(1, 2)))
        t = replace(t, x=self.add1(t.x, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        n = replace(t, x=self.norm2(t.x))
        y = self.ffn(n.map()).flatten(1, 2)
        return replace(t, x=self.add2(t.x, y if self.on_ffn is None else self.on_ffn(n, y)))


@dataclass(frozen=True)
class LocalScan(BlockSpec):
    """The block of the backbone (the paper's ODSS, `bias`) or of the neck, which brings `width` channels to its own,
    or takes its own as they are. `ratio` says how wide the MLP would be without a gate: with it, two thirds."""

    width: int | None = None  # of what enters; None: the block's own
    always: bool = True  # with a layer at the entrance, even if the width stays
    bias: bool = True  # of that layer

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        width = self.width or dim
        layer = self.always or width != dim
        enter = LinearNorm(width, dim, bias=self.bias, act="silu", eps=EPS) if layer else nn.Identity()
        adds = (join(dim, scale, False, drop_path), join(dim, scale, False, drop_path))
        return LocalScanBlock(dim, int(2 * int(dim * ratio) / 3), slow(enter), mixer, adds)
