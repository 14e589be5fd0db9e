"""MBConv with a norm before it, as a branch on maps and as a token mixer: CoAtNet's convolutional half
(https://arxiv.org/abs/2106.04803)."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..affine import into_readers
from ..conv import ConvNorm, LinearNorm, SqueezeExcite
from ..layers import Linear, is_plain
from ..norm import Norm
from ..tokens import Probe, Tokens


class MBConv(nn.Module):
    """fc2(se(conv(fc1(norm(m))))) on a map B H W C -> B H' W' out: 1x1, depthwise 3x3 by `stride` and 1x1 convolution,
    `ratio` times the width of what comes out between them; batch norm and GELU behind the first two, a squeeze to a
    quarter of `out` before the last."""

    projections = ("fc2",)

    def __init__(self, dim: int, out: int, stride: int = 1, ratio: float = 4.0):
        super().__init__()
        hidden = int(out * ratio)
        self.norm = Norm("batch").build(dim)
        self.fc1 = LinearNorm(dim, hidden, act="gelu")
        self.conv = ConvNorm(hidden, hidden, 3, stride, groups=hidden, act="gelu")
        self.se = SqueezeExcite(hidden, max(1, int(out / 4)))
        self.fc2 = Linear(hidden, out)

    def forward(self, m: Tensor) -> Tensor:
        return self.fc2(self.se(self.conv(self.fc1(self.norm(m)))))  # type: ignore[no-any-return]

    def fold_(self) -> None:
        """fc1 has taken up its own norm by now, and takes up the one before it."""
        first = self.fc1.linear
        self.norm = into_readers(self.norm, [first] if is_plain(first) else [])


class MBConvMixer(nn.Module):
    """MBConv on the map of tokens."""

    needs_grid, offers, projections = True, (), ()

    def __init__(self, dim: int, ratio: float):
        super().__init__()
        self.branch = MBConv(dim, dim, ratio=ratio)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        return self.branch(t.map()).flatten(1, 2)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class MBConvs:
    """MBConv with `ratio` times the width inside, its norm before it included."""

    ratio: float = 4.0

    def build(self, dim: int, index: int) -> nn.Module:
        return MBConvMixer(dim, self.ratio)
