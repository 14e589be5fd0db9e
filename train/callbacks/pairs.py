"""predictions.png of detectors and segmenters: held-out pictures, what is true beside what was found."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..tables import write_whole

CELL, GAP, PAIRS = 300, 6, 2  # pixels of a picture's side, between pictures; pairs in a row


class Pairs:
    """The first `count` pictures that pass, in the order of the data: none is chosen."""

    def __init__(self, count: int):
        self.count = count
        self.pairs: list[tuple[Image.Image, Image.Image]] = []

    @property
    def full(self) -> bool:
        return len(self.pairs) >= self.count

    def add(self, pairs: Iterable[tuple[Image.Image, Image.Image]]) -> None:
        """(what is true, what was found), each drawn into the picture."""
        for pair in pairs:
            if self.full:
                return
            self.pairs.append((fitted(pair[0]), fitted(pair[1])))


def fitted(picture: Image.Image) -> Image.Image:
    factor = CELL / max(picture.size)
    wide, high = (max(1, round(factor * side)) for side in picture.size)
    return picture.resize((wide, high), Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BOX)


def draw_pairs(
    pairs: Sequence[tuple[Image.Image, Image.Image]], path: str | os.PathLike[str], title: str, classes: Sequence[str]
) -> Path | None:
    """Two pairs in a row, truth at the left of each; the classes' colours below."""
    from ..drawing import legend

    if not pairs:
        return None
    width = PAIRS * 2 * (CELL + GAP) + GAP
    rows = [pairs[i : i + PAIRS] for i in range(0, len(pairs), PAIRS)]
    heights = [max(picture.height for pair in row for picture in pair) + GAP for row in rows]
    below = legend(classes, width - 2 * GAP)
    sheet = Image.new("RGB", (width, 52 + sum(heights) + below.height + GAP), "white")
    pen, y = ImageDraw.Draw(sheet), 52
    pen.text((GAP, 4), title, fill="black", font=ImageFont.load_default(17))
    for column in range(2 * PAIRS):
        said = "found" if column % 2 else "truth"
        pen.text((GAP + column * (CELL + GAP), 30), said, fill="#555555", font=ImageFont.load_default(14))
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(picture for pair in row for picture in pair):
            sheet.paste(picture, (GAP + column * (CELL + GAP), y))
        y += height
    sheet.paste(below, (GAP, y))
    image = io.BytesIO()
    sheet.save(image, format="png")
    return write_whole(path, image.getvalue())
