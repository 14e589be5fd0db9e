"""What is wrong with a set of annotations: named and counted, so that nothing is dropped in silence."""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import Literal

from .folders import quoted

log = logging.getLogger("patchloom.data")
OnError = Literal["stop", "skip"]


class Kind(Enum):
    """What may be wrong, in words; what `stops` is left to the user's on_error, the rest is put right and told."""

    CLIPPED = "box reaches beyond the picture; clipped", False
    OUTSIDE = "box outside the picture; left out", False
    FLAT = "box without area; left out", False
    POLYGON = "polygon of fewer than three points; left out", False
    MALFORMED = "box that is not four finite numbers", True
    CATEGORY = "unknown category", True
    IMAGE = "annotation of a picture that is not listed", True
    MISSING = "picture file missing", True
    XML_MISSING = "annotation file missing", True
    MASK_MISSING = "mask file missing", True
    UNMASKED = "object without a mask", True
    RUNS = "mask whose run lengths do not fill its picture", True
    MASK_SIZE = "mask of another size than its picture", True

    def __init__(self, text: str, stops: bool) -> None:
        self.text, self.stops = text, stops


class Findings:
    """Places by kind, in the order found. Falsy while nothing was found."""

    def __init__(self) -> None:
        self.places: dict[Kind, list[str]] = {}

    def add(self, kind: Kind, place: str) -> None:
        self.places.setdefault(kind, []).append(place)

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def counts(self) -> dict[str, int]:
        return {kind.text: len(places) for kind, places in self.places.items()}

    def lines(self, stopping: bool | None = None) -> list[str]:
        """One line a kind: "2 x box outside the picture; left out: annotation 7 (a.jpg), annotation 9 (b.jpg)"."""
        return [
            f"{len(places)} x {kind.text}: {quoted(places)}"
            for kind, places in self.places.items()
            if stopping in (None, kind.stops)
        ]

    def settle(self, origin: str | Path, on_error: OnError) -> None:
        """Raise for what stops, unless it is to be skipped; tell the rest in one warning."""
        stopping = self.lines(True)
        if stopping and on_error == "stop":
            raise ValueError(f"{origin}: {'. '.join(stopping)}. Mend it, or leave such out: on_error: skip")
        told = [*(f"{line} (left out)" for line in stopping), *self.lines(False)]
        if told:
            log.warning("%s: %s", origin, ". ".join(told))
