"""Blocks whose MLP sees the neighbours of a token through a depthwise convolution, as in PVTv2
(https://arxiv.org/abs/2106.13797).

Shapes: B images, N tokens, C channels, an H x W grid.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.linear import eager_float32, linear
from ...kernels.mlp import slices
from ..block import Block, BlockSpec, Seams
from ..depthwise import ResidualDepthwise, filtered
from ..layers import Linear, is_plain
from ..norm import Norm
from ..residual import Add, join
from ..tokens import Tokens


class ConvMlp(nn.Module):
    """fc2(gelu(conv(fc1(x)))) with a depthwise 3x3 convolution; Tokens that fill a grid -> (B N C)."""

    needs_grid, projections = True, ("fc1", "fc2")

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = Linear(dim, hidden), Linear(hidden, dim)
        self.conv = self.neighbours(hidden)

    def neighbours(self, hidden: int) -> nn.Module:
        return nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, t: Tokens) -> Tensor:
        m = t.map()
        if not (eager_float32(m) and is_plain(self.fc1)) or (torch.is_grad_enabled() and self.fc1.weight.requires_grad):
            return self.through(m).flatten(1, 2)
        each = m.shape[1] * m.shape[2] * self.fc1.out_features  # images at a time as in kernels/mlp.py
        parts = [self.through(m[a]) for a in slices(m.shape[0], each)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1, 2)

    def through(self, m: Tensor) -> Tensor:
        """(B H W C) -> the same shape."""
        m = self.fc1(m)
        return self.fc2(filtered(self.conv, m, "gelu"))  # type: ignore[no-any-return]


class ResidualConvMlp(ConvMlp):
    """fc2(m + conv(m)) with m = gelu(fc1(x)): RMT's, https://arxiv.org/abs/2309.11523."""

    def neighbours(self, hidden: int) -> nn.Module:
        return ResidualDepthwise(hidden)

    def through(self, m: Tensor) -> Tensor:
        plain = is_plain(self.fc1)
        m = linear(m, self.fc1.weight, self.fc1.bias, gelu=True) if plain else F.gelu(self.fc1(m))
        return self.fc2(self.conv(m))  # type: ignore[no-any-return]


class ConvMlpBlock(Block):
    """[position] -> norm1 -> mixer -> add1 -> [after_mixer] -> norm2 -> ffn -> [on_ffn] -> add2, where the ffn takes
    the grid."""

    seams = (*Seams.seams, "on_ffn")

    def __init__(self, mixer: nn.Module, ffn: ConvMlp, norms: tuple[nn.Module, nn.Module], adds: tuple[Add, Add],
                 position: nn.Module | None = None):  # fmt: skip
        super().__init__(mixer, ffn, norms, adds)
        self.position = position

    def run(self, t: Tokens) -> Tokens:
        if self.position is not None:
            t = t.with_map(self.position(t.map()))
        y, probe = self.mix(t, self.norm1(t.x))
        t = replace(t, x=self.add1(t.x, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        n = replace(t, x=self.norm2(t.x))
        y = self.ffn(n)
        return replace(t, x=self.add2(t.x, y if self.on_ffn is None else self.on_ffn(n, y)))


@dataclass(frozen=True)
class ConvPreNorm(BlockSpec):
    """The PVTv2 block: mixer and convolutional MLP, each with a norm before and a residual around it."""

    norm: Norm = Norm(eps=1e-6)
    residual: bool = False  # another residual around the MLP's convolution, which then stands behind its GELU
    position: bool = False  # a depthwise 3x3 convolution is added to the tokens that enter the block

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        ffn = (ResidualConvMlp if self.residual else ConvMlp)(dim, int(dim * ratio))
        adds = (join(dim, scale, False, drop_path), join(dim, scale, False, drop_path))
        position = ResidualDepthwise(dim) if self.position else None
        return ConvMlpBlock(mixer, ffn, (self.norm.build(dim), self.norm.build(dim)), adds, position)
