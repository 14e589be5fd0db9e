"""Images side by side in one picture, with what each row shows written before it."""

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .tables import write_whole

GAP, INK, PAPER, SMALLEST = 2, (51, 51, 51), (255, 255, 255), 64


def draw_grid(images: Tensor, columns: int, path: str | os.PathLike[str], titles: Sequence[str] = ()) -> Path:
    """images (N, 3, H, W) uint8, `columns` a row; small ones are enlarged, pixel by pixel, to 64 or so. `titles`: one a
    row, or none."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    if titles and len(titles) != rows:
        raise ValueError(f"{len(titles)} titles for {rows} rows")
    times = max(1, round(SMALLEST / min(height, width)))
    h, w = height * times + GAP, width * times + GAP
    margin, font, lines = heading(titles, h) if titles else (0, None, [])
    sheet = Image.new("RGB", (margin + columns * w + GAP, rows * h + GAP), PAPER)
    for i, picture in enumerate(images.permute(0, 2, 3, 1).numpy()):
        large = np.repeat(np.repeat(picture, times, 0), times, 1)
        sheet.paste(Image.fromarray(large), (margin + i % columns * w + GAP, i // columns * h + GAP))
    pen = ImageDraw.Draw(sheet)
    for row, text in enumerate(lines):
        pen.multiline_text((GAP * 2, row * h + h // 2), text, INK, font, anchor="lm")
    return write_whole(path, png(sheet))


def heading(titles: Sequence[str], height: int) -> tuple[int, ImageFont.FreeTypeFont | ImageFont.ImageFont, list[str]]:
    """(width of the column, font, the titles in lines of at most 22 letters)."""
    size = 12
    font = ImageFont.load_default(size)
    most = max(1, height // (size + 4))
    lines = ["\n".join(textwrap.wrap(t, 22, max_lines=most, placeholder=" …")) or " " for t in titles]
    widest = max(font.getlength(line) for text in lines for line in text.split("\n"))
    return int(widest) + 4 * GAP, font, lines


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
