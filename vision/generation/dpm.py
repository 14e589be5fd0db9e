"""DPM-Solver++ (Lu et al., arXiv 2211.01095): exact in the linear part, of second or third order in the network's.

Steps are measured in l = ln(alpha / sigma). At an end where it is infinite (the image itself, or noise alone) a step is
of first order, which is exact for an image that stays the same.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from .process import Level
from .sampling import Run, Sampler


def log_snr(level: Level) -> float:
    """l, infinite where there is no noise or no image."""
    if not level.sigma:
        return math.inf
    return math.log(level.alpha / level.sigma) if level.alpha else -math.inf


def first(x: Tensor, x0: Tensor, here: Level, there: Level) -> Tensor:
    """x at `there`, if the image were x0 all the way."""
    gone = math.expm1(log_snr(here) - log_snr(there))
    return there.sigma / here.sigma * x - there.alpha * gone * x0


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """Multistep: each step costs one call, and goes by the images of the `order` - 1 steps before it too.

    The last step is of first order where it ends in an image, or where there are fewer than 15; with fewer than 15 the
    one before is of second at most (as diffusers' DPMSolverMultistepScheduler).
    """

    steps: int | str = 20
    order: int = 2
    single = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPMSolver order {self.order}: 1, 2 or 3")

    def step(self, run: Run, i: int, x: Tensor) -> tuple[Tensor, Tensor, int]:
        here, there = run.levels[i], run.levels[i + 1]
        x0 = run.image(x, here)
        run.history.append((here, x0))
        del run.history[: -self.order]
        order, few = len(run.history), run.count < 15
        if i == run.count - 1 and (few or not there.sigma):
            order = 1
        elif i == run.count - 2 and few:
            order = min(order, 2)
        found = first(x, x0, here, there)
        if order > 1:
            h = log_snr(there) - log_snr(here)
            (before, x1) = run.history[-2]
            r0 = (log_snr(here) - log_snr(before)) / h
            slope = (x0 - x1) / r0
            if order == 2:
                found = found - 0.5 * there.alpha * math.expm1(-h) * slope
            else:
                (earlier, x2) = run.history[-3]
                r1 = (log_snr(before) - log_snr(earlier)) / h
                bend = (slope - (x1 - x2) / r1) / (r0 + r1)
                found = found + there.alpha * (math.expm1(-h) / h + 1) * (slope + r0 * bend)
                found = found - there.alpha * ((math.expm1(-h) + h) / h**2 - 0.5) * bend
        return found, x0, i + 1


@dataclass(frozen=True)
class DPMFast(Sampler):
    """Single-step: groups of `order` calls each, whose orders fall at the end so that the calls are `steps` in all.

    DiMR samples with DPMFast("uniform250"): it ends at the schedule's first step, not in the image.
    """

    steps: int | str = 250
    order: int = 3

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPMFast order {self.order}: 1, 2 or 3")

    def orders(self, levels: tuple[Level, ...]) -> list[int]:
        """Of the groups one after the other."""
        open_first, open_last = not levels[0].alpha, not levels[-1].sigma
        count = len(levels) - 1
        if count == 1:
            return [1]
        count -= open_first + open_last
        rest = count % self.order
        groups = [self.order] * (count // self.order) + ([rest] if rest else [])
        if self.order == 3 and count and not rest:
            groups[-1:] = [2, 1]
        return [1] * open_first + groups + [1] * open_last

    def step(self, run: Run, i: int, x: Tensor) -> tuple[Tensor, Tensor, int]:
        order, at = 0, 0
        for order in self.orders(run.levels):
            if at == i:
                break
            at += order
        here, there = run.levels[i], run.levels[i + order]
        x0 = run.image(x, here)
        if order == 1:
            return first(x, x0, here, there), x0, i + 1
        inner = run.levels[i + 1 : i + order]
        h = log_snr(there) - log_snr(here)
        r = [(log_snr(level) - log_snr(here)) / h for level in inner]
        change = run.image(first(x, x0, here, inner[0]), inner[0]) - x0
        if order == 3:
            bend = math.expm1(-r[1] * h) / (r[1] * h) + 1
            between = first(x, x0, here, inner[1]) + r[1] / r[0] * inner[1].alpha * bend * change
            change = run.image(between, inner[1]) - x0
            return first(x, x0, here, there) + there.alpha * (math.expm1(-h) / h + 1) / r[1] * change, x0, i + 3
        return first(x, x0, here, there) - 0.5 / r[0] * there.alpha * math.expm1(-h) * change, x0, i + 2
