"""COCO's panoptic annotations, also of other sets in that form: a PNG of segment ids a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .coco import Annotations, check_ids
from .findings import Kind, OnError
from .folders import existing, quoted
from .read import UnreadableImage, read_image
from .scene import IGNORE, Category, Scene, objects, tight_boxes
from .scene_files import Listing, Packed, notes, read_sized


def read_segment_ids(file: str | Path) -> np.ndarray:
    """(H, W) int64: red + 256 green + 65536 blue of each pixel; 0 is nothing."""
    return segment_ids(np.asarray(read_image(file)))


def segment_ids(colours: np.ndarray) -> np.ndarray:
    padded = np.zeros((*colours.shape[:2], 4), np.uint8)
    padded[..., :3] = colours
    return padded.view("<u4")[..., 0].astype(np.int64)


class PanopticScenes:
    """A panoptic annotation file -> scenes: an object for each segment, of things and of ground, and a semantic map in
    which crowds and unlabelled pixels are IGNORE.

    categories   of which a label is the position + 1, and a value of the map the position; `thing` says which are
    segments     the folder of the PNG files: by default beside the file, named as it
    """

    steady = True

    def __init__(
        self, file: str | Path, folder: str | Path, segments: str | Path | None = None, *, on_error: OnError = "stop"
    ) -> None:
        self.file, self.folder = Path(file), existing(folder)
        self.segments = existing(segments or self.file.with_suffix(""))
        read = Annotations(file)
        if not read.panoptic:
            raise ValueError(f"{file}: no segments_info: these are not panoptic annotations")
        check_ids(read)
        if len(read.categories) > IGNORE:
            raise ValueError(f"{file}: {len(read.categories)} categories: at most {IGNORE} fit into a semantic map")
        self.categories: list[Category] = read.categories
        self.classes, self.findings = read.classes, read.findings
        there, masks = Listing(self.folder), Listing(self.segments)
        rows: list[Any] = []
        self.images: list[tuple[str, int, int, int]] = []
        for image in read.images.values():
            if image["file_name"] not in there:
                self.findings.add(Kind.MISSING, image["file_name"])
                continue
            for row in read.by_image[image["id"]]:  # one, or none where the file lists a picture without annotation
                if row["file_name"] not in masks:
                    self.findings.add(Kind.MASK_MISSING, row["file_name"])
                    continue
                parts = [(s["id"], read.label[s["category_id"]], s.get("iscrowd", 0)) for s in row["segments_info"]]
                rows.append((row["file_name"], parts))
                self.images.append((image["file_name"], image["id"], image["height"], image["width"]))
        self.notes = notes(
            file,
            {
                "picture without annotation (left out)": sum(not rows for rows in read.by_image.values()),
                f"picture of {self.folder} that is not listed": len(
                    there.others(row["file_name"] for row in read.images.values())
                ),
            },
        )
        self.findings.settle(file, on_error)
        if not self.images:
            raise ValueError(f"{file}: no picture to read in {self.folder}")
        self.rows = Packed(rows)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, epoch: int = 0) -> Scene:
        file, name, height, width = self.images[index]
        image = read_sized(os.path.join(self.folder, file), height, width)
        png, parts = self.rows[index]
        png = os.path.join(self.segments, png)
        ids = segment_ids(read_sized(png, height, width))
        known = {segment: (label, bool(crowd)) for segment, label, crowd in parts} | {
            0: (IGNORE + 1, True)
        }  # 0: unjudged
        numbers = np.array(sorted(known))
        place = np.searchsorted(numbers, ids.ravel()).clip(max=len(numbers) - 1).reshape(ids.shape)
        if (wrong := numbers[place] != ids).any():
            stray = quoted([str(n) for n in np.unique(ids[wrong])])
            raise UnreadableImage(png, f"it has segments that {self.file} does not list: {stray}")
        place = place.astype(np.uint8 if len(numbers) < 256 else np.int64)
        absent = np.bincount(place.ravel(), minlength=len(numbers)) == 0
        if lacking := [str(n) for n in numbers[absent] if n]:
            raise UnreadableImage(png, f"it lacks segments that {self.file} lists: {quoted(lacking)}")
        found = [known[n] for n in numbers.tolist()]
        table = np.array([IGNORE if crowd else label - 1 for label, crowd in found], np.uint8)
        which = np.flatnonzero(numbers)
        masks = (place == which.astype(place.dtype)[:, None, None]).view(np.uint8)
        labels, crowd = (np.array([found[i][j] for i in which], np.int64) for j in (0, 1))
        return Scene(image, name, objects(tight_boxes(masks), labels, crowd, masks.sum((1, 2)), masks), table[place])

    def name(self, index: int) -> str:
        return os.path.join(self.folder, self.images[index][0])

    def names(self) -> list[str]:
        return [file for file, *_ in self.images]
