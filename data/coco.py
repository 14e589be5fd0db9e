"""COCO annotation files: read, checked, and as a source of scenes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .coco_masks import fills, is_polygon, rasterise
from .findings import Findings, Kind, OnError
from .folders import existing, near, quoted
from .read import UnreadableImage
from .scene import Category, Scene, objects
from .scene_files import Listing, Packed, notes, read_sized

ROUNDING = 1.0  # pixels by which a box may leave its picture without a word: COCO's own are rounded so


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; errors name the file and the line."""
    path = existing(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: a JSON file of annotations is needed")
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON, or cut short ({error})") from error


class Annotations:
    """An annotation file in COCO's form, its structure checked: `document` (as read), `images` and annotations
    (`by_image`) by image id, `categories` in the file's order, `findings`.

    An annotation of an unlisted picture or an unknown category, and a box that is none, are found here and not in
    `by_image`; boxes are clipped to the picture later, by `clipped`. Panoptic files have no ids of annotations.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.document, self.findings = Path(path), read_json(path), Findings()
        self.images = {row["id"]: row for row in self._rows("images", ("id", "file_name", "height", "width"))}
        for row in self.images.values():
            if not all(type(row[side]) is int and row[side] > 0 for side in ("height", "width")):
                raise ValueError(f"{self.path}: {row['file_name']} has size {row['width']!r} x {row['height']!r}")
        self.categories = [category(row) for row in self._rows("categories", ("id", "name"))]
        self.label = {c.id: i for i, c in enumerate(self.categories, 1)}  # category id -> label
        self.panoptic = any("segments_info" in row for row in self.document.get("annotations", [])[:1])
        needed = ("image_id", "segments_info", "file_name") if self.panoptic else ("id", "image_id", "category_id")
        self.by_image: dict[int, list[dict[str, Any]]] = {image: [] for image in self.images}
        for row in self._rows("annotations", needed):
            if self._sound(row):
                self.by_image[row["image_id"]].append(row)

    def _rows(self, key: str, needed: Sequence[str]) -> list[dict[str, Any]]:
        """The list under a key, each row an object with what is needed, ids unique."""
        rows = self.document.get(key) if isinstance(self.document, dict) else None
        if not isinstance(rows, list):
            has = list(self.document) if isinstance(self.document, dict) else [type(self.document).__name__]
            raise ValueError(f"{self.path}: no list {key!r}{near(key, has)}; COCO's form is needed")
        seen = set()
        for i, row in enumerate(rows):
            if lacking := [name for name in needed if not isinstance(row, dict) or name not in row]:
                raise ValueError(f"{self.path}: {key}[{i}] has no {', '.join(lacking)}")
            name = row["id"] if "id" in needed else row["image_id"]
            if name in seen:
                raise ValueError(f"{self.path}: {key} has the id {name} twice: ids must be unique")
            seen.add(name)
        return rows

    def _sound(self, row: dict[str, Any]) -> bool:
        if row["image_id"] not in self.images:
            self.findings.add(Kind.IMAGE, f"image_id {row['image_id']} ({place(row, None)})")
            return False
        image = self.images[row["image_id"]]
        for part in row["segments_info"] if self.panoptic else [row]:
            if "id" not in part or "category_id" not in part:
                raise ValueError(f"{self.path}: a segment of {image['file_name']} has no id or category_id: {part}")
            if part["category_id"] not in self.label:
                self.findings.add(Kind.CATEGORY, f"category_id {part['category_id']} ({place(part, image)})")
                return False
        if self.panoptic or _is_box(row.get("bbox")):
            return True
        self.findings.add(Kind.MALFORMED, f"{place(row, image)}: {row.get('bbox')!r}")
        return False

    @property
    def classes(self) -> list[str]:
        return [c.name for c in self.categories]

    def clipped(self, row: dict[str, Any]) -> tuple[float, float, float, float] | None:
        """The box as x0 y0 x1 y1 within its picture, or None where nothing is left of it."""
        image = self.images[row["image_id"]]
        return clip(row["bbox"], image["height"], image["width"], place(row, image), self.findings)


def check_ids(read: Annotations) -> None:
    """Raise for ids of pictures that are no whole numbers: they travel in tensors."""
    if strange := [i for i in read.images if type(i) is not int]:
        raise ValueError(
            f"{read.path}: {len(strange)} ids of pictures are no whole numbers ({quoted([*map(str, strange)])})"
        )


def category(row: Mapping[str, Any]) -> Category:
    return Category(row["id"], row["name"], bool(row.get("isthing", 1)), tuple(row.get("keypoints", ())))


def place(row: Mapping[str, Any], image: Mapping[str, Any] | None) -> str:
    return f"annotation {row.get('id', '?')}" + ("" if image is None else f" of {image['file_name']}")


def _is_box(box: Any) -> bool:
    return isinstance(box, list | tuple) and len(box) == 4 and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e9 for v in box
    )  # fmt: skip


def clip(
    box: Sequence[float], height: int, width: int, where: str, findings: Findings
) -> tuple[float, float, float, float] | None:
    """COCO's x y w h -> x0 y0 x1 y1 within the picture; what had to be changed by more than rounding is told."""
    x, y, w, h = box
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if w <= 0 or h <= 0:
        findings.add(Kind.FLAT, f"{where} ({w:g} x {h:g})")
        return None
    if x1 <= x0 or y1 <= y0:
        findings.add(Kind.OUTSIDE, f"{where} ({x:g} {y:g} {x + w:g} {y + h:g} in {width} x {height})")
        return None
    if max(x0 - x, y0 - y, x + w - x1, y + h - y1) > ROUNDING:
        findings.add(Kind.CLIPPED, f"{where} ({x:g} {y:g} {x + w:g} {y + h:g} in {width} x {height})")
    return x0, y0, x1, y1


class CocoScenes:
    """The pictures of an annotation file -> scenes with objects.

    masks, keypoints   read them as well; an object without a mask is then left out or stops the run (on_error)
    empty              keep pictures without an object (crowds count as none): scenes in which nothing is to be found
    `findings` says what was wrong.
    """

    steady = True

    def __init__(
        self,
        file: str | Path,
        folder: str | Path,
        *,
        masks: bool = False,
        keypoints: bool = False,
        empty: bool = True,
        on_error: OnError = "stop",
    ) -> None:
        self.file, self.folder, self.masks = Path(file), existing(folder), masks
        read = Annotations(file)
        if read.panoptic:
            raise ValueError(f"{file}: these are panoptic annotations: task panoptic reads them")
        self.categories, self.classes, self.findings = read.categories, read.classes, read.findings
        self.points = max((len(c.keypoints) for c in self.categories), default=0) if keypoints else 0
        if keypoints and not self.points:
            raise ValueError(f"{file}: no category has keypoints: read it without")
        check_ids(read)
        images, there = list(read.images.values()), Listing(self.folder)
        rows = [self._row(read, image) for image in images]
        keep = [i for i, image in enumerate(images) if self._present(image, there)]
        full = [i for i in keep if any(not crowd for _, _, crowd, *_ in rows[i])]
        self.notes = notes(
            file,
            {
                f"picture without an object{'' if empty else ' (left out)'}": len(keep) - len(full),
                f"picture of {self.folder} that is not listed": len(there.others(row["file_name"] for row in images)),
            },
        )
        keep = keep if empty else full
        self.findings.settle(file, on_error)
        if not keep:
            raise ValueError(f"{file}: no picture to read in {self.folder}")
        self.images = [(images[i]["file_name"], images[i]["id"], images[i]["height"], images[i]["width"]) for i in keep]
        self.rows = Packed([rows[i] for i in keep])

    def _present(self, image: Mapping[str, Any], there: Listing) -> bool:
        if image["file_name"] in there:
            return True
        self.findings.add(Kind.MISSING, image["file_name"])
        return False

    def _row(self, read: Annotations, image: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """(box, label, crowd, area, segmentation, keypoints) of each object that is right."""
        rows = []
        for row in read.by_image[image["id"]]:
            box = read.clipped(row)
            shape = self._shape(row, image) if self.masks else None
            if box is None or (self.masks and shape is None):
                continue
            points = row.get("keypoints") or [0] * 3 * self.points
            if self.points and len(points) != 3 * self.points:
                points = [*points, *[0] * (3 * self.points - len(points))]
            area = row.get("area", (box[2] - box[0]) * (box[3] - box[1]))
            rows.append((box, read.label[row["category_id"]], bool(row.get("iscrowd")), area, shape, points))
        return rows

    def _shape(self, row: Mapping[str, Any], image: Mapping[str, Any]) -> Any:
        """The segmentation if it is one of this picture."""
        found, where = row.get("segmentation"), place(row, image)
        if isinstance(found, dict):
            size = tuple(found.get("size", ()))
            if "counts" not in found:
                self.findings.add(Kind.UNMASKED, where)
                return None
            if size != (image["height"], image["width"]):
                text = f"{where} ({' x '.join(map(str, size[::-1]))}, not {image['width']} x {image['height']})"
                self.findings.add(Kind.MASK_SIZE, text)
                return None
            if isinstance(found["counts"], list) and not fills(found["counts"], *size):
                self.findings.add(Kind.RUNS, where)
                return None
            return found
        good = [p for p in found or () if is_polygon(p)]
        for _ in range(len(found or ()) - len(good)):
            self.findings.add(Kind.POLYGON, where)
        if not good:
            self.findings.add(Kind.UNMASKED, where)
        return good or None

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int, epoch: int = 0) -> Scene:
        file, name, height, width = self.images[index]
        image = read_sized(os.path.join(self.folder, file), height, width)
        rows = self.rows[index]
        boxes, labels, crowd, area, shapes, points = zip(*rows, strict=True) if rows else ([],) * 6
        masks = np.zeros((len(rows), height, width), np.uint8) if self.masks else None
        for i, shape in enumerate(shapes if masks is not None else ()):
            try:
                masks[i] = rasterise(shape, height, width)
            except (ValueError, TypeError) as error:
                raise UnreadableImage(self.name(index), f"the mask of object {i + 1} is none: {error}") from error
        keypoints = np.array(points, np.float32).reshape(len(rows), self.points, 3) if self.points else None
        return Scene(image, name, objects(boxes, labels, crowd, area, masks, keypoints))

    def name(self, index: int) -> str:
        return os.path.join(self.folder, self.images[index][0])

    def names(self) -> list[str]:
        return [file for file, *_ in self.images]
