"""What evaluation asks of a network that cuts pictures into segments, and its answers for files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ...vision.heads.mask_tasks import PanopticSegmenter
from ...vision.heads.segments import Panoptic
from ..saved.judge import Judge, load, prepared
from .dense_input import FitPicture
from .panoptic_quality import VOID, Panorama, Segment


def load_segmenter(spec: str, *, device: str = "auto") -> Judge:
    """The judge of a checkpoint or run folder whose network cuts pictures into segments; ValueError for another."""
    judge = load(spec, device=device)
    if not isinstance(judge.model, PanopticSegmenter):
        raise ValueError(
            f"{judge.spec} holds a {type(judge.model).__name__}, which cuts no picture into segments: name the run of "
            "a PanopticSegmenter (of `fit -c coco/mask2former_panoptic_swin_tiny`, say)"
        )
    return judge


def segments(
    judge: Judge, files: Sequence[Path], fit: FitPicture, *, workers: int = 0, on_error: str = "stop", title: str = ""
) -> Iterator[tuple[int, Panoptic]]:
    """Yields (index into `files`, its segments in its own pixels); an unreadable picture is as in `Judge.batches`."""
    for indices, given in prepared(files, fit, batch=1, workers=workers, on_error=on_error, title=title):
        for i, one in zip(indices, given, strict=True):
            with torch.inference_mode():
                yield i, judge.model.cut(judge.model.network([one.image.to(judge.device)]), [one.size])[0]


def panorama(found: Panoptic, categories: Sequence[int | None] | None = None) -> Panorama:
    """A network's answer as it is judged and drawn. `categories`: which one each of its classes is; segments of a class
    that is none are left out, and their pixels belong to nothing."""
    numbers = found.numbers.cpu().numpy()
    own = {s.number: s.label if categories is None else categories[s.label] for s in found.segments}
    known = {number: Segment(label) for number, label in own.items() if label is not None}
    if len(known) < len(own):
        numbers = np.where(np.isin(numbers, list(known)), numbers, VOID)
    return Panorama(numbers, known)
