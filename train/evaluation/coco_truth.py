"""COCO annotations and results as evaluation needs them: checked, what is wrong named and counted."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...data.coco import Annotations, read_json
from ...data.findings import Kind
from ...data.folders import quoted

INFINITY = float("inf")
BEYOND = 1.0  # pixels by which a box may leave its image without a note: official ones are rounded so


@dataclass(frozen=True)
class Truth:
    """What detections are held against. Images and categories stand in the order of their ids; `image` and `category`
    are positions among them."""

    source: str
    images: Sequence[Mapping[str, Any]]  # id, file_name, height, width
    categories: Sequence[tuple[Any, str]]  # (id, name)
    rows: Sequence[Mapping[str, Any]]  # the annotations, in the order of the file
    image: np.ndarray  # (n,) int64
    category: np.ndarray  # (n,) int64
    area: np.ndarray  # (n,) float64, as annotated
    crowd: np.ndarray  # (n,) bool
    boxes: np.ndarray  # (n, 4) float64: x y width height
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of the categories, each once: one that two share carries its id."""
        plain = [name for _, name in self.categories]
        return [n if plain.count(n) == 1 else f"{n} ({i})" for i, n in self.categories]

    @property
    def has_masks(self) -> bool:
        return bool(self.rows) and all(row.get("segmentation") for row in self.rows)


@dataclass(frozen=True)
class Results:
    """n detections in COCO's result format, those of categories that the annotations have."""

    source: str
    rows: Sequence[Mapping[str, Any]]
    image: np.ndarray  # (n,) int64: positions in Truth.images
    category: np.ndarray  # (n,) int64: positions in Truth.categories
    scores: np.ndarray  # (n,) float64
    boxes: np.ndarray | None  # (n, 4) float64: x y width height, where the results hold boxes
    has_masks: bool
    notes: tuple[str, ...] = ()


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's collector of cycles, which would go over all these rows again and again to find none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@uncollected()
def read_truth(file: str | Path) -> Truth:
    """An annotation file of COCO's form; `iscrowd` is 0 where it isn't said. Annotations of images or categories that
    the file does not list take no part, as with pycocotools, and are noted; what has no official meaning raises."""
    read = Annotations(file)
    if read.panoptic:
        raise ValueError(f"{file}: these are panoptic annotations: patchloom eval panoptic reads them")
    if read.document.get("annotations") == []:
        raise ValueError(f"{file}: holds no annotation (a test set's file?), so nothing can be judged by it")
    if malformed := read.findings.places.get(Kind.MALFORMED):
        raise ValueError(f"{file}: {len(malformed)} x {Kind.MALFORMED.text}: {quoted(malformed)}; mend the file")
    images = [read.images[i] for i in ordered(read.images, file, "image")]
    names = {c.id: c.name for c in read.categories}
    categories = [(i, names[i]) for i in ordered(names, file, "category")]
    rows = [row for image in images for row in read.by_image[image["id"]]]
    if bad := [row["id"] for row in rows if not number(row.get("area"))]:
        raise ValueError(
            f"{file}: {len(bad)} of {len(rows)} annotations have no area (annotation {quoted([*map(str, bad)])}): the "
            "official small, medium and large go by it; write the area of the segmentation, or of the box where there "
            "is none"
        )
    at_image, at_category = place_of(image["id"] for image in images), place_of(i for i, _ in categories)
    image = integers(at_image[row["image_id"]] for row in rows)
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    notes = [f"{line}; left out, as pycocotools does" for line in read.findings.lines()]
    notes += box_notes(boxes, image, images, "annotations", [f"annotation {row['id']}" for row in rows])
    return Truth(
        str(file), images, categories, rows, image,
        integers(at_category[row["category_id"]] for row in rows),
        np.array([row["area"] for row in rows], np.float64),
        np.array([bool(row.get("iscrowd", 0)) for row in rows], bool),
        boxes, tuple(notes),
    )  # fmt: skip


