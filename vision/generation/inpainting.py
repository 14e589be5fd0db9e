"""Inpainting: what is known of an image is put back, with the noise of the level, after each step of a sampler."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .process import Level
from .sampling import Run


@dataclass(frozen=True)
class Inpaint:
    """`known` (B C H W) where `keep` (B 1 H W), bool, is True; either may have a first dimension of 1, for all samples.

    `repeats`: how often each step is taken, with the noise of its length put back between, so that what is made agrees
    with what is known (RePaint, Lugmayr et al., arXiv 2201.09865); each time costs the step's calls. Panels of an
    In-Context LoRA that are given are the same: the whole canvas is one image.
    """

    known: Tensor
    keep: Tensor
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.keep.dtype != torch.bool:
            raise ValueError(f"inpainting keep of {self.keep.dtype}: bool is wanted, True where the image is known")
        if self.repeats < 1:
            raise ValueError(f"inpainting repeats {self.repeats}: at least 1 is wanted")

    def check(self, shape: torch.Size) -> None:
        """Raises ValueError where it does not go with samples of that shape."""
        wanted = {"known": tuple(shape[1:]), "keep": (1, *shape[2:])}
        for name, rest in wanted.items():
            found = tuple(getattr(self, name).shape)
            if len(found) != 4 or found[0] not in (1, shape[0]) or found[1:] != rest:
                raise ValueError(
                    f"inpainting {name} of shape {found}: ({shape[0]} or 1, {', '.join(map(str, rest))}) is wanted"
                )

    def put(self, x: Tensor, level: Level, run: Run) -> Tensor:
        """x at that level, with what is known in its place."""
        known = level.alpha * self.known.to(x)
        if level.sigma:
            known = known + level.sigma * run.fresh(x)
        return torch.where(self.keep.to(x.device), known, x)

    def back(self, x: Tensor, here: Level, there: Level, run: Run) -> Tensor:
        """x from `here` to the noisier level `there`."""
        ratio = there.alpha / here.alpha
        fresh: Tensor = max(there.sigma**2 - (ratio * here.sigma) ** 2, 0) ** 0.5 * run.fresh(x)
        return ratio * x + fresh
