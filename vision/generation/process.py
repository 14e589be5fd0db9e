"""What every diffusion process keeps to: how a network is trained under it, and what its samplers go by.

Shapes: B samples, C channels of the image or latent, H W its size, h w the tokens' grid, T = h w.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser


@dataclass(frozen=True)
class Level:
    """A noise level: x = alpha x0 + sigma noise. `t` is what the network is told of it; `fraction` its place in time,
    from 1 (noise) to 0 (image)."""

    alpha: float
    sigma: float
    t: float
    fraction: float


@dataclass(frozen=True)
class Losses:
    """Of each sample (B): `loss` is what is to be minimised, `error` its squared error, `bound` the variational term of
    its step in bits, as it enters the loss (None without one), and `t` what the network was told."""

    loss: Tensor
    error: Tensor
    bound: Tensor | None
    t: Tensor


@dataclass(frozen=True)
class Masked:
    """What a network gives that saw some patches only: (B C H W), of which the tokens `kept` (B T) count."""

    output: Tensor
    kept: Tensor


Output = Tensor | list[Tensor] | Masked
Network = Callable[[Tensor, Tensor, Tensor | None], Output]  # (x (B C H W), t (B), condition)
Generators = torch.Generator | Sequence[torch.Generator] | None


class Process(ABC):
    """How images become noise, what a network learns of that, and which noise levels a sampler goes through.

    Everything here is computed in float32 or better, whatever the network computes in.
    """

    time: Any  # "step", "c_noise" or "log_snr": what a network is told, as `Denoiser.time` has it

    @property
    def outputs(self) -> int:
        """Channels of the network's answer for each of the image's."""
        return 1

    def check(self, denoiser: Denoiser) -> None:
        """Raises ValueError where the network was not made for this process."""
        if self.time != denoiser.time:
            raise ValueError(
                f"{type(self).__name__} tells a network {self.time!r}, and {denoiser.called} reads {denoiser.time!r}: "
                f"set time of the one or the other"
            )
        if denoiser.out_channels != (want := self.outputs * denoiser.in_channels):
            raise ValueError(
                f"{self} takes {want} channels from a network with {denoiser.in_channels}, and {denoiser.called} gives "
                f"{denoiser.out_channels}; twice its input's are for a learned variance"
            )

    @abstractmethod
    def loss(self, network: Network, x0: Tensor, y: Tensor | None = None, *,
             generator: torch.Generator | None = None, noise: Tensor | None = None,
             t: Tensor | None = None) -> Losses:  # fmt: skip
        """Of images x0 (B C H W) with conditions y. What is random is drawn from `generator`, or given: the unit normal
        `noise`, and `t` (B), what each process counts its times in (see there)."""

    @abstractmethod
    def levels(self, steps: int | str) -> tuple[Level, ...]:
        """steps + 1 levels, the noisiest first, the last where sampling ends. Raises ValueError for steps that the
        process does not have."""

    def scaled(self, x: Tensor, level: Level) -> Tensor:
        """What of x (B C H W) at that level the network sees."""
        return x

    def start(self, noise: Tensor, level: Level) -> Tensor:
        """The first state of sampling: unit normal noise brought to the level."""
        return noise

    @abstractmethod
    def denoised(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        """The image (B C H W) that the network's answer for x at that level means."""


def training_call(denoiser: Denoiser, mask_ratio: float = 0.0) -> Network:
    """The denoiser as `Process.loss` wants it: all its predictions; with a ratio, what it makes of the patches kept."""
    if mask_ratio == 0:
        return denoiser.predictions
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio {mask_ratio}: a share of the patches below 1 is wanted")
    return partial(_masked, denoiser, mask_ratio)


def _masked(denoiser: Denoiser, ratio: float, x: Tensor, t: Tensor, y: Tensor | None) -> Masked:
    return Masked(*denoiser.masked(x, t, y, ratio))


def taken(output: Output) -> tuple[list[Tensor], Tensor | None]:
    """(the predictions in float32 or better, the last of which is the answer; which tokens count)."""
    kept = output.kept if isinstance(output, Masked) else None
    each = output if isinstance(output, list) else [output.output if isinstance(output, Masked) else output]
    return [p if p.dtype == torch.float64 else p.float() for p in each], kept


def draw(shape: Sequence[int], generator: Generators = None, device: torch.device | str = "cpu",
         dtype: torch.dtype = torch.float32) -> Tensor:  # fmt: skip
    """Unit normal numbers (B ...). Of a sequence of generators each sample has its own, so that what it gets does not
    depend on the samples beside it. A generator may be on another device than the numbers are for."""
    if generator is None or isinstance(generator, torch.Generator):
        where = device if generator is None else generator.device
        return torch.randn(*shape, generator=generator, device=where, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} samples: one each, or a single one, is wanted")
    return torch.stack([torch.randn(*shape[1:], generator=g, device=g.device, dtype=dtype) for g in generator]).to(
        device
    )


def uniform(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """(count) numbers in [0, 1)."""
    where = device if generator is None else generator.device
    return torch.rand(count, generator=generator, device=where).to(device)


def each_mean(values: Tensor, kept: Tensor | None = None) -> Tensor:
    """The mean (B) of values (B C H W) of each sample: over everything, or over the patches of the tokens kept (B T).

    What a patch is follows from the sizes: the smallest that T of them cover (H W) with.
    """
    if kept is None:
        return values.flatten(1).mean(1)
    height, width = values.shape[-2:]
    tokens = kept.shape[1]
    for patch in range(1, max(height, width) + 1):
        grid = (-(-height // patch), -(-width // patch))
        if grid[0] * grid[1] <= tokens:
            break
    if grid[0] * grid[1] != tokens:
        raise ValueError(f"{tokens} tokens do not make up {height} x {width}, whatever the size of their patches")
    weight = kept.to(values.dtype).view(-1, 1, *grid)
    weight = weight.repeat_interleave(patch, -2).repeat_interleave(patch, -1)[..., :height, :width]
    total: Tensor = (values.mean(1, keepdim=True) * weight).sum((1, 2, 3))
    return total / weight.sum((1, 2, 3))


def over(values: Tensor, like: Tensor) -> Tensor:
    """(B) -> (B 1 1 1), in the type of `like`."""
    return values.to(like).view(-1, *(1,) * (like.ndim - 1))
