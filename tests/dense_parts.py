"""Small made-up sets for the tests of detection and segmentation data."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CFG = {"input_size": (3, 64, 64), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def picture(path: Path, width: int = 40, height: int = 30, colour=(90, 120, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)
    return path


def mask(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def annotation(number: int, image: int = 1, box=(5, 6, 10, 8), category: int = 3, **more) -> dict:
    x, y, w, h = box
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    row = {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": w * h, "iscrowd": 0}
    return {**row, "segmentation": outline, **more}


def coco(root: Path, annotations: list[dict], images: int = 1, split: str = "train", **more) -> Path:
    """root/images/<split>/<n>.png, 40 x 30, and root/annotations/instances_<split>.json; returns the latter."""
    rows = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(1, images + 1)]
    for row in rows:
        picture(root / "images" / split / row["file_name"])
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    document = {"images": rows, "annotations": annotations, "categories": categories, **more}
    return written(root / "annotations" / f"instances_{split}.json", document)


def written(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def voc(root, split="train", **pictures):
    """Pictures of 40 x 30 with objects (class, difficult, xmin, ymin, xmax, ymax)."""
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / "Annotations").mkdir(exist_ok=True)
    (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in pictures))
    for name, rows in pictures.items():
        picture(root / f"JPEGImages/{name}.jpg")
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        text = (
            f"<annotation><filename>{name}.jpg</filename>{size}{''.join(OBJECT.format(*r) for r in rows)}</annotation>"
        )
        (root / f"Annotations/{name}.xml").write_text(text)
    return root


def pairs(root, count=2):
    for i in range(count):
        picture(root / f"images/train/{i}.jpg", 3, 2)
        mask(root / f"masks/train/{i}.png", [[0, 1, 2], [2, 255, 0]])
    return root
