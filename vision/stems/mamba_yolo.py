"""Mamba YOLO's step between stages, https://arxiv.org/abs/2406.05835."""

from dataclasses import dataclass

from torch import nn

from ..blocks.local_scan import EPS, slow
from ..conv import LinearNorm
from ..norm import Norm
from ..stem import Down, Interleave


class Clues(Interleave):
    """Four neighbours become one token (Swin's order), through a linear layer, a batch norm and SiLU."""

    projections = ()

    def __init__(self, dim: int, out: int):
        super().__init__(dim, out, Norm())
        self.norm, self.reduction = nn.Identity(), slow(LinearNorm(4 * dim, out, bias=True, act="silu", eps=EPS))


@dataclass(frozen=True)
class ClueMerge(Down):
    """The paper's vision clue merge."""

    def build(self, dim: int, out: int) -> nn.Module:
        return Clues(dim, out)
