"""How much noise each step of a Gaussian process adds, and which of its steps a shorter process keeps."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Numbers = npt.NDArray[np.float64]


def linear(steps: int) -> Numbers:
    """From 1e-4 to 0.02 over 1,000 steps, and as much noise over any other number (DDPM, DiT)."""
    return np.linspace(0.1 / steps, 20 / steps, steps)


def cosine(steps: int) -> Numbers:
    """A_t follows a squared cosine, no step takes more than 0.999 (Nichol and Dhariwal, arXiv 2102.09672)."""
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.asarray(np.minimum(1 - f[1:] / f[:-1], 0.999))


def stable_diffusion(steps: int) -> Numbers:
    """Linear in the square root, from 0.00085 to 0.012 (latent diffusion, DiMR)."""
    return np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2


BETAS: dict[str, Callable[[int], Numbers]] = {"linear": linear, "cosine": cosine, "sd": stable_diffusion}


def betas(name: str, steps: int) -> Numbers:
    """(steps) in float64. Raises ValueError for a name that there is not, and for too few steps to be a process."""
    if name not in BETAS:
        raise ValueError(f"betas {name!r}: there are {', '.join(BETAS)}")
    if steps < 1:
        raise ValueError(f"steps {steps}: a process has at least one")
    found = BETAS[name](steps)
    if found.max() >= 1:
        raise ValueError(f"{name} betas over {steps} steps reach {found.max():.3g}, where nothing is left of the image")
    return found


def kept_steps(total: int, spec: int | str) -> tuple[int, ...]:
    """Which of `total` steps a process of fewer keeps, ascending.

    250, "250": so many, evenly from the first to the last. "10,20": as many of each of two equal sections. "ddim50":
    each 20th of 1,000, from 0. "linspace20": the upper ends of 20 equal parts. Raises ValueError for more than there
    are, and for a stride that does not give the number.
    """
    text = str(spec)
    if re.fullmatch(r"ddim[1-9]\d*", text):
        wanted = int(text[4:])
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == wanted:
                return tuple(range(0, total, stride))
        raise ValueError(
            f"steps {text!r}: no whole stride takes {wanted} of {total} steps; try {wanted} without 'ddim'"
        )
    if re.fullmatch(r"linspace[1-9]\d*", text):
        if (wanted := int(text[8:])) >= total:
            raise ValueError(f"steps {text!r}: more than the schedule's {total} steps allow, at most {total - 1}")
        return tuple(int(i) for i in np.linspace(0, total - 1, wanted + 1).round()[1:])
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ValueError(
            f"steps {spec!r}: a number, 'ddim50', 'linspace20', 'uniform250' or numbers like '10,20' are wanted"
        )
    counts = [int(c) for c in text.split(",")]
    if sum(counts) > total:
        raise ValueError(f"steps {spec!r}: that is more than the schedule has, which is {total} steps")
    size, longer = divmod(total, len(counts))
    taken, first = [], 0
    for i, count in enumerate(counts):
        here = size + (i < longer)
        if count > here:
            raise ValueError(f"steps {spec!r}: section {i + 1} has {here} of the schedule's {total} steps, not {count}")
        taken += [first + round(k * (here - 1) / max(count - 1, 1)) for k in range(count)]
        first += here
    return tuple(taken)


@dataclass(frozen=True)
class Tables:
    """Of each step kept (T), in float64, as the letters of the papers have it: betas b, A = prod (1 - b), A before and
    after it; the posterior's variance and the two weights of its mean; logarithms of variances."""

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    alphas_cumprod_next: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor  # with the second in place of the first, which is log 0
    posterior_of_image: Tensor
    posterior_of_state: Tensor
    log_variance_large: Tensor  # of the betas, with the posterior's second in place of the first


@lru_cache(maxsize=64)
def tables(name: str, steps: int, kept: tuple[int, ...] | None, device: torch.device) -> Tables:
    """Of the process of `steps` steps with those betas, or of the shorter one of the steps kept."""
    b = betas(name, steps)
    if kept is not None:
        there = np.cumprod(1 - b)[list(kept)]
        b = 1 - there / np.append(1.0, there[:-1])
    a = np.cumprod(1 - b)
    before, after = np.append(1.0, a[:-1]), np.append(a[1:], 0.0)
    variance = b * (1 - before) / (1 - a)
    second = variance[1] if len(b) > 1 else b[0]
    found = (
        b, a, before, after, variance, np.log(np.append(second, variance[1:])), b * before**0.5 / (1 - a),
        (1 - before) * (1 - b) ** 0.5 / (1 - a), np.log(np.append(second, b[1:])),
    )  # fmt: skip
    with torch.inference_mode(False):  # they outlive the call, and training may be next
        return Tables(*(torch.from_numpy(f).to(device) for f in found))
