"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): away from what a network makes of no condition.

Shapes: B samples, C channels of the image, H W its size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .process import Level, Network, Process, taken

Predict = Callable[[Tensor, Level], Tensor]  # x (B C H W) as the process has it at the level -> the network's answer


@dataclass(frozen=True)
class Guidance:
    """null + w (conditional - null), with w = `scale`; 1 is no guidance. Both come from one pass over a double batch.

    `channels`: only the first so many are guided, the others are the conditional's: 3 as DiT was published; None: all
    of the image's, but none of a learned variance. `power` p: w rises along the way, from 1 at the noise to the scale
    at the image, as (scale - 1) (1 - cos(pi (1 - n)^p)) / 2 + 1 with n the fraction of time (DiMR). `interval`: guide
    where sigma / alpha lies in it only (Kynkäänniemi et al., arXiv 2404.07724); elsewhere one pass of a single batch
    does. DiMR's conditional + s (conditional - null) is scale 1 + s.
    """

    scale: float
    channels: int | None = None
    power: float | None = None
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance scale {self.scale}: a finite number is wanted")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guidance of {self.channels} channels: at least 1, or None for all of the image's")
        if self.power is not None and not self.power > 0:
            raise ValueError(f"guidance power {self.power}: above 0, or None for the same scale everywhere")
        if self.interval is not None:
            object.__setattr__(self, "interval", tuple(self.interval))
            if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1]:
                raise ValueError(f"guidance interval {self.interval}: (low, high) of sigma / alpha are wanted")

    def weight(self, level: Level) -> float:
        """w at that level."""
        if self.interval is not None:
            noise = level.sigma / level.alpha if level.alpha else math.inf
            if not self.interval[0] <= noise <= self.interval[1]:
                return 1.0
        if self.power is None:
            return self.scale
        return (self.scale - 1) * (1 - math.cos((1 - level.fraction) ** self.power * math.pi)) / 2 + 1


def combined(conditional: Tensor, null: Tensor, weight: float, channels: int) -> Tensor:
    """(B C+ H W): the first `channels` guided, the others as the conditional has them."""
    guided = null[:, :channels] + weight * (conditional[:, :channels] - null[:, :channels])
    return torch.cat([guided, conditional[:, channels:]], 1) if channels < conditional.shape[1] else guided


def guided(network: Network, process: Process, y: Tensor | None, guidance: Guidance | None = None,
           null: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Predict:  # fmt: skip
    """The network as samplers ask it, which sees its images in `dtype`. `null`: the condition of nothing for as many
    samples; None: `network.null(y)`, which raises ValueError where the network was trained without."""
    if guidance is not None and guidance.scale != 1 and null is None:
        ask = getattr(network, "null", None)
        if ask is None:
            raise ValueError("guidance needs the condition of nothing: give null, or a network that has the method")
        null = ask(y)
    if null is not None and (y is None or len(null) != len(y)):
        given = "none" if y is None else f"{len(y)}"
        raise ValueError(f"null: {len(null)} conditions of nothing for {given} of the samples; one each is wanted")

    def predict(x: Tensor, level: Level) -> Tensor:
        weight = 1.0 if guidance is None else guidance.weight(level)
        seen = process.scaled(x, level).to(dtype)
        told = torch.full((len(x),), level.t, device=x.device)
        if guidance is None or weight == 1:
            return taken(network(seen, told, y))[0][-1]
        assert null is not None
        assert y is not None
        channels = guidance.channels or x.shape[1]
        if channels > x.shape[1]:
            raise ValueError(f"guidance of {channels} channels: the image has {x.shape[1]}")
        answer = taken(network(torch.cat([seen, seen]), torch.cat([told, told]), torch.cat([y, null])))[0][-1]
        return combined(answer[: len(x)], answer[len(x) :], weight, channels)

    return predict
