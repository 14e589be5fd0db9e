"""Sampling: from noise to images by DDPM, DDIM, Euler, Heun and DPM-Solver++, and from images to noise.

Shapes: B samples, C channels, H W size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Denoiser
from .dpm import DPMFast, DPMSolver
from .edm import Edm
from .flow import Flow
from .gaussian import Gaussian
from .guidance import Guidance, guided
from .inpainting import Inpaint
from .process import Generators, Network, Process
from .sampling import Progress, Run, Sampler, noise_of


@dataclass(frozen=True)
class Ancestral(Sampler):
    """DDPM: each step draws from what the network says of the step before. `steps` as `kept_steps` has them."""

    steps: int | str = 250

    def check(self, process: Process) -> None:
        gaussian(self, process).respaced(self.steps)

    def step(self, run: Run, i: int, x: Tensor) -> tuple[Tensor, Tensor, int]:
        process = gaussian(self, run.process).respaced(self.steps)
        index = torch.full((len(x),), run.count - 1 - i, device=x.device)
        output = run.predict(x, run.levels[i])
        there, x0 = process.ancestral(output, x, index, run.fresh(x) if i < run.count - 1 else x, run.clip)
        return there, x0, i + 1


@dataclass(frozen=True)
class DDIM(Sampler):
    """x' = alpha' x0 + sqrt(sigma'^2 - s^2) noise + s fresh, with s = eta times DDPM's deviation.

    `eta` 0 draws nothing, 1 as much as DDPM. On a process that is not Gaussian, eta 0 is Euler's method on its
    differential equation.
    """

    steps: int | str = 50
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM eta {self.eta}: 0 (no fresh noise) to 1 (as much as DDPM) is wanted")

    def check(self, process: Process) -> None:
        if self.eta:
            gaussian(self, process).respaced(self.steps)

    def step(self, run: Run, i: int, x: Tensor) -> tuple[Tensor, Tensor, int]:
        here, there = run.levels[i : i + 2]
        if not self.eta:
            x0 = run.image(x, here)
            return there.alpha * x0 + there.sigma * noise_of(x, x0, here), x0, i + 1
        process = gaussian(self, run.process).respaced(self.steps)
        index = torch.full((len(x),), run.count - 1 - i, device=x.device)
        fresh = run.fresh(x) if i < run.count - 1 else None
        return (*process.ddim(run.predict(x, here), x, index, self.eta, fresh, run.clip), i + 1)


@dataclass(frozen=True)
class Euler(Sampler):
    """One straight step along dx = x0 d(alpha) + noise d(sigma), from level to level: rectified flow's sampler."""

    steps: int | str = 50

    def step(self, run: Run, i: int, x: Tensor) -> tuple[Tensor, Tensor, int]:
        return DDIM(self.steps).step(run, i, x)


@dataclass(frozen=True)
class Heun(Sampler):
    """Each step looks again where Euler's would end, and takes the mean of both directions; a last step that ends in an
    image is Euler's: 2 steps - 1 calls. EDM's sampler, and on other processes the same rule for their equation.

    `churn` adds noise before each step where sigma lies in [churn_min, churn_max] (EDM only): sigma grows by the share
    min(churn / steps, sqrt(2) - 1), with noise of `churn_noise` deviation.
    """

    steps: int | str = 18
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    wide = True

    def __post_init__(self) -> None:
        if min(self.churn, self.churn_min, self.churn_noise) < 0 or self.churn_min > self.churn_max:
            raise ValueError(
                f"{self}: churn and churn_noise of at least 0, and 0 <= churn_min <= churn_max, are wanted"
            )

    def check(self, process: Process) -> None:
        if self.churn and not isinstance(process, Edm):
            raise ValueError(f"Heun churn {self.churn}: {type(process).__name__} has no levels to go back to; Edm has")

    def step(self, run: Run, i: int, x: Tensor) -> tuple[Tensor, Tensor, int]:
        here, there = run.levels[i : i + 2]
        if self.churn and isinstance(run.process, Edm) and self.churn_min <= here.sigma <= self.churn_max:
            back = run.process.level(here.sigma * (1 + min(self.churn / run.count, math.sqrt(2) - 1)))
            x = x + math.sqrt(back.sigma**2 - here.sigma**2) * self.churn_noise * run.fresh(x)
            here = back
        x0 = run.image(x, here)
        noise = noise_of(x, x0, here)
        alpha, sigma = there.alpha - here.alpha, there.sigma - here.sigma
        if not there.sigma:
            return x + alpha * x0 + sigma * noise, x0, i + 1
        end = x + alpha * x0 + sigma * noise
        again = run.image(end, there)
        noise = (noise + noise_of(end, again, there)) / 2
        return x + alpha * (x0 + again) / 2 + sigma * noise, x0, i + 1


SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": Ancestral, "ddim": DDIM, "euler": Euler, "heun": Heun, "dpm++": DPMSolver, "dpm-fast": DPMFast,
}  # fmt: skip


