"""What evaluation asks of a detector, how it answers for files, and its answers in COCO's result format."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..saved.judge import Judge, load, prepared
from .coco_truth import Truth
from .dense_input import FitPicture, Fitted, present, unread
from .names import matched, unknown


class Finder(Protocol):
    """What a detector's network is in evaluation mode: torchvision's contract."""

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Normalised images (3, h, w) of any sizes -> of each {boxes (n, 4) x0 y0 x1 y1 in its pixels, scores (n,),
        labels (n,) from 1, and where it finds them masks (n, h, w) bool, or (n, 1, h, w) probabilities}."""
        ...


@dataclass(frozen=True)
class Detections:
    """n objects that were found in a picture, in its own pixels."""

    boxes: Tensor  # (n, 4) x0 y0 x1 y1
    scores: Tensor  # (n,)
    labels: Tensor  # (n,) int64: label k is the k-th class, from 1
    masks: Tensor | None = None  # (n, H, W) bool
    size: tuple[int, int] | None = None  # (H, W) of the picture, where it was read from a file

    @classmethod
    def of(cls, answer: Mapping[str, Tensor], given: tuple[int, int], size: tuple[int, int]) -> "Detections":
        """A network's answer for an image (h, w) that was given, for its picture of (H, W)."""
        (h, w), (height, width) = given, size
        scale = answer["boxes"].new_tensor([width / w, height / h, width / w, height / h])
        masks = answer.get("masks")
        masks = None if masks is None else at_size(masks, size)
        return cls(answer["boxes"] * scale, answer["scores"], answer["labels"], masks, size)


def at_size(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) bool or (n, 1, h, w) probabilities -> (n, H, W) bool; bilinear, and true over 1/2."""
    if masks.ndim == 4:
        masks = masks[:, 0]
    if tuple(masks.shape[1:]) == size:
        return masks if masks.dtype == torch.bool else masks > 0.5
    if not len(masks):
        return masks.new_zeros((0, *size), dtype=torch.bool)
    return F.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0] > 0.5


@dataclass(frozen=True)
class Detector:
    """A network in evaluation mode, the names of its classes, and how pictures become its images."""

    spec: str
    model: Finder
    classes: Sequence[str]
    fit: FitPicture
    device: torch.device

    def detections(
        self, files: Sequence[Path], *, batch: int = 1, workers: int = 0, on_error: str = "stop", title: str = ""
    ) -> Iterator[tuple[list[int], list[Detections]]]:
        """Yields (indices into `files`, what was found in each); an unreadable image is as in `Judge.batches`."""
        for indices, given in prepared(files, self.fit, batch=batch, workers=workers, on_error=on_error, title=title):
            yield indices, self.find(given)

    def find(self, given: Sequence[Fitted]) -> list[Detections]:
        """What is in each picture, on the CPU."""
        with torch.inference_mode():
            answers = self.model([one.image.to(self.device) for one in given])
        self.check(answers, len(given))
        return [
            Detections.of(
                {k: a[k].cpu() for k in ("boxes", "scores", "labels", "masks") if k in a}, one.image.shape[1:], one.size
            )
            for a, one in zip(answers, given, strict=True)
        ]

    def check(self, answers: Any, count: int) -> None:
        """Raises for a network that finds no objects, and for a label that no class has."""
        needed = {"boxes", "scores", "labels"}
        if (
            not isinstance(answers, list)
            or len(answers) != count
            or not all(isinstance(a, dict) and needed <= a.keys() for a in answers)
        ):
            what = f"a tensor {tuple(answers.shape)}" if isinstance(answers, Tensor) else f"a {type(answers).__name__}"
            raise ValueError(
                f"{self.spec} gives {what} for {count} images; a detector gives a list of boxes, scores and labels: "
                "name the run of one"
            )
        for answer in answers:
            labels = answer["labels"]
            if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= len(self.classes):
                raise ValueError(
                    f"{self.spec} gives the labels {int(labels.min())} to {int(labels.max())} and has "
                    f"{len(self.classes)} classes, counted from 1"
                )


def load_detector(
    spec: str, *, device: str = "auto", shortest: int | None = None, longest: int | None = None
) -> Detector:
    """The detector of a checkpoint or run folder. Pictures are brought to the size that its preprocessing states (see
    `FitPicture.of`), or that is asked for here."""
    return detector_of(load(spec, device=device), shortest, longest)


def detector_of(judge: Judge, shortest: int | None = None, longest: int | None = None) -> Detector:
    from ...vision.model import Classifier

    if isinstance(judge.model, Classifier):
        raise ValueError(f"{judge.spec} is a classifier, which finds no objects: name the run of a detector")
    judge.model.eval()
    fit = FitPicture.of(judge.preprocessing, shortest, longest)
    return Detector(judge.spec, judge.model, judge.classes, fit, judge.device)


def as_results(found: Detections, image_id: Any, categories: Sequence[Any]) -> list[dict[str, Any]]:
    """COCO's result format; `categories`: the data's own id of each class, in the order of the labels."""
    x0, y0, x1, y1 = found.boxes.double().cpu().unbind(1)
    boxes = torch.stack((x0, y0, x1 - x0, y1 - y0), 1).tolist()
    rows = [
        {"image_id": image_id, "category_id": categories[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(found.labels.tolist(), boxes, found.scores.double().tolist(), strict=True)
    ]
    if found.masks is not None:
        for row, runs in zip(rows, encoded(found.masks), strict=True):
            row["segmentation"] = runs
    return rows


def encoded(masks: Tensor) -> list[dict[str, Any]]:
    """(n, H, W) bool -> COCO's compressed run lengths, as JSON takes them."""
    from pycocotools import mask

    planes = np.asfortranarray(masks.permute(1, 2, 0).to(torch.uint8).cpu().numpy())
    return (
        [{"size": run["size"], "counts": run["counts"].decode()} for run in mask.encode(planes)] if len(masks) else []
    )


