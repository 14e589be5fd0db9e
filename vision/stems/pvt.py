"""The step between two stages of PVT, https://arxiv.org/abs/2102.12122: patches of patches, with positions."""

from dataclasses import dataclass, replace

from torch import nn

from ..norm import Norm
from ..position import Position
from ..stem import Convolution, Down
from ..tokens import Tokens


class PatchesOfMap(nn.Module):
    """patch x patch tokens become one, then a norm; learned positions are added."""

    def __init__(self, convolution: Convolution, position: nn.Module):
        super().__init__()
        self.convolution, self.position = convolution, position

    def forward(self, t: Tokens) -> Tokens:
        return self.position(t.with_map(self.convolution(t.map())))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Repatch(Down):
    """A patch x patch convolution without overlap, a norm, and a position embedding made for a grid. Sides that do not
    divide are padded with zeros at right and bottom."""

    position: Position
    patch: int = 2
    norm: Norm = Norm()

    @property
    def stride(self) -> int:
        return self.patch

    def sized(self, grid: tuple[int, int]) -> "Repatch":
        return replace(self, position=replace(self.position, grid=grid))

    def build(self, dim: int, out: int) -> nn.Module:
        conv = nn.Conv2d(dim, out, self.patch, self.patch)
        return PatchesOfMap(Convolution(conv, None, self.norm.build(out), pad=True), self.position.build(out))
