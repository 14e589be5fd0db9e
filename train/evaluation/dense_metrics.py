"""What detectors and segmenters are judged by in training: sums over all processes, so two give the numbers of one.

All numbers are fractions of 1. What the data give nothing to judge by is NaN, or left out: never -1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric

from .coco_score import Scores, score
from .coco_truth import Truth, read_results
from .detector import Detections, as_results
from .panoptic_quality import Panorama, Quality, Tally, compare, mean, nothing, qualities


@dataclass(frozen=True)
class SemanticNumbers:
    """IoU = true positives / (true positives + false positives + false negatives) of each class over all pixels,
    accuracy = true positives / pixels of the class; NaN for a class without such pixels, which is no part of the means.
    """

    iou: Tensor  # (K,) float64
    accuracy: Tensor  # (K,) float64
    miou: float
    macc: float
    aacc: float  # pixels of the right class / pixels

    @classmethod
    def of(cls, counts: Tensor) -> "SemanticNumbers":
        """counts (K, K + 1): pixels by true class and predicted one, the last column for none."""
        counts = counts.double()
        right, true, found = counts.diagonal(), counts.sum(1), counts.sum(0)[:-1]
        iou, accuracy = right / (true + found - right), right / true
        return cls(iou, accuracy, float(iou.nanmean()), float(accuracy.nanmean()), float(right.sum() / counts.sum()))


class SemanticScores(Metric):
    """`counts` (K, K + 1) int64: pixels by true class and predicted one, or none; the target `ignore` is left out."""

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int, ignore: int = 255):
        super().__init__()
        self.classes, self.ignore = classes, ignore
        self.add_state("counts", torch.zeros(classes, classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """prediction: classes (B, H, W), `ignore` for none, or logits (B, K, H, W); target (B, H, W)."""
        if prediction.ndim == target.ndim + 1:
            prediction = prediction.argmax(1)
        if prediction.shape != target.shape:
            raise ValueError(
                f"the prediction is {tuple(prediction.shape)}, the target {tuple(target.shape)}: sizes must agree"
            )
        judged = target != self.ignore
        true, found = target[judged].long(), prediction[judged].long()
        for what, values in (("target", true), ("prediction", found)):
            values = values[values != self.ignore]
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.classes:
                raise ValueError(
                    f"the {what} holds {int(values.min())} to {int(values.max())}; there are classes 0 to "
                    f"{self.classes - 1}, and {self.ignore} for what is not judged"
                )
        found = found.masked_fill(found == self.ignore, self.classes)
        pairs = torch.bincount(true * (self.classes + 1) + found, minlength=self.counts.numel())
        self.counts += pairs.view_as(self.counts)

    def numbers(self) -> SemanticNumbers:
        return SemanticNumbers.of(self.counts)

    def compute(self) -> dict[str, Tensor]:
        found = self.numbers()
        return {name: torch.tensor(getattr(found, name)) for name in ("miou", "macc", "aacc")}


NAMES = {
    "AP": "map", "AP50": "map50", "AP75": "map75", "APs": "map_small", "APm": "map_medium", "APl": "map_large",
    "AR1": "mar1", "AR10": "mar10", "AR100": "mar100", "ARs": "mar_small", "ARm": "mar_medium", "ARl": "mar_large",
}  # fmt: skip


class DetectionScores(nn.Module):
    """COCO's numbers over the images seen: map, map50, map75, map_small, …, mar100 …; of masks with `mask_` before."""

    def __init__(self, classes: Sequence[str], masks: bool = False):
        super().__init__()
        self.names, self.masks = list(classes), masks
        self.reset()

    def reset(self) -> None:
        self.seen: dict[int, tuple[tuple[int, int], list[dict[str, Any]], list[dict[str, Any]]]] = {}

    def update(self, found: Sequence[Detections], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Targets as torchvision's detectors take them: boxes (n, 4) x0 y0 x1 y1, labels (n,) from 1, image_id, and
        where there are any masks (n, H, W), iscrowd (n,), area (n,); in the pixels that the detections are in.

        An image that comes twice (as a distributed sampler fills up) counts once.
        """
        labels = range(1, len(self.names) + 1)
        for one, target in zip(found, targets, strict=True):
            image = int(target["image_id"])
            kept = one if self.masks else Detections(one.boxes, one.scores, one.labels)
            self.seen.setdefault(
                image, (self._size(target), as_results(kept, image, labels), self._rows(target, image))
            )

    def _size(self, target: Mapping[str, Tensor]) -> tuple[int, int]:
        return tuple(target["masks"].shape[-2:]) if self.masks else (0, 0)  # of boxes alone it makes no difference

    def _rows(self, target: Mapping[str, Tensor], image: int) -> list[dict[str, Any]]:
        n = len(target["labels"])
        true = Detections(
            target["boxes"].reshape(n, 4), torch.zeros(n), target["labels"], target["masks"] if self.masks else None
        )
        rows = as_results(true, image, range(1, len(self.names) + 1))
        for i, row in enumerate(rows):
            row["area"] = float(target["area"][i]) if "area" in target else row["bbox"][2] * row["bbox"][3]
            row["iscrowd"] = int(target["iscrowd"][i]) if "iscrowd" in target else 0
        return rows

    def gathered(self) -> dict[int, Any]:
        """What all processes saw."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.seen
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self.seen)
        return {image: rows for part in reversed(parts) for image, rows in part.items()}

    def scores(self) -> list[Scores]:
        """Of boxes, and of masks; the numbers of each category among them."""
        seen = dict(sorted(self.gathered().items()))
        places = {image: i for i, image in enumerate(seen)}
        rows = [row for _, _, true in seen.values() for row in true]
        column = lambda key, kind: np.array([row[key] for row in rows], kind)  # noqa: E731
        truth = Truth(
            "the targets",
            [{"id": i, "file_name": str(i), "height": size[0], "width": size[1]} for i, (size, _, _) in seen.items()],
            list(enumerate(self.names, 1)),
            rows,
            np.array([places[row["image_id"]] for row in rows], np.int64),
            column("category_id", np.int64) - 1,
            column("area", np.float64),
            column("iscrowd", bool),
            column("bbox", np.float64).reshape(-1, 4),
        )
        results = read_results([row for _, found, _ in seen.values() for row in found], truth, "the detections")
        return [score(truth, results, kind) for kind in (["box", "mask"] if self.masks else ["box"])]

    def compute(self) -> dict[str, Tensor]:
        """Without those that there is nothing to judge by."""
        return {
            ("mask_" if one.kind == "mask" else "") + NAMES[name]: torch.tensor(value)
            for one in self.scores()
            for name, value in one.numbers.items()
            if value is not None
        }


