"""MobileNetV2's inverted bottleneck as a token mixer, https://arxiv.org/abs/1801.04381."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..conv import InvertedBottleneck
from ..tokens import Probe, Tokens


class InvertedMixer(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolution, each with a batch norm behind it, GELU between them."""

    needs_grid, offers, projections = True, (), ()

    def __init__(self, dim: int, hidden: int, bias: bool):
        super().__init__()
        self.branch = InvertedBottleneck(dim, hidden, dim, bias=bias)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        return self.branch(t.map()).flatten(1, 2)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Inverted:
    """An inverted bottleneck of ratio * dim hidden channels; `bias`: of its convolutions."""

    ratio: float = 4.0
    bias: bool = False

    def build(self, dim: int, index: int) -> nn.Module:
        return InvertedMixer(dim, int(dim * self.ratio), self.bias)
