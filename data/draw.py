"""Pixels of the drawn pictures: outlines of the kinds, textured grounds, lumps and strokes that are no kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil, cos, floor, pi, radians, sin

import numpy as np
from PIL import Image, ImageDraw

from .sample import COLOURS

Random = np.random.Generator
OVERSAMPLE = 4  # edges are averaged over 4 x 4 points a pixel


def arc(start: float, stop: float, points: int, radius: float = 1.0, x: float = 0.0) -> np.ndarray:
    """(points, 2) on a circle around (x, 0), angles in degrees, y down."""
    a = np.linspace(radians(start), radians(stop), points)
    return np.stack([x + radius * np.cos(a), radius * np.sin(a)], 1)


def star(points: int = 5, inner: float = 0.46) -> np.ndarray:
    a = np.arange(2 * points) * pi / points - pi / 2
    r = np.where(np.arange(2 * points) % 2, inner, 1.08)
    return np.stack([r * np.cos(a), r * np.sin(a)], 1)


def heart(points: int = 40) -> np.ndarray:
    t = np.linspace(0, 2 * pi, points, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2], 1) / 16.5


def crescent(bite: float = 0.82, shift: float = 0.52) -> np.ndarray:
    """The unit circle less a circle of radius `bite` around (shift, 0)."""
    x = (1 - bite**2 + shift**2) / (2 * shift)  # where the two circles meet
    outer, inner = np.degrees(np.arccos(x)), np.degrees(np.arccos((x - shift) / bite))
    return np.concatenate([arc(outer, 360 - outer, 32), arc(360 - inner, inner, 24, bite, shift)])


ARM = 0.36
CROSS = [
    (-ARM, -1),
    (ARM, -1),
    (ARM, -ARM),
    (1, -ARM),
    (1, ARM),
    (ARM, ARM),
    (ARM, 1),
    (-ARM, 1),
    (-ARM, ARM),
    (-1, ARM),
    (-1, -ARM),
    (-ARM, -ARM),
]
ARROW = [(0, -1.05), (0.85, -0.1), (0.33, -0.1), (0.33, 1), (-0.33, 1), (-0.33, -0.1), (-0.85, -0.1)]
BOLT = [(0.2, -1.1), (-0.68, 0.18), (-0.08, 0.18), (-0.3, 1.1), (0.7, -0.28), (0.08, -0.28), (0.52, -1.1)]
OUTLINES: dict[str, tuple[np.ndarray, ...]] = {  # what is filled, then what is cut out of it; unit radius
    "circle": (arc(0, 360, 48),),
    "square": (np.array([(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]),),
    "triangle": (arc(-90, 270, 4, 1.15)[:3] + np.array([0, 0.18]),),
    "star": (star(),),
    "heart": (heart(),),
    "cross": (np.array(CROSS),),
    "ring": (arc(0, 360, 48), arc(0, 360, 40, 0.56)),
    "crescent": (crescent(),),
    "arrow": (np.array(ARROW),),
    "bolt": (np.array(BOLT),),
}


def coverage(
    outlines: tuple[np.ndarray, ...], x: float, y: float, angle: float, scale: float, size: tuple[int, int]
) -> tuple[np.ndarray, int, int]:
    """How much of each pixel a shape covers: (h, w) float32 in 0..1, and the column and row where it begins."""
    turn = scale * np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]])
    points = [outline @ turn + (x, y) for outline in outlines]
    low, high = points[0].min(0), points[0].max(0)
    x0, y0 = max(floor(low[0]), 0), max(floor(low[1]), 0)
    x1, y1 = min(ceil(high[0]) + 1, size[1]), min(ceil(high[1]) + 1, size[0])
    canvas = Image.new("L", ((x1 - x0) * OVERSAMPLE, (y1 - y0) * OVERSAMPLE))
    pen = ImageDraw.Draw(canvas)
    for part, fill in zip(points, (255, 0), strict=False):
        pen.polygon(((part - (x0, y0)) * OVERSAMPLE - 0.5).ravel().tolist(), fill=fill)
    return np.asarray(canvas.reduce(OVERSAMPLE), np.float32) / 255, x0, y0


@lru_cache(maxsize=8)
def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x (1, W) and y (H, 1), in units of the shorter side, from its middle."""
    short = min(height, width)
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / short
    y = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / short
    return x[None], y[:, None]


