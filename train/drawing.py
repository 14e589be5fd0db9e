"""Boxes, masks and maps of classes drawn into pictures, by Pillow."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from .evaluation.detector import Detections

GOLDEN = 0.618033988749895
VOID = (0, 0, 0)


def colour(index: int) -> tuple[int, int, int]:
    """A colour for each class, neighbours far apart."""
    from colorsys import hsv_to_rgb

    hue, ring = (0.02 + index * GOLDEN) % 1, index % 3
    red, green, blue = hsv_to_rgb(hue, (0.85, 0.6, 0.95)[ring], (0.95, 0.85, 0.7)[ring])
    return round(255 * red), round(255 * green), round(255 * blue)


def picture_of(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(3, H, W) normalised -> (H, W, 3) uint8."""
    m, s = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    return ((image.float().cpu() * s + m).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def with_objects(picture: np.ndarray, found: "Detections", names: Sequence[str], *, scores: bool = True) -> Image.Image:
    """The picture (H, W, 3) uint8 with masks tinted, boxes outlined and named; the surest are drawn last."""
    made = picture.copy()
    order = found.scores.argsort(stable=True).tolist()
    labels = found.labels.tolist()
    for i in order if found.masks is not None else ():
        inside = found.masks[i].numpy()
        made[inside] = 0.55 * made[inside] + 0.45 * np.array(colour(labels[i] - 1))
    image = Image.fromarray(made)
    pen, width = ImageDraw.Draw(image), max(1, round(min(image.size) / 250))
    font = ImageFont.load_default(max(9, round(min(image.size) / 36)))
    for i in order:
        box, ink = [float(v) for v in found.boxes[i].tolist()], colour(labels[i] - 1)
        pen.rectangle(box, outline=ink, width=width)
        text = names[labels[i] - 1] + (f" {float(found.scores[i]):.0%}" if scores else "")
        label(pen, (box[0], box[1]), text, ink, font)
    return image


def label(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, ink: tuple[int, int, int], font: Any) -> None:
    """A name on a ground of its colour, above the point or, at the upper edge, below it."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    x, y = max(0.0, at[0]), at[1] - (bottom - top) - 3
    y = at[1] if y < 0 else y
    pen.rectangle((x, y, x + right - left + 3, y + bottom - top + 3), fill=ink)
    bright = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2]
    pen.text((x + 1 - left, y + 1 - top), text, fill=(0, 0, 0) if bright > 140 else (255, 255, 255), font=font)


def with_classes(picture: np.ndarray, classes: Tensor, ignore: int = 255) -> Image.Image:
    """The picture (H, W, 3) uint8 tinted by the class of each pixel (H, W); what is ignored is dark."""
    found = classes.cpu().numpy()
    ink = np.zeros((256, 3), np.float32)
    present = np.unique(found)
    for k in present[present != ignore].tolist():
        ink[k] = colour(k)
    ink[ignore] = VOID
    return Image.fromarray((0.4 * picture + 0.6 * ink[found]).round().astype(np.uint8))


def with_segments(picture: np.ndarray, ids: np.ndarray, classes: dict[int, int]) -> Image.Image:
    """The picture (H, W, 3) uint8 tinted by the class of each segment of `ids` (H, W), with white lines between them;
    what belongs to none is dark."""
    known = np.array(sorted(classes), np.int64)
    ink = np.array([VOID, *(colour(classes[k]) for k in known.tolist())], np.float32)
    place = np.searchsorted(known, ids)
    there = np.isin(ids, known)
    made = 0.4 * picture + 0.6 * ink[np.where(there, place + 1, 0)]
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    made[edge] = 255
    return Image.fromarray(made.round().astype(np.uint8))


def with_words(picture: Image.Image, question: str, answer: str, side: int = 300) -> Image.Image:
    """The picture, its longer side of `side` pixels, with what was asked and answered below it."""
    factor = side / max(picture.size)
    image = picture.resize((max(1, round(factor * picture.width)), max(1, round(factor * picture.height))))
    font, rows = ImageFont.load_default(13), list[tuple[str, str]]()
    pen = ImageDraw.Draw(image)
    for text, ink in ((question.replace("<image>", "").strip(), "#555555"), (answer, "black")):
        line = ""
        for word in text.split() or [""]:
            if line and pen.textlength(f"{line} {word}", font=font) > side - 8:
                rows.append((line, ink))
                line = word
            else:
                line = f"{line} {word}".strip()
        rows.append((line, ink))
    sheet = Image.new("RGB", (side, image.height + 17 * len(rows) + 6), "white")
    sheet.paste(image, ((side - image.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for i, (line, ink) in enumerate(rows):
        pen.text((4, image.height + 2 + 17 * i), line, fill=ink, font=font)
    return sheet


def legend(classes: Sequence[str], width: int, only: Collection[int] | None = None) -> Image.Image:
    """Names of classes in their colours, in as many lines as it takes; `only`: of these."""
    font = ImageFont.load_default(13)
    image = Image.new("RGB", (width, 20 * max(1, len(classes))), "white")
    pen, x, y = ImageDraw.Draw(image), 4, 2
    for k, name in enumerate(classes):
        if only is not None and k not in only:
            continue
        long = round(pen.textlength(name, font=font)) + 26
        if x + long > width and x > 4:
            x, y = 4, y + 20
        pen.rectangle((x, y + 2, x + 12, y + 14), fill=colour(k))
        pen.text((x + 17, y), name, fill="black", font=font)
        x += long
    return image.crop((0, 0, width, y + 20))
