"""What a sampler is, and what it works with while it runs.

Shapes: B samples, C channels, H W size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .guidance import Predict
from .process import Generators, Level, Process, draw


@dataclass(frozen=True)
class Run:
    """One run of a sampler: levels[0] is where it starts, levels[-1] where it ends."""

    process: Process
    predict: Predict
    levels: tuple[Level, ...]
    generator: Generators = None
    clip: float | None = None
    dtype: torch.dtype = torch.float32  # of what is computed with the network's answer, whatever the state is kept in
    history: list[tuple[Level, Tensor]] = field(default_factory=list)  # images found before, for who goes by several

    @property
    def count(self) -> int:
        return len(self.levels) - 1

    def image(self, x: Tensor, level: Level) -> Tensor:
        """x0 as the network has it: one call, with the state in `dtype`."""
        seen = x.to(self.dtype)
        x0 = self.process.denoised(self.predict(seen, level), seen, level).to(x.dtype)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def fresh(self, x: Tensor) -> Tensor:
        """Unit normal noise of that shape."""
        return draw(x.shape, self.generator, x.device).to(x.dtype)


@dataclass(frozen=True)
class Progress:
    """After step `step` of `of`: the state x at `level`, and the image x0 that the step went by."""

    step: int
    of: int
    level: Level
    x: Tensor
    x0: Tensor


class Sampler:
    """From noise to images in `steps`: a number, or what the process has beside (`Gaussian.levels`)."""

    steps: int | str
    wide = False  # whether the state is kept in float64
    single = True  # whether a step needs nothing but the state, so that it can be repeated

    def check(self, process: Process) -> None:
        """Raises ValueError where it cannot sample that process."""

    def step(self, run: Run, i: int, x: Tensor) -> tuple[Tensor, Tensor, int]:
        """From x at levels[i]: (x at levels[j], the image it went by, j > i)."""
        raise AssertionError(f"{type(self).__name__} does not say how it steps")


def noise_of(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """What x has beside that image."""
    return (x - level.alpha * x0) / level.sigma
