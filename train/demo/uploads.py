"""A visitor's file as a picture."""

import io
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from ...data.read import UnreadableImage, read_image
from .limits import Limits, Refused, without_paths

VECTOR = (b"<svg", b"<?xml", b"<!doctype svg")


class Upload(NamedTuple):
    """An upright RGB picture, the name of its file, and what was done to it on the way, in words."""

    picture: Image.Image
    name: str
    notes: tuple[str, ...] = ()


def open_upload(payload: Any, folder: Path, limits: Limits) -> Upload:
    """`payload`: what the page sends of a picture, {"path", "orig_name"}. Raises Refused where there is none, where it
    is no file of `folder`, into which uploads go, and where the file is no picture within the limits."""
    if not payload:
        raise Refused("there is no picture yet: choose one, or one of the samples")
    if not isinstance(payload, dict) or not isinstance(payload.get("path"), str):
        raise Refused("this is no uploaded picture: choose a file")
    name = file_name(payload.get("orig_name") or payload["path"])
    try:
        path = Path(payload["path"]).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError):  # no path at all: a null byte, a name that is too long
        inside = False
    if not inside:
        raise Refused(f"{name} was not uploaded here: choose a file")
    if (size := path.stat().st_size) > limits.upload:
        raise Refused(f"{name} has {size / 2**20:.1f} MiB: at most {limits.upload / 2**20:.0f} MiB are taken")
    return read_upload(path.read_bytes(), name, limits)


def read_upload(data: bytes, name: str, limits: Limits) -> Upload:
    if data[:200].lstrip().lower().startswith(VECTOR):
        raise Refused(f"{name} is drawn by instructions (SVG or XML), not in pixels: save it as PNG or JPEG")
    try:
        picture = read_image(data, name, limits.pixels)
    except UnreadableImage as error:
        raise Refused(without_paths(str(error))) from error
    notes = described(data)
    if max(picture.size) > limits.side:
        before = f"{picture.width} x {picture.height}"
        picture.thumbnail((limits.side, limits.side), Image.Resampling.BICUBIC)
        notes.append(f"made smaller, from {before} to {picture.width} x {picture.height} pixels")
    if min(picture.size) < 2:
        raise Refused(f"{name} is {picture.width} x {picture.height} pixels: too thin to see anything")
    return Upload(picture, name, tuple(notes))


def described(data: bytes) -> list[str]:
    """What is out of the ordinary about a readable file."""
    notes = []
    try:
        with Image.open(io.BytesIO(data)) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                notes.append(f"the first of {frames} frames")
            if image.getexif().get(0x0112, 1) != 1:
                notes.append("turned upright, as its EXIF says")
            if image.mode == "CMYK":
                notes.append("CMYK, made RGB without its colour profile")
            elif image.mode.startswith("I"):
                notes.append("16 bits a pixel, made 8")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError):
        notes.append("its header is odd")  # the picture itself has been read
    return notes


def file_name(text: str) -> str:
    """The last part of what a browser calls a file, in printable characters."""
    last = PurePath(str(text).replace("\\", "/")).name
    return "".join(c for c in last if c.isprintable() and c not in "<>&\"'`")[-60:] or "the file"
