"""What sources of scenes share: the files of a folder, rows that processes share, pictures of an announced size."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .findings import Findings, Kind
from .folders import pictures_below
from .read import UnreadableImage, read_image


class Packed:
    """Python objects as bytes in one array: worker processes share them, which lists of objects end by copying."""

    def __init__(self, rows: Sequence[Any]) -> None:
        parts = [pickle.dumps(row, -1) for row in rows]
        self.ends = np.cumsum([0, *map(len, parts)])
        self.data = np.frombuffer(b"".join(parts), np.uint8)

    def __getitem__(self, index: int) -> Any:
        return pickle.loads(self.data[self.ends[index] : self.ends[index + 1]].tobytes())


def notes(file: str | Path, counts: Mapping[str, int]) -> tuple[str, ...]:
    """One line that says how many there are of each, or none."""
    said = [f"{n} x {what}" for what, n in counts.items() if n]
    return (f"{file}: {', '.join(said)}",) * bool(said)


class Listing:
    """The files below a folder; asked for by their name relative to it."""

    def __init__(self, folder: Path) -> None:
        self.names = [os.path.relpath(file, folder) for file in pictures_below(folder)]
        self.set = set(self.names)

    def __contains__(self, name: object) -> bool:
        return os.path.normpath(str(name)) in self.set

    def others(self, names: Iterable[str]) -> list[str]:
        known = {os.path.normpath(name) for name in names}
        return [name for name in self.names if name not in known]


def read_sized(file: str, height: int, width: int) -> np.ndarray:
    """The picture, (H, W, 3) uint8; one of another size than announced is an UnreadableImage."""
    image = read_image(file)
    if image.size != (width, height):
        reason = f"it has {image.width} x {image.height} pixels, its annotations are of {width} x {height}"
        raise UnreadableImage(file, reason)
    return np.asarray(image)


def matched(images: Mapping[str, str], masks: Mapping[str, str], findings: Findings) -> list[tuple[str, str]]:
    """(picture, mask) of each name that both have; the others are added to the findings."""
    for name in sorted(images.keys() - masks.keys()):
        findings.add(Kind.MASK_MISSING, f"of {name}")
    for name in sorted(masks.keys() - images.keys()):
        findings.add(Kind.MISSING, f"of the mask {name}")
    return [(images[name], masks[name]) for name in sorted(images.keys() & masks.keys())]


def check_size(file: str, mask: np.ndarray, picture: str, image: np.ndarray) -> None:
    """Raise UnreadableImage where a mask (H, W) has not its picture's size."""
    if image.shape[:2] != mask.shape:
        (h, w), (mh, mw) = image.shape[:2], mask.shape
        raise UnreadableImage(file, f"a mask of {mw} x {mh} pixels for a picture of {w} x {h} ({picture})")
