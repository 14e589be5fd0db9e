"""Gaussian diffusion in discrete steps: DDPM (arXiv 2006.11239) with learned variances (2102.09672), as DiT trains it.

Steps are counted by an index i, from 0 (least noise) to T - 1; A_i = prod (1 - b) up to it, A_-1 = 1.
Shapes: B samples, C channels, H W size; i (B) int64.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .process import Level, Losses, Network, Process, draw, each_mean, over, taken
from .schedules import Tables, betas, kept_steps, tables


@dataclass(frozen=True)
class Step:
    """What the network's answer says of the step before: a normal distribution; and of the image."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Gaussian(Process):
    """x_i = sqrt(A_i) x0 + sqrt(1 - A_i) noise, in `steps` steps with `betas` ("linear", "cosine", "sd").

    `predicts`: the noise, the image x0, or the velocity sqrt(A) noise - sqrt(1 - A) x0. `variance` of a step back:
    "large" (b) or "small" (the posterior's), or "learned" between the two, by a second half of the network's channels.
    `objective`: "mse" of what is predicted, mean over elements, and with a learned variance also the variational bound
    in bits, which trains the variance alone; "rescaled_mse" takes T / 1000 of the bound; "kl" is the bound by itself,
    "rescaled_kl" T times it. `time`: "step" tells the network i, "log_snr" (i + 1) / T * 8 - 4 (DiMR).
    A network that predicts more than once is trained on all: the noise (or image, velocity) of an r times coarser one
    is the sum over its r x r cells divided by r, so that noise stays of unit variance; `scales` are the weights of
    their errors, coarse to fine, which otherwise are averaged. `kept`: the steps of a shorter process (`respaced`).

    DiT: Gaussian(). DiMR-XL/2R: Gaussian(betas="sd", variance="small", time="log_snr", scales=(0.25, 1.0)).
    """

    steps: int = 1000
    betas: str = "linear"
    predicts: Literal["noise", "image", "velocity"] = "noise"
    variance: Literal["learned", "large", "small"] = "learned"
    objective: Literal["mse", "rescaled_mse", "kl", "rescaled_kl"] = "mse"
    time: Literal["step", "log_snr"] = "step"
    scales: tuple[float, ...] | None = None
    kept: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        betas(self.betas, self.steps)
        allowed = {
            "predicts": ("noise", "image", "velocity"), "variance": ("learned", "large", "small"),
            "objective": ("mse", "rescaled_mse", "kl", "rescaled_kl"), "time": ("step", "log_snr"),
        }  # fmt: skip
        for name, choice in allowed.items():
            if (value := getattr(self, name)) not in choice:
                raise ValueError(f"Gaussian {name} {value!r}: {', '.join(choice)} are there")
        for name in ("scales", "kept"):  # YAML knows no tuples
            if (found := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(found))

    @property
    def outputs(self) -> int:
        return 1 + (self.variance == "learned")

    @property
    def length(self) -> int:
        """How many steps there are."""
        return self.steps if self.kept is None else len(self.kept)

    def respaced(self, spec: int | str) -> "Gaussian":
        """The shorter process of some of its steps (`kept_steps`); the network is told the original ones' numbers."""
        return respaced(self, spec)

    # ----------------------------------------------------------------------------------------------------- the process

    def tables(self, device: torch.device | str = "cpu") -> Tables:
        """What the process looks up, by i."""
        return tables(self.betas, self.steps, self.kept, torch.device(device))

    def told(self, i: Tensor) -> Tensor:
        """What the network is told (B) float32 of steps i (B)."""
        number = i if self.kept is None else torch.tensor(self.kept, device=i.device)[i]
        return number.float() if self.time == "step" else (number.float() + 1) / self.steps * 8 - 4

    def noised(self, x0: Tensor, i: Tensor, noise: Tensor) -> Tensor:
        a = self.tables(i.device).alphas_cumprod[i]
        return over(a.sqrt(), x0) * x0 + over((1 - a).sqrt(), x0) * noise

    def posterior(self, x0: Tensor, x: Tensor, i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x_(i-1), where x0 and x_i are known: mean (B C H W), variance and its clipped logarithm (B 1 1 1)."""
        of = self.tables(i.device)
        mean = over(of.posterior_of_image[i], x) * x0 + over(of.posterior_of_state[i], x) * x
        return mean, over(of.posterior_variance[i], x), over(of.posterior_log_variance_clipped[i], x)

    def prior(self, x0: Tensor) -> Tensor:
        """KL (B) of the noisiest step's x to the unit normal in bits, mean over elements: near 0, or T is short."""
        a = self.tables(x0.device).alphas_cumprod[-1].expand(len(x0))
        mean, log_variance = over(a.sqrt(), x0) * x0, over((1 - a).log(), x0)
        return each_mean(
            divergence(mean, log_variance, torch.zeros_like(mean), torch.zeros_like(log_variance))
        ) / math.log(2)

    # ------------------------------------------------------------------------------------------- what an answer means

    def image(self, answer: Tensor, x: Tensor, i: Tensor) -> Tensor:
        """x0 (B C H W) as the first channels of the network's answer for x_i have it."""
        a = self.tables(i.device).alphas_cumprod[i]
        if self.predicts == "image":
            return answer[:, : x.shape[1]]
        if self.predicts == "noise":
            return over((1 / a).sqrt(), x) * x - over((1 / a - 1).sqrt(), x) * answer[:, : x.shape[1]]
        return over(a.sqrt(), x) * x - over((1 - a).sqrt(), x) * answer[:, : x.shape[1]]

    def step(self, output: Tensor, x: Tensor, i: Tensor, clip: float | None = None) -> Step:
        """Of x_(i-1), as the network's answer for x_i (B C or 2C, H W) has it; `clip` bounds the image it means."""
        of = self.tables(i.device)
        x0 = self.image(output, x, i)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        mean, _, small = self.posterior(x0, x, i)
        if self.variance == "learned":
            if output.shape[1] != 2 * x.shape[1]:
                raise ValueError(
                    f"a learned variance takes {2 * x.shape[1]} channels for an image of {x.shape[1]}, and the network "
                    f"gave {output.shape[1]}: set variance to 'large' or 'small'"
                )
            share = (output[:, x.shape[1] :] + 1) / 2
            large = over(of.betas[i].log(), x)
            return Step(mean, share * large + (1 - share) * small, x0)
        log = small if self.variance == "small" else over(of.log_variance_large[i], x)
        return Step(mean, log.expand_as(x), x0)

    def bound(self, output: Tensor, x0: Tensor, x: Tensor, i: Tensor, clip: float | None = None,
              kept: Tensor | None = None) -> Tensor:  # fmt: skip
        """The step's term (B) of the variational bound in bits, mean over elements (of the tokens kept): KL of the
        posterior to the network's step; at i = 0 the negative log-likelihood of x0 as one of 256 levels in [-1, 1]."""
        true, _, true_log = self.posterior(x0, x, i)
        found = self.step(output, x, i, clip)
        terms = divergence(true, true_log, found.mean, found.log_variance)
        first = -discrete_log_likelihood(x0, found.mean, found.log_variance / 2)
        return each_mean(torch.where((i == 0).view(-1, 1, 1, 1), first, terms), kept) / math.log(2)

    # -------------------------------------------------------------------------------------------------------- training

    def loss(self, network: Network, x0: Tensor, y: Tensor | None = None, *,
             generator: torch.Generator | None = None, noise: Tensor | None = None,
             t: Tensor | None = None) -> Losses:  # fmt: skip
        """As `Process.loss`; t (B) int64 are steps i, uniform where they are not given."""
        if t is None:
            where = x0.device if generator is None else generator.device
            t = torch.randint(self.length, x0.shape[:1], generator=generator, device=where).to(x0.device)
        if noise is None:
            noise = draw(x0.shape, generator, x0.device)
        x0 = x0 if x0.dtype == torch.float64 else x0.float()
        x, told = self.noised(x0, t, noise), self.told(t)
        answers, kept = taken(network(x, told, y))
        channels = x0.shape[1]
        target = noise if self.predicts == "noise" else x0 if self.predicts == "image" else self.velocity(x0, t, noise)
        each = [each_mean((coarser(target, a.shape[-2:]) - a[:, :channels]) ** 2, kept) for a in answers]
        error = weighed(each, self.scales)
        if self.objective in ("kl", "rescaled_kl"):
            bound = self.bound(answers[-1], x0, x, t, kept=kept) * (
                self.length if self.objective == "rescaled_kl" else 1
            )
            return Losses(bound, error.detach(), bound.detach(), told)
        if self.variance != "learned":
            return Losses(error, error.detach(), None, told)
        frozen = torch.cat([answers[-1][:, :channels].detach(), answers[-1][:, channels:]], 1)
        bound = self.bound(frozen, x0, x, t, kept=kept) * (
            self.length / 1000 if self.objective == "rescaled_mse" else 1
        )
        return Losses(error + bound, error.detach(), bound.detach(), told)

    def velocity(self, x0: Tensor, i: Tensor, noise: Tensor) -> Tensor:
        a = self.tables(i.device).alphas_cumprod[i]
        return over(a.sqrt(), x0) * noise - over((1 - a).sqrt(), x0) * x0

    # -------------------------------------------------------------------------------------------------------- sampling

    def ancestral(
        self, output: Tensor, x: Tensor, i: Tensor, noise: Tensor, clip: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """(x_(i-1), x0): one step of DDPM, with fresh unit noise but at i = 0."""
        found = self.step(output, x, i, clip)
        live = (i > 0).view(-1, 1, 1, 1)
        return found.mean + live * (found.log_variance / 2).exp() * noise, found.x0

    def ddim(self, output: Tensor, x: Tensor, i: Tensor, eta: float = 0.0, noise: Tensor | None = None,
             clip: float | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(x_(i-1), x0): one step of DDIM (arXiv 2010.02502); eta 0 goes without fresh noise, 1 is as DDPM."""
        of = self.tables(i.device)
        x0 = self.image(output, x, i)
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        a, before = over(of.alphas_cumprod[i], x), over(of.alphas_cumprod_prev[i], x)
        sigma = eta * ((1 - before) / (1 - a)).sqrt() * (1 - a / before).sqrt()  # 0 at i = 0
        there = x0 * before.sqrt() + (1 - before - sigma**2).sqrt() * self.noise(x0, x, i)
        return (there if noise is None else there + sigma * noise), x0

    def ddim_reverse(self, output: Tensor, x: Tensor, i: Tensor, clip: float | None = None) -> tuple[Tensor, Tensor]:
        """(x_(i+1), x0): DDIM backwards, towards the noise that gives this image; from T - 1 to noise alone."""
        x0 = self.image(output, x, i)
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        after = over(self.tables(i.device).alphas_cumprod_next[i], x)
        return x0 * after.sqrt() + (1 - after).sqrt() * self.noise(x0, x, i), x0

    def noise(self, x0: Tensor, x: Tensor, i: Tensor) -> Tensor:
        """What x_i has beside that x0."""
        a = self.tables(i.device).alphas_cumprod[i]
        return (over((1 / a).sqrt(), x) * x - x0) / over((1 / a - 1).sqrt(), x)

    def levels(self, steps: int | str) -> tuple[Level, ...]:
        """As `Process.levels`, for `kept_steps` and the image behind them; "uniform250": even in a time from 1 to 1/T,
        between the steps too (log A is linear between them), and the last is no clean image, but step 0."""
        a = replace(self, kept=None).tables().alphas_cumprod.numpy()
        if isinstance(steps, str) and steps.startswith("uniform"):
            count = steps.removeprefix("uniform")
            if not count.isdecimal() or not 0 < int(count) < self.steps:
                raise ValueError(
                    f"steps {steps!r}: 'uniform' takes 1 to {self.steps - 1} of the schedule's steps, as 'uniform250'"
                )
            numbers = np.linspace(self.steps - 1, 0, int(count) + 1)
            return tuple(self.level(float(np.exp(np.interp(n, np.arange(self.steps), np.log(a)))), n) for n in numbers)
        return (*(self.level(float(a[n]), n) for n in reversed(kept_steps(self.steps, steps))), self.level(1.0, -1))

    def level(self, a: float, number: float) -> Level:
        told = number if self.time == "step" else (number + 1) / self.steps * 8 - 4
        return Level(a**0.5, (1 - a) ** 0.5, float(told), float(number + 1) / self.steps)

    def denoised(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        answer = output[:, : x.shape[1]]
        if self.predicts == "image":
            return answer
        if self.predicts == "noise":
            return (1 / level.alpha) * x - (level.sigma / level.alpha) * answer
        return level.alpha * x - level.sigma * answer


@lru_cache(maxsize=64)
def respaced(process: Gaussian, spec: int | str) -> Gaussian:
    return replace(process, kept=kept_steps(process.steps, spec))


def coarser(target: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(B C H W) -> (B C h w): the sum over cells of r x r divided by r, which leaves noise of unit variance."""
    ratio = target.shape[-1] // size[-1]
    if tuple(s * ratio for s in size) != tuple(target.shape[-2:]):
        raise ValueError(
            f"a prediction of {tuple(size)} is no whole number of times coarser than {tuple(target.shape[-2:])}"
        )
    return target if ratio == 1 else F.avg_pool2d(target, ratio) * ratio


def weighed(errors: list[Tensor], scales: tuple[float, ...] | None) -> Tensor:
    """The errors (B) of several predictions in one: their weighted sum, or their mean."""
    if scales is None:
        return torch.stack(errors).mean(0)
    if len(scales) != len(errors):
        raise ValueError(f"scales {scales}: {len(scales)} weights for the {len(errors)} predictions of the network")
    return torch.stack([w * e for w, e in zip(scales, errors, strict=True)]).sum(0)


def divergence(mean: Tensor, log: Tensor, mean2: Tensor, log2: Tensor) -> Tensor:
    """KL of one normal distribution to another, in nats, each element by itself; `log` of the variances."""
    return 0.5 * (-1 + log2 - log + (log - log2).exp() + (mean - mean2) ** 2 * (-log2).exp())


def discrete_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Of x in [-1, 1] as one of 256 levels, under a normal distribution, in nats; the outermost levels are open."""
    inverse = (-log_scale).exp()
    upper, lower = normal_cdf(inverse * (x - mean + 1 / 255)), normal_cdf(inverse * (x - mean - 1 / 255))
    inside = (upper - lower).clamp(min=1e-12).log()
    last = (1 - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, upper.clamp(min=1e-12).log(), torch.where(x > 0.999, last, inside))


def normal_cdf(x: Tensor) -> Tensor:
    """By the tanh approximation that GELU has too."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
