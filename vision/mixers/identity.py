"""No mixing at all: what a MetaFormer can do without (IdentityFormer, https://arxiv.org/abs/2210.13452)."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..tokens import Probe, Tokens


class NoMixing(nn.Module):
    """The normalised tokens as they are."""

    needs_grid, offers, projections, takes_special = False, (), (), False  # whose special tokens nobody would see

    def forward(self, t: Tokens, probe: Probe | None = None) -> Tensor:
        return t.x


@dataclass(frozen=True)
class Identity:
    """Every token stays by itself."""

    def build(self, dim: int, index: int) -> nn.Module:
        return NoMixing()
