"""Several mixers one behind the other, with nothing between them."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..block import Mixer
from ..tokens import Probe, Tokens


class InARowMixer(nn.Module):
    """Each mixes what the one before it gave."""

    offers, projections = (), ()

    def __init__(self, mixers: list[nn.Module]):
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.needs_grid = any(getattr(m, "needs_grid", False) for m in mixers)

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        for mixer in self.mixers:
            t = replace(t, x=mixer(t))
        return t.x


@dataclass(frozen=True)
class InARow:
    """`mixer`, `count` times, each with weights of its own."""

    mixer: Mixer
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count}: at least 1 mixer")

    def build(self, dim: int, index: int) -> nn.Module:
        return InARowMixer([self.mixer.build(dim, index) for _ in range(self.count)])
