"""A block without an MLP: x + droppath(mixer(norm(x)))."""

from dataclasses import dataclass, replace

from torch import nn

from ..block import BlockSpec, Seams
from ..conv import ConvNorm
from ..norm import Norm
from ..residual import Add, join
from ..tokens import Tokens


class MixerBlock(Seams):
    """norm -> mixer -> add -> [after_mixer] -> last, a module on the map that replaces the stream, where there is
    one."""

    def __init__(self, mixer: nn.Module, norm: nn.Module, add: Add, last: nn.Module | None = None):
        super().__init__()
        self.norm, self.mixer, self.add = norm, mixer, add
        self.last, self.needs_grid = nn.Identity() if last is None else last, last is not None

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, self.norm(t.x))
        t = replace(t, x=self.add(t.x, y))
        if self.after_mixer is not None:
            t = self.after_mixer(t, probe)
        return t if isinstance(self.last, nn.Identity) else t.with_map(self.last(t.map()))


@dataclass(frozen=True)
class MixerOnly(BlockSpec):
    """A norm and a mixer with a residual around them; `local`: their sum goes through a depthwise 3x3 convolution, a
    batch norm and GELU."""

    norm: Norm = Norm()
    local: bool = False

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        last = ConvNorm(dim, dim, 3, groups=dim, act="gelu") if self.local else None
        return MixerBlock(mixer, self.norm.build(dim), join(dim, scale, False, drop_path), last)
