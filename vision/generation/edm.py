"""EDM: the preconditioning, loss and noise levels of Karras et al., arXiv 2206.00364, as MicroDiT and LEGO train.

Shapes: B samples, C channels, H W size; sigma (B).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .process import Level, Losses, Network, Process, draw, each_mean, over, taken


@dataclass(frozen=True)
class Edm(Process):
    """x = x0 + sigma noise; the network F is asked inside D(x) = c_skip x + c_out F(c_in x, t), which is the image.

    c_skip = d^2 / (s^2 + d^2), c_out = s d / sqrt(s^2 + d^2), c_in = 1 / sqrt(s^2 + d^2), for s = sigma and
    d = `sigma_data`. The network is told ln(s) / 4, or 1,000 times that where `time` is "step", for one whose time
    embedding expects the numbers of steps. In training ln(s) is normal with `mean` and `std`, and the squared error of
    D weighs (s^2 + d^2) / (s d)^2; the mean over elements, or their sum (`reduce`), and the mean over the predictions
    of a network with several. Sampling goes from `sigma_max` to `sigma_min`, evenly in s^(1 / rho).

    MicroDiT: Edm(0.9, -0.6, 1.2), at 512 Edm(0.9, 0, 0.6). LEGO: Edm(reduce="sum").
    """

    sigma_data: float = 0.5
    mean: float = -1.2
    std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    reduce: Literal["mean", "sum"] = "mean"
    time: Literal["c_noise", "step"] = "c_noise"

    def __post_init__(self) -> None:
        if not (self.sigma_data > 0 and self.std > 0 and self.rho > 0 and 0 < self.sigma_min < self.sigma_max):
            raise ValueError(f"{self}: sigma_data, std and rho above 0 and 0 < sigma_min < sigma_max are wanted")
        if self.reduce not in ("mean", "sum") or self.time not in ("c_noise", "step"):
            raise ValueError(f"Edm reduce {self.reduce!r}, time {self.time!r}: mean or sum, c_noise or step are there")

    def weights(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in, in the type of sigma."""
        total, data = sigma**2 + self.sigma_data**2, self.sigma_data
        return data**2 / total, sigma * data / total.sqrt(), 1 / total.sqrt()

    def told(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4 * (1000 if self.time == "step" else 1)

    def loss(self, network: Network, x0: Tensor, y: Tensor | None = None, *,
             generator: torch.Generator | None = None, noise: Tensor | None = None,
             t: Tensor | None = None) -> Losses:  # fmt: skip
        """As `Process.loss`; t (B) are the unit normal numbers that become sigma = exp(mean + std t)."""
        t = draw(x0.shape[:1], generator, x0.device) if t is None else t
        noise = draw(x0.shape, generator, x0.device) if noise is None else noise
        x0 = x0 if x0.dtype == torch.float64 else x0.float()
        sigma = (self.mean + self.std * t).exp()
        s = over(sigma, x0)
        x, told = x0 + s * noise, self.told(sigma)
        skip, out, inward = self.weights(s)
        answers, kept = taken(network(inward * x, told, y))
        if odd := [tuple(a.shape) for a in answers if a.shape != x0.shape]:
            raise ValueError(
                f"Edm asks for predictions of the image's shape {tuple(x0.shape)}; the network gave {odd[0]}"
            )
        each = [each_mean((skip * x + out * a - x0) ** 2, kept) for a in answers]
        error = torch.stack(each).mean(0)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        total = x0[0].numel() if self.reduce == "sum" else 1
        return Losses(weight * error * total, error.detach(), None, told)

    def level(self, sigma: float) -> Level:
        """The noise level of that deviation."""
        ends = [s ** (1 / self.rho) for s in (self.sigma_min, self.sigma_max, sigma)]
        told = math.log(sigma) / 4 * (1000 if self.time == "step" else 1)
        return Level(1.0, sigma, told, min(max((ends[2] - ends[0]) / (ends[1] - ends[0]), 0), 1))

    def levels(self, steps: int | str) -> tuple[Level, ...]:
        """As `Process.levels`; the last is the image itself."""
        count = whole(steps)
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigmas = [(first + i / max(count - 1, 1) * (last - first)) ** self.rho for i in range(count)]
        return (*map(self.level, sigmas), Level(1.0, 0.0, -math.inf, 0.0))

    def scaled(self, x: Tensor, level: Level) -> Tensor:
        return self.weights(torch.tensor(level.sigma, dtype=x.dtype))[2] * x

    def start(self, noise: Tensor, level: Level) -> Tensor:
        return noise * level.sigma

    def denoised(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        skip, out, _ = self.weights(torch.tensor(level.sigma, dtype=x.dtype))
        return skip * x + out * output[:, : x.shape[1]]


def whole(steps: int | str) -> int:
    """The number of steps of a process that has as many as are wanted."""
    if not (text := str(steps)).isdecimal() or int(text) < 1:
        raise ValueError(f"steps {steps!r}: a process in continuous time takes a whole number of steps, at least 1")
    return int(text)