def category_ids(classes: Sequence[str], truth: Truth, spec: str) -> tuple[list[Any], list[str]]:
    """(the annotations' id of each class by its name, or None; notes on names that only one of the two knows)."""
    ids, names = ([pair[at] for pair in truth.categories] for at in (0, 1))
    places, notes = matched(classes, names, spec, truth.source)
    counts = np.bincount(truth.category, minlength=len(names)).tolist()
    own = [None if place is None else ids[place] for place in places]
    return own, [*notes, *unknown(classes, names, spec, counts, "annotations")]


def detect(
    detector: Detector, truth: Truth, folder: Path, *, batch: int = 1, workers: int = 0, on_error: str = "stop"
) -> tuple[list[dict[str, Any]], list[int], list[str]]:
    """(COCO results for the images of the annotations, positions of the images that were judged, notes)."""
    categories, notes = category_ids(detector.classes, truth, detector.spec)
    names = [image["file_name"] for image in truth.images]
    places, missing = present(names, folder, truth.source, on_error)
    files = [folder / names[i] for i in places]
    rows, judged, strange = [], [], 0
    for indices, found in detector.detections(files, batch=batch, workers=workers, on_error=on_error, title="detect"):
        for i, one in zip(indices, found, strict=True):
            image = truth.images[places[i]]
            check_size(one, image)
            new = as_results(one, image["id"], categories)
            known = [row for row in new if row["category_id"] is not None]
            strange += len(new) - len(known)
            rows += known
            judged.append(places[i])
    if strange:
        notes.append(f"{strange} of {strange + len(rows)} detections are of classes that are not annotated; left out")
    return rows, judged, [*notes, *missing, *unread(len(places) - len(judged))]


def check_size(found: Detections, image: Mapping[str, Any]) -> None:
    annotated = (image["height"], image["width"])
    if found.size != annotated:
        size, other = ("x".join(map(str, sides)) for sides in (found.size or (), annotated))
        raise ValueError(
            f"{image['file_name']} has {size} pixels, its annotations are of {other}: the file is another one"
        )
