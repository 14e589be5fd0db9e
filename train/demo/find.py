"""The tab of detection and segmentation: objects or classes of pixels, drawn into the picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..detect import surer
from ..drawing import legend, with_classes, with_objects
from ..evaluation.dense_input import FitPicture
from ..evaluation.detector import Detections, detector_of
from ..saved.judge import Judge
from .limits import Clock, Limits, choices, number
from .shelf import Shelf
from .uploads import Upload

LEAST = 480  # pixels of the drawn picture's longer side: names stay readable


@dataclass(frozen=True)
class Found:
    drawn: Image.Image
    rows: list[list[Any]]  # class, score, x, y, width, height; or class, share of the picture, for segmenters
    text: str


def find(
    shelf: Shelf, limits: Limits, upload: Upload, model: Any, score: Any = 0.3, only: Any = None, *,
    clock: Clock | None = None,
) -> Found:  # fmt: skip
    """What is in the picture, at least as sure as `score`, of the classes `only` (None, or none: all). `clock`: of the
    request that this is a part of."""
    least = number(score, "the threshold", 0, 1)
    clock = clock or Clock(limits.seconds)
    with shelf.borrowed(model, clock, "detect", "segment") as judge, clock.watching(judge.model):
        wanted = choices(only, "a class", judge.classes)
        if shelf.entry(model, "detect", "segment").kind == "segment":
            return segmented(judge, upload, least, wanted)
        return detected(judge, upload, least, wanted)


def classes_of(shelf: Shelf, limits: Limits, model: Any) -> list[str]:
    """What the model can find."""
    with shelf.borrowed(model, Clock(limits.seconds), "detect", "segment") as judge:
        return list(judge.classes)


def detected(judge: Judge, upload: Upload, least: float, only: Sequence[str]) -> Found:
    detector = detector_of(judge)
    (found,) = detector.find([detector.fit(upload.picture)])
    found = surer(found, least)
    if only:
        found = at(found, torch.tensor([judge.classes[k - 1] in only for k in found.labels.tolist()], dtype=torch.bool))
    found = at(found, found.scores.argsort(descending=True, stable=True))
    picture, times = enlarged(upload.picture)
    large = Detections(found.boxes * times, found.scores, found.labels, repeated(found.masks, times))
    rows = []
    for box, chance, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        x0, y0, x1, y1 = box
        rows.append([judge.classes[label - 1], round(chance, 3), *(round(v) for v in (x0, y0, x1 - x0, y1 - y0))])
    text = f"{len(rows)} objects" if len(rows) != 1 else "1 object"
    if not rows:
        text = "nothing that is sure enough: lower the threshold, or look for other classes"
    return Found(with_objects(picture, large, judge.classes), rows, "; ".join((text, *upload.notes)))


def at(found: Detections, index: Tensor) -> Detections:
    masks = None if found.masks is None else found.masks[index]
    return Detections(found.boxes[index], found.scores[index], found.labels[index], masks, found.size)


def segmented(judge: Judge, upload: Upload, least: float, only: Sequence[str]) -> Found:
    """The class of each pixel, which is dark where the surest class is less sure than `least`, or not asked for."""
    one = FitPicture.of(judge.preprocessing)(upload.picture)
    with torch.inference_mode():
        logits = judge.model(one.image[None].to(judge.device)).float()
        logits = F.interpolate(logits, one.size, mode="bilinear", align_corners=False)[0]
        chance, kinds = logits.softmax(0).max(0)
    kinds, chance = kinds.cpu(), chance.cpu()
    hidden = chance < least
    if only:
        hidden |= ~torch.isin(kinds, torch.tensor([judge.classes.index(name) for name in only]))
    counts = torch.bincount(kinds[~hidden], minlength=len(judge.classes)) / kinds.numel()
    order = [i for i in counts.argsort(descending=True, stable=True).tolist() if counts[i] > 0]
    picture, times = enlarged(upload.picture)
    shown = kinds.masked_fill(hidden, 255).repeat_interleave(times, 0).repeat_interleave(times, 1)
    rows = [[judge.classes[i], round(float(counts[i]), 4)] for i in order]
    text = ", ".join(f"{name} {share:.0%}" for name, share in rows[:6]) or "nothing that is sure enough"
    return Found(
        with_legend(with_classes(picture, shown), judge.classes, order), rows, "; ".join((text, *upload.notes))
    )


def with_legend(drawn: Image.Image, classes: Sequence[str], order: Sequence[int]) -> Image.Image:
    """The picture over the names and colours of the classes in it."""
    below = legend(classes, drawn.width, set(order))
    whole = Image.new("RGB", (drawn.width, drawn.height + below.height), "white")
    whole.paste(drawn, (0, 0))
    whole.paste(below, (0, drawn.height))
    return whole


def enlarged(picture: Image.Image) -> tuple[np.ndarray, int]:
    """Small pictures a whole number of times larger."""
    times = max(1, round(LEAST / max(picture.size)))
    return np.asarray(picture).repeat(times, 0).repeat(times, 1), times


def repeated(masks: Tensor | None, times: int) -> Tensor | None:
    return None if masks is None else masks.repeat_interleave(times, 1).repeat_interleave(times, 2)