def restricted(truth: Truth, places: Sequence[int]) -> Truth:
    """The annotations of the images at these positions."""
    keep = sorted(places)
    if keep == list(range(len(truth.images))):
        return truth
    which = np.flatnonzero(np.isin(truth.image, keep))
    return replace(
        truth,
        images=[truth.images[i] for i in keep],
        rows=[truth.rows[i] for i in which.tolist()],
        image=np.searchsorted(keep, truth.image[which]),
        category=truth.category[which],
        area=truth.area[which],
        crowd=truth.crowd[which],
        boxes=truth.boxes[which],
    )


@uncollected()
def read_results(source: str | Path | Sequence[Mapping[str, Any]], truth: Truth, name: str = "the results") -> Results:
    """A JSON file, or its content, of [{image_id, category_id, score, bbox and/or segmentation}].

    Raises for an image that the annotations do not list, for scores and boxes that are no finite numbers, and where
    only some of the detections have a box or a mask. A category that the annotations lack takes no part, and is noted.
    """
    rows: Any = source
    if isinstance(source, str | Path):
        rows, name = read_json(source), str(source)
    if not isinstance(rows, list):
        has = f"an object with {quoted([*map(str, rows)])}" if isinstance(rows, dict) else f"a {type(rows).__name__}"
        raise ValueError(
            f"{name}: holds {has}; results are a list of {{image_id, category_id, score, bbox, segmentation}}"
        )
    check_fields(rows, name)
    at_image, at_category = place_of(i["id"] for i in truth.images), place_of(i for i, _ in truth.categories)
    if strange := [row["image_id"] for row in rows if row["image_id"] not in at_image]:
        raise ValueError(
            f"{name}: {len(strange)} of {len(rows)} detections are of {len(set(strange))} images that {truth.source} "
            f"does not list (image_id {quoted([*map(str, dict.fromkeys(strange))])}): take the annotations of the same "
            "split"
        )
    known = [row for row in rows if row["category_id"] in at_category]
    notes = []
    if len(known) < len(rows):
        lost = list(dict.fromkeys(str(row["category_id"]) for row in rows if row["category_id"] not in at_category))
        text = (
            f"{len(rows) - len(known)} of {len(rows)} detections are of {len(lost)} categories that {truth.source} "
            f"lacks (category_id {quoted(lost)})"
        )
        if not known:
            raise ValueError(f"{name}: {text}: not one can count; category_id is the annotations' own number")
        notes.append(f"{text}; left out, as pycocotools does")
    image = integers(at_image[row["image_id"]] for row in known)
    boxes = boxes_of(known, name)
    if boxes is not None:
        notes += box_notes(boxes, image, truth.images, "detections", None)
    return Results(
        name, known, image,
        integers(at_category[row["category_id"]] for row in known),
        np.array([row["score"] for row in known], np.float64),
        boxes, all_or_none(known, "segmentation", name), tuple(notes),
    )  # fmt: skip


def check_fields(rows: Sequence[Any], name: str) -> None:
    """Raises for the first row that lacks what every detection has."""
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{name}: detection {i} is a {type(row).__name__}, not an object")
        if lacking := [key for key in ("image_id", "category_id", "score") if key not in row]:
            raise ValueError(f"{name}: detection {i} has no {', '.join(lacking)}")
        if strange := [key for key in ("image_id", "category_id") if type(row[key]) not in (int, float, str)]:
            raise ValueError(f"{name}: detection {i} has the {strange[0]} {row[strange[0]]!r}")
        if not number(row["score"]):
            raise ValueError(f"{name}: detection {i} of image {row['image_id']} has the score {row['score']!r}")


def all_or_none(rows: Sequence[Mapping[str, Any]], key: str, name: str) -> bool:
    """Whether the rows have the key; pycocotools judges by the first row alone, and is wrong about the others."""
    lacking = [i for i, row in enumerate(rows) if not row.get(key)]
    if lacking and len(lacking) < len(rows):
        raise ValueError(
            f"{name}: {len(lacking)} of {len(rows)} detections have no {key} (the first: detection {lacking[0]}): give "
            "it to all, or make two files"
        )
    return bool(rows) and not lacking


def boxes_of(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray | None:
    if not all_or_none(rows, "bbox", name):
        return None
    for i, row in enumerate(rows):
        box = row["bbox"]
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(number, box)):
            raise ValueError(
                f"{name}: detection {i} of image {row['image_id']} has the bbox {box!r}; it is [x, y, width, height]"
            )
    return np.array([row["bbox"] for row in rows], np.float64)


