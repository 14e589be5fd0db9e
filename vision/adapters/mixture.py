"""Mixtures of adapters, as for spectrograms (https://arxiv.org/abs/2402.00828): several bottlenecks beside a branch.

Soft: n adapters with p slots each. With logits l = X Phi (N n p), slot (i, j) = sum over tokens of softmax_N(l) x goes
through adapter i, and each token gets back the sum over all slots of softmax_np(l) times what they say.
Dense: every adapter sees every token; a router's softmax over them weighs what they say.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..plugins import Host
from ..tokens import Tokens
from .bottleneck import Plain, bottleneck, small


class SoftMixture(nn.Module):
    """Tokens (B N C) -> (B N C) through slots.

    `normalize`: tokens of length 1, and Phi of length 1 times a learned scale. As published, what has length 1 in Phi
    is not a slot but each of a slot's channels over the experts.
    """

    def __init__(self, dim: int, experts: list[nn.Module], slots: int, normalize: bool):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.phi = nn.Parameter(torch.randn(dim, len(experts), slots) * dim**-0.5)
        self.scale = nn.Parameter(torch.ones(())) if normalize else None

    def forward(self, t: Tokens) -> Tensor:
        x, phi = t.x, cast(Tensor, self.phi)
        if self.scale is not None:
            x, phi = F.normalize(x, dim=-1), self.scale * F.normalize(phi, dim=1)
        logits = (x @ phi.flatten(1).to(x.dtype)).float()  # B N n*p
        slots = logits.softmax(1).to(x.dtype).mT @ x  # B n*p C
        parts = slots.chunk(len(self.experts), 1)
        said = [expert(Tokens(s, None)) for expert, s in zip(self.experts, parts, strict=True)]
        return logits.softmax(-1).to(t.x.dtype) @ torch.cat(said, 1)


class DenseMixture(nn.Module):
    """sum_i softmax(router(x))_i expert_i(x) of Tokens, (B N C)."""

    def __init__(self, dim: int, experts: list[nn.Module]):
        super().__init__()
        self.router, self.experts = small(dim, len(experts)), nn.ModuleList(experts)

    def forward(self, t: Tokens) -> Tensor:
        weights = cast(Tensor, self.router(t.x)).float().softmax(-1).to(t.x.dtype)  # B N n
        said = torch.stack([expert(t) for expert in self.experts], -1)  # B N C n
        return (said @ weights[..., None])[..., 0]


@dataclass(frozen=True)
class Mixture(Plain):
    """Several bottlenecks beside the MLP; `twice`: each has its activation twice, as Convpass has in that code."""

    parallel: bool = True
    experts: int = 4
    twice: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts < 2:
            raise ValueError(f"experts={self.experts}: a mixture has 2 or more")

    def bottlenecks(self, host: Host) -> list[nn.Module]:
        width = self.narrow(host, self.width, self.reduction)
        acts = (self.act,) * (2 if self.twice else 1)
        return [bottleneck(host.dim, width, acts, self.dropout) for _ in range(self.experts)]


@dataclass(frozen=True)
class SoftMoa(Mixture):
    """A soft mixture of bottlenecks.

    Tokens go to `experts` bottlenecks in `slots` slots each.
    """

    slots: int = 1
    normalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slots < 1:
            raise ValueError(f"slots={self.slots}: each expert has 1 or more")

    def body(self, host: Host) -> nn.Module:
        return SoftMixture(host.dim, self.bottlenecks(host), self.slots, self.normalize)


@dataclass(frozen=True)
class DenseMoa(Mixture):
    """A mixture of bottlenecks in which all take part.

    Every token goes to all `experts` bottlenecks.
    """

    def body(self, host: Host) -> nn.Module:
        return DenseMixture(host.dim, self.bottlenecks(host))
