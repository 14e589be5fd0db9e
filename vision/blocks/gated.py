"""The residual block with a gated MLP, LLaMA's: https://arxiv.org/abs/2302.13971."""

from dataclasses import dataclass

from torch import nn

from ..block import Block, BlockSpec
from ..layers import SwiGLU
from ..norm import Norm
from ..residual import join


@dataclass(frozen=True)
class GatedPreNorm(BlockSpec):
    """Mixer and SwiGLU, each with a norm before and a residual around it; `ratio` is the exact hidden width over
    dim."""

    norm: Norm = Norm("rms", 1e-6)
    bias: bool = False  # of the MLP's layers

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        add = (join(dim, scale, False, drop_path), join(dim, scale, False, drop_path))
        ffn = SwiGLU(dim, round(dim * ratio), self.bias)
        return Block(mixer, ffn, (self.norm.build(dim), self.norm.build(dim)), add)