class PanopticScores(Metric):
    """Panoptic quality over the pictures seen: pq, sq, rq, and pq_things, pq_stuff; see panoptic.py."""

    full_state_update = False
    STATES = ("iou", "matched", "extra", "missed")

    def __init__(self, things: Sequence[bool]):
        """things: for each category whether it is one of things, else of stuff."""
        super().__init__()
        self.things = list(things)
        for name, zeros in vars(nothing(len(self.things))).items():
            self.add_state(name, torch.from_numpy(zeros), dist_reduce_fx="sum")

    def update(self, true: Panorama, found: Panorama) -> None:
        for panorama, what in ((true, "truth"), (found, "prediction")):
            if fault := panorama.fault():
                raise ValueError(f"the {what}: {fault}")
        for name, counts in vars(compare(true, found, len(self.things))).items():
            state = getattr(self, name)
            setattr(self, name, state + torch.from_numpy(counts).to(state.device))

    def categories(self) -> list[Quality | None]:
        return qualities(Tally(*(getattr(self, name).cpu().numpy() for name in self.STATES)))

    def compute(self) -> dict[str, Tensor]:
        each = self.categories()
        whole = mean(each)
        parts = {
            f"pq_{n}": mean([q for q, t in zip(each, self.things, strict=True) if t is w])
            for n, w in (("things", True), ("stuff", False))
        }
        numbers = {} if whole is None else {"pq": whole.pq, "sq": whole.sq, "rq": whole.rq}
        numbers |= {name: q.pq for name, q in parts.items() if q is not None}
        return {name: torch.tensor(value) for name, value in numbers.items()}
