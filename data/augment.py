"""How scenes are varied in training and brought to size in evaluation: specs that become albumentations transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import albumentations as A
import numpy as np

from .scene import IGNORE, Category
from .vary import Varied
from .windows import CropScaled, Window

Sides = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Colour:
    """Brightness, contrast and saturation by factors of 1 - v to 1 + v, hue by up to v of its circle, in random order,
    with a probability."""

    brightness: float = 0.125
    contrast: float = 0.5
    saturation: float = 0.5
    hue: float = 0.05
    probability: float = 0.8

    def step(self) -> Any:
        v = vars(self)
        return A.ColorJitter(**{k: v[k] for k in ("brightness", "contrast", "saturation", "hue")}, p=v["probability"])


@dataclass(frozen=True)
class Variation(ABC):
    """Every draw depends on (seed, epoch, index) alone. Objects that come out smaller than `min_side` pixels, or with
    less than `min_visible` of their box in the picture, are dropped and counted."""

    hflip: float = 0.5
    colour: Colour | None = None
    min_side: float = 1.0
    min_visible: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hflip", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: from 0 to 1")

    @abstractmethod
    def window(self, r: np.random.Generator, height: int, width: int, semantic: np.ndarray | None) -> Window:
        """The part of a picture that is kept, and the size that it gets."""

    def steps(self) -> list[Any]:
        made = [CropScaled(self.window), *([A.HorizontalFlip(p=self.hflip)] if self.hflip else [])]
        return [*made, self.colour.step()] if self.colour is not None else made

    def build(self, categories: Sequence[Category] = ()) -> Varied:
        return Varied(self.steps(), self.min_side, self.min_visible, categories)


@dataclass(frozen=True)
class LargeScaleJitter(Variation):
    """A factor of `scale`, evenly drawn, on what fits into `size`; of what is larger than `size` a random part is kept
    (arXiv 2012.07177). Smaller pictures are not padded: batches are."""

    size: Sides = (1024, 1024)
    scale: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sides("size", self.size)
        check_span("scale", self.scale)

    def window(self, r: np.random.Generator, height: int, width: int, semantic: np.ndarray | None) -> Window:
        factor = r.uniform(*self.scale) * min(self.size[0] / height, self.size[1] / width)
        return crop(r, height, width, factor, self.size)


@dataclass(frozen=True)
class ShortestSide(Variation):
    """The shorter side becomes one of `shortest`, or less where the longer one would exceed `longest`: the schedules of
    Faster, Mask and Cascade R-CNN ((800,), or 480 to 800 in steps of 32 for several scales)."""

    shortest: tuple[int, ...] = (800,)
    longest: int = 1333

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sides("shortest", self.shortest)
        check_sides("longest", (self.longest,))

    def window(self, r: np.random.Generator, height: int, width: int, semantic: np.ndarray | None) -> Window:
        return whole(height, width, fitting(height, width, int(r.choice(self.shortest)), self.longest))


@dataclass(frozen=True)
class SemanticCrop(Variation):
    """A factor of `scale` on the picture, as it is or fitted to `shortest` and `longest`, then a random part of `size`,
    drawn again up to ten times while one class has more than `most` of its labelled pixels (1: never)."""

    size: Sides = (512, 512)
    scale: tuple[float, float] = (0.5, 2.0)
    shortest: int | None = None
    longest: int | None = None
    most: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sides("size", self.size)
        check_span("scale", self.scale)

    def window(self, r: np.random.Generator, height: int, width: int, semantic: np.ndarray | None) -> Window:
        factor = r.uniform(*self.scale) * fitting(height, width, self.shortest, self.longest)
        for _ in range(10):
            found = crop(r, height, width, factor, self.size)
            if semantic is None or self.most >= 1:
                return found
            counts = np.bincount(semantic[found.y0 : found.y1, found.x0 : found.x1].ravel(), minlength=IGNORE + 1)
            if (counts[:IGNORE] > 0).sum() > 1 and counts[:IGNORE].max() <= self.most * counts[:IGNORE].sum():
                return found
        return found


@dataclass(frozen=True)
class Fit(Variation):
    """Evaluation: the whole picture, its shorter side `shortest` or less where the longer would exceed `longest`; with
    `longest` alone that one; with neither as it is."""

    hflip: float = 0.0
    min_side: float = 0.0
    shortest: int | None = None
    longest: int | None = None

    def window(self, r: np.random.Generator, height: int, width: int, semantic: np.ndarray | None) -> Window:
        return whole(height, width, fitting(height, width, self.shortest, self.longest))


@dataclass(frozen=True)
class Albumented:
    """Albumentations transforms of one's own: a list of class_path and init_args in YAML. Boxes, masks and keypoints
    follow them, and what is dropped is counted."""

    transforms: list[A.BasicTransform]
    min_side: float = 1.0
    min_visible: float = 0.0

    def build(self, categories: Sequence[Category] = ()) -> Varied:
        return Varied(self.transforms, self.min_side, self.min_visible, categories)


def fitting(height: int, width: int, shortest: int | None, longest: int | None) -> float:
    """The factor that brings the shorter side to `shortest`, but no further than the longer one to `longest`."""
    factors = [goal / side for goal, side in ((shortest, min(height, width)), (longest, max(height, width))) if goal]
    return min(factors, default=1.0)


def whole(height: int, width: int, factor: float) -> Window:
    return Window(0, 0, width, height, max(round(height * factor), 1), max(round(width * factor), 1))


def crop(r: np.random.Generator, height: int, width: int, factor: float, size: Sides) -> Window:
    """A random part of the scaled picture of at most `size`, as whole pixels of the picture itself."""
    top, bottom, tall = part(r, height, factor, size[0])
    left, right, wide = part(r, width, factor, size[1])
    return Window(left, top, right, bottom, tall, wide)


def part(r: np.random.Generator, side: int, factor: float, most: int) -> tuple[int, int, int]:
    """From, to (excl.) along a side of the picture, and the length that this gets."""
    length = max(round(side * factor), 1)
    if length <= most:
        return 0, side, length
    taken = min(max(round(most / factor), 1), side)
    start = int(r.integers(side - taken + 1))
    return start, start + taken, most


def check_sides(name: str, sides: Sequence[int]) -> None:
    if not sides or min(sides) < 1:
        raise ValueError(f"{name} = {tuple(sides)}: sides of at least 1 pixel")


def check_span(name: str, span: tuple[float, float]) -> None:
    if not 0 < span[0] <= span[1]:
        raise ValueError(f"{name} = {span}: from small to large, above 0")
