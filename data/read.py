"""Any image file becomes RGB by one rule.

The rule: the first frame; turned upright by its EXIF orientation; 16-bit grey divided by 257 (white stays white);
anything transparent laid over white; then Pillow's conversion to RGB (grey repeated, palette looked up, CMYK as 255 -
ink, inverted where Adobe says so; colour profiles are not applied). Floating-point pixels have no stated range and are
refused, as is whatever holds more pixels than Pillow's own limit (`PIL.Image.MAX_IMAGE_PIXELS`), before it is decoded.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".gif",
        ".bmp",
        ".dib",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".tga",
        ".avif",
    ]
)
ORIENTATION = 0x0112
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


class UnreadableImage(ValueError):
    """A file that does not become a picture: `.file` and `.reason`."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"unreadable image {self.file}: {self.reason}"


def read_image(source: str | Path | bytes, name: str | None = None, pixels: int | None = None) -> Image.Image:
    """A file, or its bytes, as an upright RGB picture; `name` stands for bytes in the error. Raises UnreadableImage
    only. `pixels`: at most so many, instead of Pillow's limit.
    """
    name = name or (f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source))
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise UnreadableImage(name, (error.strerror or str(error)).lower()) from error
    if not data:
        raise UnreadableImage(name, "the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            limit = Image.MAX_IMAGE_PIXELS if pixels is None else pixels
            if limit is not None and image.width * image.height > limit:
                raise UnreadableImage(
                    name, f"too large: {image.width} x {image.height} pixels, the limit is {limit:,} in all"
                )
            image.load()
            return to_rgb(image)
    except UnreadableImage as error:
        raise UnreadableImage(name, error.reason) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, f"too large: {error}") from None
    except UnidentifiedImageError:
        raise UnreadableImage(
            name, f"not an image that Pillow knows, or cut short (it begins with {data[:8]!r})"
        ) from None
    except BROKEN as error:
        raise UnreadableImage(
            name, f"damaged or truncated ({' '.join(str(error).split()) or type(error).__name__})"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture as upright RGB (this file's rule)."""
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UnreadableImage("<picture>", "floating-point pixels have no stated range: store it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
