"""COCO's masks: polygons and run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np


def rasterise(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons, or run lengths (compressed or not) -> (H, W) uint8 of 0 and 1; ValueError for run lengths that do not
    fill it, of which pycocotools makes whatever memory holds."""
    import cv2
    from pycocotools import mask

    if isinstance(segmentation, list):
        runs = mask.merge(mask.frPyObjects([p for p in segmentation if is_polygon(p)], height, width))
        return cv2.transpose(mask.decode(runs).T)  # column by column as pycocotools has it, row by row from here on
    counts = segmentation["counts"]
    lengths = counts if isinstance(counts, list) else run_lengths(counts)
    if not fills(lengths, height, width):
        raise ValueError(f"its run lengths do not fill {width} x {height} pixels")
    runs = mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
    return cv2.transpose(mask.decode(runs).T)


def fills(lengths: list[int], height: int, width: int) -> bool:
    return min(lengths, default=-1) >= 0 and sum(lengths) == height * width


def run_lengths(packed: str | bytes) -> list[int]:
    """COCO's compressed run lengths: numbers of 5 bits a character, the least first, from the fourth on as differences
    to the last but one."""
    made: list[int] = []
    value = shift = 0
    for byte in packed.encode() if isinstance(packed, str) else packed:
        c = byte - 48
        value |= (c & 0x1F) << shift
        shift += 5
        if not c & 0x20:
            value -= (c & 0x10) << (shift - 4)
            made.append(value + (made[-2] if len(made) > 2 else 0))
            value = shift = 0
    return made


def is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0