@lru_cache(maxsize=512)
def ramp(n: int) -> np.ndarray:
    """n values from -1 to 1."""
    return np.linspace(-1, 1, n, dtype=np.float32)


@lru_cache(maxsize=1)
def grain() -> np.ndarray:
    """2**18 normal numbers, drawn once: a picture's noise begins somewhere in it."""
    return np.random.default_rng(7).standard_normal(1 << 18).astype(np.float32)


def noise(r: Random, *shape: int) -> np.ndarray:
    """Normal noise of a shape, cut from `grain`."""
    n, bank = int(np.prod(shape)), grain()
    if n >= len(bank):
        return r.standard_normal(shape, dtype=np.float32)
    start = int(r.integers(len(bank) - n))
    return bank[start : start + n].reshape(shape)


def smooth(r: Random, height: int, width: int, cells: int) -> np.ndarray:
    """(H, W) value noise: `cells` random values along the shorter side, bicubic between."""
    short = min(height, width)
    h, w = ceil(cells * height / short) + 1, ceil(cells * width / short) + 1
    return np.asarray(Image.fromarray(noise(r, h, w)).resize((width, height), Image.Resampling.BICUBIC))


def clouds(r: Random, h: int, w: int) -> np.ndarray:
    return 0.5 + 0.26 * smooth(r, h, w, 3) + 0.13 * smooth(r, h, w, 8)


def wave(r: Random, h: int, w: int, low: float, high: float) -> np.ndarray:
    """A phase (H, W) that grows in a random direction, `low` to `high` periods over the shorter side."""
    x, y = grid(h, w)
    f, a = 2 * pi * r.uniform(low, high), r.uniform(0, pi)
    return (f * cos(a)) * x + (f * sin(a)) * y + r.uniform(0, 2 * pi)


def stripes(r: Random, h: int, w: int) -> np.ndarray:
    return 0.5 + np.clip(np.sin(wave(r, h, w, 3, 9)) * r.uniform(0.5, 2), -0.5, 0.5)


def checks(r: Random, h: int, w: int) -> np.ndarray:
    x, y = grid(h, w)
    f, a = 2 * pi * r.uniform(1.5, 4.5), r.uniform(0, pi)
    u, v = (f * cos(a)) * x + (f * sin(a)) * y, (-f * sin(a)) * x + (f * cos(a)) * y
    return 0.5 + np.clip(4 * np.sin(u) * np.sin(v), -0.5, 0.5)


def dots(r: Random, h: int, w: int) -> np.ndarray:
    x, y = grid(h, w)
    f, a = 2 * pi * r.uniform(4, 9), r.uniform(0, pi)
    u, v = (f * cos(a)) * x + (f * sin(a)) * y, (-f * sin(a)) * x + (f * cos(a)) * y
    return np.clip(1.5 * (np.sin(u) + np.sin(v)) - 0.7, 0, 1)


def wood(r: Random, h: int, w: int) -> np.ndarray:
    """Rings around a point outside, warped: a plank."""
    x, y = grid(h, w)
    distance = np.hypot(x - r.uniform(0.6, 1.6), 0.25 * (y - r.uniform(-0.5, 0.5)))
    return 0.5 + 0.45 * np.sin(2 * pi * r.uniform(6, 12) * distance + 1.1 * smooth(r, h, w, 4))


def weave(r: Random, h: int, w: int) -> np.ndarray:
    x, y = grid(h, w)
    f = 2 * pi * r.uniform(4, 9)
    return 0.5 + 0.22 * np.sign(np.sin(f * x)) * np.abs(np.sin(f * y)) + 0.22 * np.cos(f * x + 0.8)


def fade(r: Random, h: int, w: int) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(wave(r, h, w, 0.15, 0.5)) + 0.06 * smooth(r, h, w, 16)


TEXTURES: tuple[Callable[[Random, int, int], np.ndarray], ...] = (clouds, stripes, checks, dots, wood, weave, fade)


def ground(r: Random, height: int, width: int) -> np.ndarray:
    """(H, W, 3) float32 0..255: one texture between two muted colours, under a soft light, with grain."""
    t = TEXTURES[int(r.integers(len(TEXTURES)))](r, height, width)
    first = r.uniform(60, 190) + r.uniform(-34, 34, 3)
    second = first + r.uniform(28, 66) * (1 if first.mean() < 125 else -1) + r.uniform(-16, 16, 3)
    picture = t[..., None].astype(np.float32) * (second - first).astype(np.float32) + first.astype(np.float32)
    x, y = grid(height, width)
    light, a = r.uniform(0, 0.3), r.uniform(0, 2 * pi)
    picture *= (1 + (light * cos(a)) * x + (light * sin(a)) * y)[..., None]
    picture += noise(r, height, width, 1) * r.uniform(1, 6)
    return picture


