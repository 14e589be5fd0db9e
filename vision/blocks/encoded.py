"""A block with a convolutional position encoding before its mixer and before its MLP, as in MLLA and VSSD
(https://arxiv.org/abs/2407.18559)."""

from dataclasses import dataclass, replace

from torch import nn

from ..block import Block, BlockSpec
from ..depthwise import ResidualDepthwise
from ..layers import Mlp
from ..norm import Norm
from ..residual import Add, join
from ..tokens import Tokens


class EncodedBlock(Block):
    """encode1 -> norm1 -> mixer -> add1 -> [after_mixer] -> encode2 -> norm2 -> ffn -> add2; encode is x plus a
    depthwise 3x3 convolution of it."""

    needs_grid = True

    def __init__(self, dim: int, mixer: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module],
                 adds: tuple[Add, Add]):  # fmt: skip
        super().__init__(mixer, ffn, norms, adds)
        self.encode1, self.encode2 = ResidualDepthwise(dim), ResidualDepthwise(dim)

    def run(self, t: Tokens) -> Tokens:
        t = t.with_map(self.encode1(t.map()))
        y, probe = self.mix(t, self.norm1(t.x))
        t = replace(t, x=self.add1(t.x, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        t = t.with_map(self.encode2(t.map()))
        return self.feed(t, t.x, self.norm2(t.x), self.add2, self.ffn)


@dataclass(frozen=True)
class Encoded(BlockSpec):
    """Pre-norm mixer and MLP with a convolutional encoding before each."""

    norm: Norm = Norm()

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        adds = (join(dim, scale, False, drop_path), join(dim, scale, False, drop_path))
        norms = (self.norm.build(dim), self.norm.build(dim))
        return EncodedBlock(dim, mixer, Mlp(dim, int(dim * ratio)), norms, adds)