def box_notes(
    boxes: np.ndarray, image: np.ndarray, images: Sequence[Mapping[str, Any]], what: str, names: list[str] | None
) -> list[str]:
    """Boxes without area, outside and partly outside their image: counted, and kept as they are."""
    size = np.array([(i["width"], i["height"]) for i in images], np.float64).reshape(-1, 2)[image]
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    flat = (boxes[:, 2:] <= 0).any(1)
    outside = ~flat & ((low >= size) | (high <= 0)).any(1)
    beyond = ~flat & ~outside & ((low < -BEYOND) | (high > size + BEYOND)).any(1)
    notes = []
    for which, fault in (
        (flat, "without area"),
        (outside, "outside their image"),
        (beyond, "reaching beyond their image"),
    ):
        if which.any():
            first = [
                f"{names[i] if names else f'detection {i}'} of image {images[image[i]]['id']}"
                for i in np.flatnonzero(which)[:3]
            ]
            notes.append(
                f"{which.sum()} of {len(boxes)} boxes of {what} {fault} ({', '.join(first)}); judged as they are"
            )
    return notes


def runs_of(
    rows: Sequence[Mapping[str, Any]], image: np.ndarray, images: Sequence[Mapping[str, Any]], what: str
) -> list[dict[str, Any]]:
    """The run lengths of each segmentation (polygons, or runs with or without compression), made by pycocotools.

    Raises, with their number, for rows without a mask, masks of another size than their image, and what is no mask.
    """
    from pycocotools import mask

    found, faults = [], {}
    for i, (row, at) in enumerate(zip(rows, image.tolist(), strict=True)):
        height, width = images[at]["height"], images[at]["width"]
        shape = row.get("segmentation")
        fault = mask_fault(shape, height, width)
        if fault is not None:
            faults.setdefault(fault[0], []).append(f"{what} {row.get('id', i)} of image {row['image_id']}{fault[1]}")
        elif isinstance(shape, list):
            found.append(mask.merge(mask.frPyObjects(shape, height, width)))
        else:
            found.append(mask.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else dict(shape))
    if faults:
        raise ValueError(
            "; ".join(f"{len(places)} of {len(rows)} {what}s {f}: {quoted(places, 3)}" for f, places in faults.items())
        )
    return found


def mask_fault(shape: Any, height: int, width: int) -> tuple[str, str] | None:
    """(what is wrong, details) of a segmentation; None for a good one."""
    if not shape:
        return "have no segmentation", ""
    if isinstance(shape, dict):
        if "counts" not in shape or list(shape.get("size", ())) != [height, width]:
            size = "x".join(map(str, shape.get("size", "?")))
            return "have a mask of another size than the image", f" ({size}, not {height}x{width})"
        if isinstance(shape["counts"], list) and sum(shape["counts"]) != height * width:
            return "have run lengths that do not fill the image", ""
        return None if isinstance(shape["counts"], str | bytes | list) else ("have run lengths of no known form", "")
    if isinstance(shape, list) and all(isinstance(p, list) and len(p) >= 4 and len(p) % 2 == 0 for p in shape):
        boxes = len(shape[0]) == 4  # pycocotools takes four numbers for a box, and all like the first
        return None if not boxes or all(len(p) == 4 for p in shape) else ("mix boxes and polygons", "")
    return "have a segmentation that is no list of polygons [x, y, …] and no run lengths", ""


def ordered(ids: Mapping[Any, Any], file: str | Path, what: str) -> list[Any]:
    """The ids from the smallest up, as pycocotools goes through them."""
    kinds = {type(i) for i in ids}
    if kinds != {int} and kinds != {str}:
        has = ", ".join(sorted(k.__name__ for k in kinds)) or "missing"
        raise ValueError(f"{file}: ids of {what} are {has}; whole numbers are needed")
    return sorted(ids)


def place_of(ids: Any) -> dict[Any, int]:
    return {i: place for place, i in enumerate(ids)}


def integers(values: Any) -> np.ndarray:
    return np.fromiter(values, np.int64)


def number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (float, int) and -INFINITY < value < INFINITY