def tint(r: Random, colour: str) -> np.ndarray:
    """(3,) the named colour, a little off."""
    return np.asarray(COLOURS[colour], np.float32) + r.uniform(-12, 12, 3).astype(np.float32)


def blend(picture: np.ndarray, cover: np.ndarray, x0: int, y0: int, colour: np.ndarray) -> None:
    """Lay a colour ((3,) or (h, w, 3)) over a window of the picture, in place."""
    window = picture[y0 : y0 + cover.shape[0], x0 : x0 + cover.shape[1]]
    window += cover[..., None] * (colour - window)


def paint(
    picture: np.ndarray, r: Random, kind: str, colour: str, x: float, y: float, radius: float, angle: float
) -> np.ndarray:
    """Draw an object, in place: perhaps a shadow, a rim, a light from one side. Returns its coverage (H, W) float32."""
    size = picture.shape[:2]
    cover, x0, y0 = coverage(OUTLINES[kind], x, y, angle, radius, size)
    h, w = cover.shape
    style = r.random(3)
    if style[0] < 0.4:  # a shadow to the lower right
        d = max(1, round(radius * 0.16))
        window = picture[y0 + d : y0 + d + h, x0 + d : x0 + d + w]
        window *= 1 - 0.42 * cover[: window.shape[0], : window.shape[1], None]
    fill = tint(r, colour)
    slope = r.uniform(-0.16, 0.16, 2)
    shade = 1 + np.float32(slope[0]) * ramp(w) + np.float32(slope[1]) * ramp(h)[:, None]
    blend(picture, cover, x0, y0, shade[..., None] * fill)
    if style[1] < 0.3 and kind not in (
        "ring",
        "crescent",
    ):  # a rim: the same shape again, smaller, over a darker or lighter self
        inner, ix, iy = coverage(OUTLINES[kind], x, y, angle, radius * 0.8, size)
        rim = cover.copy()
        rim[iy - y0 : iy - y0 + inner.shape[0], ix - x0 : ix - x0 + inner.shape[1]] *= 1 - inner
        blend(picture, 0.55 * rim, x0, y0, np.float32(215 if colour == "black" else 25))
    whole = np.zeros(size, np.float32)
    whole[y0 : y0 + h, x0 : x0 + w] = cover
    return whole


@lru_cache(maxsize=1)
def lumps() -> list[np.ndarray]:
    """256 outlines like no kind: radius 1 and a few strong harmonics, the largest reach 1."""
    r, a, found = np.random.default_rng(11), np.linspace(0, 2 * pi, 28, endpoint=False), []
    for _ in range(256):
        waves = (amount * np.sin(n * a + r.uniform(0, 2 * pi)) for n, amount in ((2, 0.36), (3, 0.3), (5, 0.12)))
        reach = 1 + sum(waves)
        found.append(np.stack([reach * np.cos(a), reach * np.sin(a)], 1) / reach.max())
    return found


def lump(picture: np.ndarray, r: Random, colour: str, x: float, y: float, radius: float) -> None:
    """A blob like no kind, in place."""
    outline = lumps()[int(r.integers(256))]
    cover, x0, y0 = coverage((outline,), x, y, r.uniform(0, 2 * pi), radius, picture.shape[:2])
    blend(picture, cover * np.float32(r.uniform(0.55, 1)), x0, y0, tint(r, colour))


def strokes(picture: np.ndarray, r: Random, count: int) -> None:
    """A few straight lines across the picture, in place."""
    h, w = picture.shape[:2]
    layer = Image.new("L", (2 * w, 2 * h))
    pen = ImageDraw.Draw(layer)
    for _ in range(count):
        ends = (r.random(4) * (2 * w, 2 * h, 2 * w, 2 * h)).tolist()
        pen.line(ends, fill=int(r.integers(90, 230)), width=max(1, round(min(h, w) * r.uniform(0.015, 0.045))))
    blend(picture, np.asarray(layer.reduce(2), np.float32) / 255, 0, 0, r.uniform(20, 235, 3).astype(np.float32))
