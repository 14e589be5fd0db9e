"""A class token that joins the patches on their way between two stages (CvT), https://arxiv.org/abs/2103.15808."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..spec import sized
from ..stem import Down
from ..tokens import Tokens


class JoinedByToken(nn.Module):
    """Tokens -> step -> the same behind one learned token."""

    def __init__(self, step: nn.Module, dim: int):
        super().__init__()
        self.step = step
        self.tokens = nn.ParameterList([nn.init.normal_(torch.empty(1, 1, dim), std=0.02)])

    def forward(self, t: Tokens) -> Tokens:
        t = self.step(t)
        token: Tensor = self.tokens[0].to(t.x.dtype).expand(t.x.shape[0], -1, -1)
        return replace(t, x=torch.cat([token, t.x], 1), special=(0,))


@dataclass(frozen=True)
class WithClassToken(Down):
    """The step `down`, which leaves no special tokens, and a class token in front of what comes out."""

    down: Down

    @property
    def stride(self) -> int:
        return self.down.stride

    @property
    def special(self) -> tuple[int, ...]:
        return (0,)

    def sized(self, grid: tuple[int, int]) -> "WithClassToken":
        return WithClassToken(sized(self.down, grid))

    def build(self, dim: int, out: int) -> nn.Module:
        return JoinedByToken(self.down.build(dim, out), out)
