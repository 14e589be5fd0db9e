"""The vocabulary of the drawn pictures: kinds, colours, sizes, relations, and one sample. Fixed for every task of the
suite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent", "arrow", "bolt")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (246, 222, 50),
    "green": (44, 160, 44),
    "cyan": (40, 205, 215),
    "blue": (36, 82, 214),
    "purple": (128, 52, 178),
    "pink": (247, 130, 190),
    "white": (246, 246, 246),
    "black": (22, 22, 26),
}
SIZES: dict[str, tuple[float, float]] = {  # radius as a part of the shorter side: from (incl.) to (excl.)
    "small": (0.085, 0.125),
    "medium": (0.125, 0.190),
    "large": (0.190, 0.360),
}
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
QUESTIONS: tuple[str, ...] = ("colour", "count", "relation")
ANSWERS: tuple[str, ...] = (*COLOURS, "0", "1", "2", "3", "4", "5", "6", "yes", "no")


@dataclass(frozen=True)
class Sample:
    """One drawn picture and what is true of it; n objects, the asked-about ones first, later ones drawn over earlier
    ones.
    """

    image: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (n,) int64, index into KINDS
    boxes: np.ndarray  # (n, 4) float32, x0 y0 x1 y1 in pixels, the tight boxes of `masks` (x1, y1 exclusive)
    masks: np.ndarray  # (n, H, W) bool, what is visible of each object
    colours: tuple[str, ...]  # (n,) names in COLOURS
    sizes: tuple[str, ...]  # (n,) names in SIZES
    caption: str | None = None  # "a red circle left of a blue square"
    question: str | None = None  # "what colour is the star?"
    answer: str | None = None  # one of ANSWERS
    about: str | None = None  # one of QUESTIONS

    @property
    def label(self) -> int:
        """The class of the picture: the kind of its first object."""
        return int(self.labels[0])

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(KINDS[label] for label in self.labels)
