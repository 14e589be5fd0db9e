"""Different mixers in one stage."""

from dataclasses import dataclass

from torch import nn

from ..block import Mixer
from ..spec import Spec, sized


@dataclass(frozen=True)
class Each(Spec):
    """A mixer for each block of the stage."""

    mixers: tuple[Mixer, ...]

    def build(self, dim: int, index: int) -> nn.Module:
        if index >= len(self.mixers):
            raise ValueError(f"Each names {len(self.mixers)} mixers; this stage has more blocks than that")
        return self.mixers[index].build(dim, index)

    def sized(self, grid: tuple[int, int]) -> "Each":
        return Each(tuple(sized(m, grid) for m in self.mixers))
