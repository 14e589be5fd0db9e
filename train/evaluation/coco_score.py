"""The twelve official numbers of COCO, by faster-coco-eval, equal to pycocotools' to the last bit.

Four things are done beside the engine. Polygons are rasterised by pycocotools, in less than half of the time. Boxes and
masks are grouped by (image, category) once, so that an overlap is one call. Python's collector of cycles rests: half of
the time. And the engine divides tp by tp + fp, pycocotools by tp + fp + 2⁻⁵²: that is 1 - 2⁻⁵² in place of 1 where the
best detection alone is right, and is put back (`first_alone`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as engine_mask
from pycocotools import mask

from .coco_truth import Results, Truth, runs_of, uncollected

KINDS = {"box": "bbox", "mask": "segm"}  # our words, pycocotools' words
LINES = {  # name -> (precision?, overlap or None for all ten, area, detections an image)
    "AP": (True, None, "all", 100),
    "AP50": (True, 0.5, "all", 100),
    "AP75": (True, 0.75, "all", 100),
    "APs": (True, None, "small", 100),
    "APm": (True, None, "medium", 100),
    "APl": (True, None, "large", 100),
    "AR1": (False, None, "all", 1),
    "AR10": (False, None, "all", 10),
    "AR100": (False, None, "all", 100),
    "ARs": (False, None, "small", 100),
    "ARm": (False, None, "medium", 100),
    "ARl": (False, None, "large", 100),
}
ALMOST_ONE = 1 / (1 + np.spacing(1))


@dataclass(frozen=True)
class Scores:
    """`numbers`: the twelve, fractions of 1, None where the annotations hold nothing to find (pycocotools' -1).
    `categories`: AP of each category by name, or None."""

    kind: str  # box or mask
    numbers: dict[str, float | None]
    categories: dict[str, float | None]


class Engine(COCOeval_faster):
    """The engine, given overlaps by (image, category)."""

    overlaps: "Overlaps"

    def computeIoU(self, imgId: int, catId: int) -> Any:  # the engine's own name
        return self.overlaps(imgId, catId)


class Overlaps:
    """(image, category) -> IoU (D, G), detections from the highest score down, ties in their order; [] without either.

    Of a crowd it is the share of the detection that lies in the crowd.
    """

    def __init__(self, found: "Side", true: "Side", scores: np.ndarray, crowd: np.ndarray, most: int) -> None:
        self.found, self.true, self.crowd, self.most = found, true, crowd, most
        self.by_found = groups(found, np.argsort(-scores, kind="stable"))
        self.by_true = groups(true, np.arange(len(true.image)))

    def __call__(self, image: int, category: int) -> Any:
        d, g = self.by_found.get((image, category)), self.by_true.get((image, category))
        if d is None or g is None:
            return []
        d = d[: self.most]
        return engine_mask.iou(self.found.pick(d), self.true.pick(g), self.crowd[g].tolist())


@dataclass(frozen=True)
class Side:
    """Detections or annotations: where they belong, counted from 1, and their shapes."""

    image: np.ndarray
    category: np.ndarray
    shapes: np.ndarray | list[dict[str, Any]]  # (n, 4) boxes, or run lengths

    def pick(self, which: np.ndarray) -> Any:
        return self.shapes[which] if isinstance(self.shapes, np.ndarray) else [self.shapes[i] for i in which.tolist()]


def groups(side: Side, order: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """(image, category) -> indices, in the order given."""
    if not len(order):
        return {}
    key = side.image * (int(side.category.max()) + 1) + side.category
    order = order[np.argsort(key[order], kind="stable")]
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    parts = np.split(order, starts[1:])
    return {(int(side.image[p[0]]), int(side.category[p[0]])): p for p in parts}


def judged(
    truth: Truth, results: Results, kind: str, true_shapes: Any, shapes: Any, area: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Engine]:
    """What `accumulate` gives for these shapes, and the engine that was used."""
    true = Side(truth.image + 1, truth.category + 1, true_shapes)
    found = Side(results.image + 1, results.category + 1, shapes)
    engine = Engine(dataset(truth, true), dataset(truth, found, results.scores, area), kind)
    engine.params.compute_rle = False  # else it parses every mask that `overlaps` has already
    engine.overlaps = Overlaps(found, true, results.scores, truth.crowd, engine.params.maxDets[-1])
    return *accumulate(engine, truth), engine


@uncollected()
def score(truth: Truth, results: Results, kind: str, *, mask_areas: bool = False) -> Scores:
    """`kind` is box or mask. Which detections count as small, medium or large goes by their boxes' area where the
    results hold boxes, as pycocotools has it for masks too; with `mask_areas` by the masks', as detectron2 and
    mmdetection have it."""
    if results.rows and not results.has_masks and (kind == "mask" or results.boxes is None):
        need = "segmentation" if kind == "mask" else "bbox or segmentation"
        raise ValueError(f"{results.source}: no detection has a {need}, so the {kind} numbers have no meaning")
    boxes = results.boxes
    runs = detected_runs(truth, results) if kind == "mask" or boxes is None else []
    if kind == "mask":
        true_shapes, shapes = annotated_runs(truth), runs
    else:
        true_shapes, shapes = truth.boxes, boxes_of_masks(runs) if boxes is None else boxes
    by_masks = boxes is None or (kind == "mask" and mask_areas)
    area = mask_area(runs) if by_masks else boxes[:, 2] * boxes[:, 3]
    precision, recall, engine = judged(truth, results, KINDS[kind], true_shapes, shapes, area)
    levels = engine.params.iouThrs
    areas, most = engine.params.areaRngLbl, engine.params.maxDets
    numbers = {}
    for name, (is_precision, level, size, limit) in LINES.items():
        values = precision if is_precision else recall
        values = values if level is None else values[np.where(level == levels)[0]]
        numbers[name] = mean(values[..., areas.index(size), most.index(limit)])
    each = [mean(precision[:, :, k, 0, -1]) for k in range(len(truth.categories))]
    return Scores(kind, numbers, dict(zip(truth.names, each, strict=True)))


def accumulate(engine: Engine, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T R K A M) over overlaps, recalls, categories, areas and limits, and recall (T K A M), as pycocotools
    has them: -1 where there is nothing to find."""
    official = engine.params.recThrs
    right = to_find(truth, engine.params.areaRng)  # K A
    beyond_one = 1.5 / np.maximum(right, 1)  # a recall that one right detection does not reach and two do
    engine.params.recThrs = np.unique(np.concatenate((official, beyond_one.ravel())))
    engine.evaluate()
    engine.accumulate()
    precision, thresholds = engine.eval["precision"], engine.params.recThrs
    column = np.searchsorted(thresholds, beyond_one)[None, None, :, :, None]
    second = np.take_along_axis(precision, np.broadcast_to(column, (len(precision), 1, *precision.shape[2:])), 1)
    precision = np.ascontiguousarray(precision[:, np.searchsorted(thresholds, official)])
    first_alone = (precision == 1) & (second < 1)
    precision[first_alone] = ALMOST_ONE
    return precision, engine.eval["recall"]


def to_find(truth: Truth, ranges: Sequence[Sequence[float]]) -> np.ndarray:
    """(K, A): annotations of each category within each range of area, crowds apart."""
    counts = np.zeros((len(truth.categories), len(ranges)), np.int64)
    for a, (low, high) in enumerate(ranges):
        which = ~truth.crowd & (truth.area >= low) & (truth.area <= high)
        counts[:, a] = np.bincount(truth.category[which], minlength=len(counts))
    return counts


def mean(values: np.ndarray) -> float | None:
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else None


def dataset(truth: Truth, side: Side, scores: np.ndarray | None = None, area: np.ndarray | None = None) -> COCO:
    """What the engine wants to know, with ids from 1: it keeps them as floats, and takes 0 for none."""
    columns = {
        "image_id": side.image,
        "category_id": side.category,
        "area": truth.area if area is None else area,
        "iscrowd": truth.crowd.astype(int) if scores is None else np.zeros(len(side.image), int),
        **({} if scores is None else {"score": scores}),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    document = {
        "images": [{"id": i} for i in range(1, len(truth.images) + 1)],
        "categories": [{"id": k, "name": name} for k, (_, name) in enumerate(truth.categories, 1)],
        "annotations": [{"id": n, **dict(zip(columns, row, strict=True))} for n, row in enumerate(rows, 1)],
    }
    return COCO(document)


def annotated_runs(truth: Truth) -> list[dict[str, Any]]:
    return runs_of(truth.rows, truth.image, truth.images, "annotation")


def detected_runs(truth: Truth, results: Results) -> list[dict[str, Any]]:
    return runs_of(results.rows, results.image, truth.images, "detection")


def mask_area(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([float(mask.area(run)) for run in runs], np.float64)


def boxes_of_masks(runs: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([mask.toBbox(run) for run in runs], np.float64).reshape(-1, 4)
