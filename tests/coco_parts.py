"""COCO annotations and results made at random, and what pycocotools says of them."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core.mask import decode
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def pycocotools(
    annotations: Path | dict[str, Any], results: Path | list[dict[str, Any]], kind: str
) -> dict[str, float]:
    """The twelve numbers; content is written as JSON and read back, since pycocotools changes what it is given."""
    annotations, results = (json.loads(json.dumps(c)) if not isinstance(c, Path) else c for c in (annotations, results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations)) if isinstance(annotations, Path) else COCO()
        if isinstance(annotations, dict):
            truth.dataset = annotations
            truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(str(results) if isinstance(results, Path) else results), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return dict(zip(NAMES, judged.stats.tolist(), strict=True))


def random_annotations(r: np.random.Generator, images: int = 12, categories: int = 5, most: int = 9) -> dict[str, Any]:
    """Images of several sizes, one in five empty; polygons, and run lengths for crowds, of 4 to 200 px."""
    sizes = [(int(r.integers(90, 320)), int(r.integers(90, 320))) for _ in range(images)]
    document: dict[str, Any] = {
        "images": [
            {"id": 7 + 3 * i, "file_name": f"{i}.jpg", "height": h, "width": w} for i, (h, w) in enumerate(sizes)
        ],
        "categories": [{"id": 2 * k + 1, "name": f"kind {k}"} for k in range(categories)],
        "annotations": [],
    }
    for image in document["images"]:
        for _ in range(0 if r.random() < 0.2 else int(r.integers(1, most))):
            document["annotations"].append(random_object(r, image, categories, len(document["annotations"]) + 1))
    r.shuffle(document["annotations"])
    r.shuffle(document["images"])
    return document


def random_object(r: np.random.Generator, image: dict[str, Any], categories: int, number: int) -> dict[str, Any]:
    h, w = image["height"], image["width"]
    bw, bh = (float(min(4 * 50 ** r.random(), side * 0.9)) for side in (w, h))
    x, y = float(r.random() * (w - bw)), float(r.random() * (h - bh))
    outline = ellipse(x, y, bw, bh)
    crowd = int(r.random() < 0.15)
    runs = mask.merge(mask.frPyObjects([outline], h, w))
    plane = decode(runs).T.ravel()
    edges = np.flatnonzero(np.diff(plane, prepend=0)).tolist()
    counts = np.diff([0, *edges, plane.size]).tolist()
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": 2 * int(r.integers(categories)) + 1,
        "bbox": [x, y, bw, bh],
        "area": float(mask.area(runs)),
        "iscrowd": crowd,
        "segmentation": {"size": [h, w], "counts": counts} if crowd else [outline],
    }


def ellipse(x: float, y: float, width: float, height: float) -> list[float]:
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    points = np.stack((x + width * (1 + np.cos(turn)) / 2, y + height * (1 + np.sin(turn)) / 2), 1)
    return points.ravel().round(2).tolist()


def random_results(
    r: np.random.Generator, document: dict[str, Any], *, boxes: bool = True, masks: bool = True, wild: int = 60
) -> list[dict[str, Any]]:
    """Every object about twice, moved a little, at times as another category; `wild` ones anywhere; scores repeat."""
    images = {image["id"]: image for image in document["images"]}
    ids = [c["id"] for c in document["categories"]]
    rows = []
    for one in [o for o in document["annotations"] for _ in range(int(r.integers(0, 4)))] + [None] * wild:
        image = images[one["image_id"]] if one else document["images"][int(r.integers(len(images)))]
        fake = one or random_object(r, image, len(ids), 0)
        box = [float(v + r.normal() * 0.08 * side) for v, side in zip(fake["bbox"], fake["bbox"][2:] * 2, strict=True)]
        box[2:] = [max(v, 1.0) for v in box[2:]]
        row = {
            "image_id": image["id"],
            "category_id": fake["category_id"] if r.random() < 0.9 else int(r.choice(ids)),
            "score": float(r.integers(1, 12)) / 12 if r.random() < 0.5 else float(r.random()),
        }
        if boxes:
            row["bbox"] = box
        if masks:
            runs = mask.merge(mask.frPyObjects([ellipse(*box)], image["height"], image["width"]))
            row["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
        rows.append(row)
    r.shuffle(rows)
    return rows
