"""A block that replaces what goes into it: norm(mixer(x)), with no residual and no MLP."""

from dataclasses import dataclass, replace

from torch import nn

from ..block import BlockSpec, Seams
from ..norm import Norm
from ..tokens import Tokens


class ReplacingBlock(Seams):
    """mixer -> norm -> [after_mixer]."""

    def __init__(self, mixer: nn.Module, norm: nn.Module):
        super().__init__()
        self.mixer, self.norm = mixer, norm

    def run(self, t: Tokens) -> Tokens:
        y, probe = self.mix(t, t.x)
        t = replace(t, x=self.norm(y))
        return t if self.after_mixer is None else self.after_mixer(t, probe)


@dataclass(frozen=True)
class Replacing(BlockSpec):
    """A mixer and a norm behind it, or not even that."""

    norm: Norm | None = Norm()

    def build(self, dim: int, index: int, mixer: nn.Module, ratio: float, scale: float | None,
              drop_path: float) -> nn.Module:  # fmt: skip
        if scale is not None or drop_path:
            raise ValueError(f"scale={scale}, drop_path={drop_path}: a block without residual has neither")
        return ReplacingBlock(mixer, nn.Identity() if self.norm is None else self.norm.build(dim))
