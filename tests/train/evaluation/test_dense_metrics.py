"""DetectionScores: the official numbers, gathered picture by picture, in one process and in two."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from coco_parts import pycocotools
from processes import two_processes
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from patchloom.train.evaluation.dense_metrics import NAMES, DetectionScores
from patchloom.train.evaluation.detector import Detections

CLASSES = ["cell", "platelet", "nothing"]


def scene(seed: int, size: tuple[int, int] = (60, 80)) -> tuple[Detections, dict[str, Tensor]]:
    """Rectangles and what was found of them; the fourth kind of picture is empty."""
    r = np.random.default_rng(seed)
    n = 0 if seed % 4 == 3 else int(r.integers(1, 6))
    low = r.random((n, 2)) * 40
    boxes = np.concatenate((low, low + 4 + r.random((n, 2)) * 30), 1).clip(0, [80, 60, 80, 60])
    moved = np.concatenate((boxes + r.normal(0, 1.5, boxes.shape), boxes[: n // 2]))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    labels = r.integers(1, 3, n)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "labels": torch.tensor(labels),
        "masks": filled(boxes, size),
        "iscrowd": torch.tensor(r.random(n) < 0.15),
        "image_id": torch.tensor(100 + seed),
    }
    target["area"] = target["masks"].sum((1, 2)).float()
    scores = torch.tensor(r.random(len(moved)).round(1), dtype=torch.float32)
    found = Detections(
        torch.tensor(moved, dtype=torch.float32),
        scores,
        torch.tensor(np.concatenate((labels, labels[: n // 2]))),
        filled(moved, size) > 0,
    )
    return found, target


def filled(boxes: np.ndarray, size: tuple[int, int]) -> Tensor:
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.round().astype(int).clip(0), strict=True):
        mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = 1
    return masks


def as_files(scenes: list[tuple[Detections, dict[str, Tensor]]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same as COCO's documents, through the accumulator's own rows."""
    metric = DetectionScores(CLASSES, masks=True)
    for found, target in scenes:
        metric.update([found], [target])
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)]
    results = []
    for image, (size, found, true) in metric.seen.items():
        document["images"].append({"id": image, "height": size[0], "width": size[1], "file_name": ""})
        document["annotations"] += [{**row, "id": len(document["annotations"]) + i} for i, row in enumerate(true, 1)]
        results += found
    return document, results


def test_equal_to_pycocotools_and_torchmetrics() -> None:
    scenes = [scene(i) for i in range(16)]
    metric = DetectionScores(CLASSES, masks=True)
    theirs = MeanAveragePrecision(iou_type="bbox", backend="pycocotools")
    for i in range(0, 16, 4):
        found, targets = zip(*scenes[i : i + 4], strict=True)
        metric.update(found, targets)
        theirs.update(
            [{"boxes": f.boxes, "scores": f.scores, "labels": f.labels} for f in found],
            [
                {k: t[k].int() if k == "iscrowd" else t[k] for k in ("boxes", "labels", "iscrowd", "area")}
                for t in targets
            ],
        )
    ours = metric.compute()
    document, results = as_files(scenes)
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        official = pycocotools(document, results, kind)
        for name, value in official.items():
            key = prefix + NAMES[name]
            assert (float(ours[key]) if key in ours else -1.0) == pytest.approx(value, rel=1e-6)
    assert "map_large" not in ours
    expected = theirs.compute()
    assert float(ours["map"]) == pytest.approx(float(expected["map"]), rel=1e-6)
    assert float(ours["mar100"]) == pytest.approx(float(expected["mar_100"]), rel=1e-6)
    assert metric.scores()[0].categories["nothing"] is None


def test_an_image_counts_once_and_reset_forgets() -> None:
    metric = DetectionScores(CLASSES)
    found, target = scene(0)
    metric.update([found], [target])
    once = metric.compute()
    metric.update([found], [target])
    assert metric.compute() == once
    metric.reset()
    metric.update([scene(3)[0]], [scene(3)[1]])
    assert metric.compute() == {}
    assert "mask_map" not in once


def scored(devices: int, folder: Path) -> dict[str, Tensor]:
    """Of nine pictures; where two processes share them, the sampler fills up with the first."""
    rank, pictures = int(os.environ.get("LOCAL_RANK", 0)), [*range(9)]
    if devices == 2:
        dist.init_process_group("gloo", rank=rank, world_size=2)
        pictures = [*range(rank, 9, 2), 0]
    metric = DetectionScores(CLASSES, masks=True)
    for i in pictures:
        found, target = scene(i)
        metric.update([found], [target])
    return metric.compute()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    first, second = two_processes(scored, tmp_path, lightning=False)
    assert first == second == scored(1, tmp_path)