def default_sampler(process: Process) -> Sampler:
    """What the process is published with: DiT's 250 steps of DDPM, DiMR's of DPM-Solver, EDM's 18 of Heun; 50 of Euler
    for a flow."""
    if process.time == "log_snr" and isinstance(process, Gaussian):
        return DPMFast(f"uniform{min(250, process.steps - 1)}")
    if isinstance(process, Gaussian):
        return Ancestral(min(250, process.steps))
    return Euler() if isinstance(process, Flow) else Heun()


def gaussian(wanting: object, process: Process) -> Gaussian:
    """The process, where it is one of discrete steps; otherwise raises ValueError."""
    if not isinstance(process, Gaussian):
        raise ValueError(f"{wanting} goes by discrete steps, which {type(process).__name__} has not: Gaussian has")
    return process


@torch.no_grad()
def sample(process: Process, network: Network, noise: Tensor, y: Tensor | None = None, *, sampler: Sampler,
           guidance: Guidance | None = None, null: Tensor | None = None, generator: Generators = None,
           clip: float | None = None, inpaint: Inpaint | None = None,
           callback: Callable[[Progress], None] | None = None) -> Tensor:  # fmt: skip
    """Images (B C H W) from unit normal `noise` of that shape (`draw`), on its device and in its type.

    y: conditions, guided away from `null` (None: `network.null(y)`) by `guidance`. `generator`: for what is drawn on
    the way, as in `draw`. `clip`: bound of the images a step goes by, 1.0 for pixels. `callback` is told after every
    step. Each step costs its sampler's network calls, over a double batch where guidance is on, and nothing else.
    Raises ValueError, before the network is asked, for steps that the process does not have, for a sampler that does
    not go with it, and for guidance where there is no null condition.
    """
    if noise.ndim != 4 or (y is not None and len(y) != len(noise)):
        raise ValueError(
            f"noise {tuple(noise.shape)}, conditions {None if y is None else tuple(y.shape)}: (B, C, H, W) and B"
        )
    if clip is not None and not clip > 0:
        raise ValueError(f"clip {clip}: a bound above 0, or None for images without one")
    if isinstance(network, Denoiser):
        process.check(network)
        if network.training:
            raise ValueError(
                f"{network.called} is in training mode, where it leaves conditions out: call eval() before"
            )
    sampler.check(process)
    dtype = torch.promote_types(noise.dtype, torch.float32)
    predict = guided(network, process, y, guidance, null, noise.dtype)
    run = Run(process, predict, process.levels(sampler.steps), generator, clip, dtype)
    if inpaint is not None:
        inpaint.check(noise.shape)
        if inpaint.repeats > 1 and not sampler.single:
            raise ValueError(
                f"inpainting repeats {inpaint.repeats}: {sampler} goes by steps before; ddpm, ddim and heun do not"
            )
    wide = sampler.wide and noise.device.type != "mps"  # which has no float64
    x = process.start(noise.double() if wide else noise.to(dtype), run.levels[0])
    i = 0
    while i < run.count:
        for last in reversed(range(1 if inpaint is None else inpaint.repeats)):
            there, x0, j = sampler.step(run, i, x)
            if inpaint is not None:
                there = inpaint.put(there, run.levels[j], run)
                x = inpaint.back(there, run.levels[j], run.levels[i], run) if last else there
            else:
                x = there
        i = j
        if callback is not None:
            callback(Progress(i, run.count, run.levels[i], x, x0))
    if inpaint is not None:
        x = torch.where(inpaint.keep.to(x.device), inpaint.known.to(x), x)  # also where the last level is no image
    return x.to(noise.dtype)


@torch.no_grad()
def reverse(process: Process, network: Network, x0: Tensor, y: Tensor | None = None, *, steps: int | str = 250,
            guidance: Guidance | None = None, null: Tensor | None = None) -> Tensor:  # fmt: skip
    """The noise (B C H W) that DDIM (eta 0) in as many steps makes the images of, nearly: `steps` network calls."""
    whole = gaussian("reverse", process)
    short = whole.respaced(steps)
    predict = guided(network, process, y, guidance, null, x0.dtype)
    levels, x = whole.levels(steps), x0.to(torch.promote_types(x0.dtype, torch.float32))
    for i in range(short.length):
        index = torch.full((len(x),), i, device=x.device)
        x, _ = short.ddim_reverse(predict(x, levels[short.length - 1 - i]), x, index)
    return x.to(x0.dtype)
