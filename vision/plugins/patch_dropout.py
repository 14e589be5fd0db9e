"""Patch dropout, https://arxiv.org/abs/2208.07220: training steps see a random part of the patches, evaluation all."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..tokens import Tokens
from . import Host, Placed
from .pruning import check_gaps, check_keep, drawn, leave, scans


@dataclass(frozen=True)
class PatchDropout:
    """Leaves int(keep n) of the n patches behind the stem (at least one) while the model trains, others for each image
    at every step. `ordered`: they stay in their order, by which causal mixers go and attention does not."""

    keep: float = 0.5
    ordered: bool = True

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def place(self, hosts: Sequence[Host]) -> list[Placed]:
        check_gaps(hosts)
        return [Placed(hosts[0], "before_block", PatchDropoutLayer(self.keep, self.ordered, scans(hosts[0])))]


class PatchDropoutLayer(nn.Module):
    """Tokens -> Tokens with a random part of the patches in training, the same in evaluation."""

    def __init__(self, keep: float, ordered: bool, aligned: bool = False):
        super().__init__()
        self.keep, self.ordered, self.aligned = keep, ordered, aligned

    def forward(self, t: Tokens) -> Tokens:
        n = t.x.shape[1] - len(t.special)
        count = max(1, int(self.keep * n))
        if not self.training or count == n or t.turn:
            return t
        patches = drawn(t, count)
        return leave(t, patches.sort(1).values if self.ordered else patches, self.aligned)

    def extra_repr(self) -> str:
        return f"keep={self.keep}, ordered={self.ordered}"
