"""Rectified flow (Liu et al., arXiv 2209.03003): straight ways between noise and images.

Shapes: B samples, C channels, H W size; t (B) in (0, 1).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .edm import whole
from .process import Level, Losses, Network, Process, draw, each_mean, over, taken, uniform

LEAST = 0.05  # the smallest t that the velocity of a predicted image is divided by


@dataclass(frozen=True)
class Flow(Process):
    """x = (1 - t) x0 + t noise, of which the network predicts the velocity noise - x0 or the image; it is told 1,000 t.

    A network that `predicts` the "image" is judged by the velocity that its image means, (x - image) / t with t at
    least 0.05 (Li and He, arXiv 2511.13720): large patches of images need few channels, their noise needs all.
    In training t is uniform, or the sigmoid of a unit normal number (`times` "logit_normal", as Stable Diffusion 3,
    arXiv 2403.03206). `shift` moves times towards noise, in training and sampling: s t / (1 + (s - 1) t), for larger
    images.
    """

    shift: float = 1.0
    times: Literal["uniform", "logit_normal"] = "uniform"
    predicts: Literal["velocity", "image"] = "velocity"
    time: Literal["step"] = "step"

    def __post_init__(self) -> None:
        known = {"times": ("uniform", "logit_normal"), "predicts": ("velocity", "image"), "time": ("step",)}
        if not self.shift > 0 or any(getattr(self, name) not in those for name, those in known.items()):
            raise ValueError(
                f"{self}: shift above 0, times uniform or logit_normal, predicts velocity or image, time step are there"
            )

    def loss(self, network: Network, x0: Tensor, y: Tensor | None = None, *,
             generator: torch.Generator | None = None, noise: Tensor | None = None,
             t: Tensor | None = None) -> Losses:  # fmt: skip
        """As `Process.loss`; t (B) are the times themselves, which are not shifted then."""
        if t is None:
            normal = self.times == "logit_normal"
            t = draw(x0.shape[:1], generator, x0.device).sigmoid() if normal else uniform(len(x0), generator, x0.device)
            t = self.shift * t / (1 + (self.shift - 1) * t)
        noise = draw(x0.shape, generator, x0.device) if noise is None else noise
        x0 = x0 if x0.dtype == torch.float64 else x0.float()
        at = over(t, x0)
        answers, kept = taken(network((1 - at) * x0 + at * noise, 1000 * t, y))
        if odd := [tuple(a.shape) for a in answers if a.shape != x0.shape]:
            raise ValueError(
                f"Flow asks for predictions of the image's shape {tuple(x0.shape)}; the network gave {odd[0]}"
            )
        wanted = x0 / at.clamp_min(LEAST) if self.predicts == "image" else noise - x0
        answers = [a / at.clamp_min(LEAST) for a in answers] if self.predicts == "image" else answers
        error = torch.stack([each_mean((wanted - a) ** 2, kept) for a in answers]).mean(0)
        return Losses(error, error.detach(), None, 1000 * t)

    def levels(self, steps: int | str) -> tuple[Level, ...]:
        """As `Process.levels`; even in t before it is shifted; the last is the image itself."""
        even = [1 - i / whole(steps) for i in range(whole(steps) + 1)]
        return tuple(Level(1 - t, t, 1000 * t, t) for t in (self.shift * e / (1 + (self.shift - 1) * e) for e in even))

    def denoised(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        answer = output[:, : x.shape[1]]
        return answer if self.predicts == "image" else x - level.sigma * answer
