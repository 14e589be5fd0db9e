"""patchloom predict with a detector or segmenter: what is in each picture, drawn into it and as files that COCO's and
ADE20K's evaluation take."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ...data.read import read_image
from ...vision.heads.mask_tasks import PanopticSegmenter, SemanticSegmenter
from ...vision.heads.semantic import Segmenter
from ..detect import surer
from ..drawing import with_classes, with_objects
from ..evaluation.coco_truth import read_truth
from ..evaluation.dense_input import FitPicture
from ..evaluation.detector import Detections, as_results, category_ids, detector_of
from ..saved.judge import Judge, prepared
from ..tables import table, write_whole
from .predict_panoptic import run_panoptic

SCORE = 0.3  # what is less likely is not drawn or listed
RESULTS = "results.json"  # in the folder of --out


def is_dense(model: Any) -> bool:
    """Whether it finds objects, or a class for each pixel."""
    return isinstance(getattr(model, "classes", None), int)


def run(args: argparse.Namespace, judge: Judge, files: Sequence[Path]) -> int:
    if args.csv or (args.out and Path(args.out).suffix == ".csv"):
        raise ValueError(f"{judge.spec}: boxes and masks are written as JSON, or drawn: --out DIR, --out FILE.json")
    if args.size:
        raise ValueError(f"--size: to what size {judge.spec} takes pictures, its checkpoint says; leave the option out")
    judge.model.eval()
    if isinstance(judge.model, (Segmenter, SemanticSegmenter)):
        refuse(args, ("score", "annotations"), f"{judge.spec} finds no objects, but classes of pixels")
        return run_segmenter(args, judge, files)
    if isinstance(judge.model, PanopticSegmenter):
        refuse(args, ("score",), f"{judge.spec} cuts pictures into segments by thresholds of its own")
        return run_panoptic(args, judge, files, unique(files), folder_of(args))
    return run_detector(args, judge, files)


def refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises where an option is given that would mean nothing."""
    for name in names:
        if (value := getattr(args, name)) is not None:
            raise ValueError(f"--{name} {value}: {why}; leave it out")


# ---- detectors


def run_detector(args: argparse.Namespace, judge: Judge, files: Sequence[Path]) -> int:
    detector, ids = detector_of(judge), identities(args, judge, files)
    folder, rows, lines = folder_of(args), [], []
    names = unique(files)
    for indices, found in detector.detections(
        files, batch=min(args.batch, 4), workers=args.workers, on_error=args.on_error, title="predict"
    ):
        for i, one in zip(indices, found, strict=True):
            image, categories = ids(i)
            rows += [r for r in as_results(one, image, categories) if r["category_id"] is not None]
            shown = surer(one, SCORE if args.score is None else args.score)
            lines += listed(str(files[i]), shown, judge.classes)
            if folder is not None:
                picture = np.asarray(read_image(files[i]))
                with_objects(picture, shown, judge.classes).save(folder / f"{names[i]}.png")
    if args.out:
        path = Path(args.out) if folder is None else folder / RESULTS
        print(f"{len(rows)} detections in {len(files)} images: {write_whole(path, json.dumps(rows))}", file=sys.stderr)
    elif args.json:
        print(json.dumps(rows, indent=1))
    else:
        header = ("file", "class", "score", "x", "y", "width", "height")
        print(table(header, lines, right=header[2:]))
    return 0


def identities(args: argparse.Namespace, judge: Judge, files: Sequence[Path]) -> Any:
    """i -> (image_id, id of each class): those of --annotations, by names; else the number that the file is called, or
    its place, and classes counted from 1."""
    if args.annotations is None:
        numbers = [int(f.stem) if f.stem.isdecimal() else None for f in files]
        called = None not in numbers and len(set(numbers)) == len(numbers)
        own = list(range(1, len(judge.classes) + 1))
        return lambda i: (numbers[i] if called else i + 1, own)
    truth = read_truth(args.annotations)
    categories, notes = category_ids(judge.classes, truth, judge.spec)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    known = {Path(image["file_name"]).name: image["id"] for image in truth.images}
    if lacking := [f.name for f in files if f.name not in known]:
        raise ValueError(f"{len(lacking)} of {len(files)} images are not in {args.annotations}, as {lacking[0]}")
    return lambda i: (known[files[i].name], categories)


def listed(file: str, found: Detections, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """A line for each object, the file before the first."""
    for k in range(len(found.scores)):
        x0, y0, x1, y1 = found.boxes[k].tolist()
        sides = (f"{x0:.0f}", f"{y0:.0f}", f"{x1 - x0:.0f}", f"{y1 - y0:.0f}")
        yield (file if k == 0 else "", names[int(found.labels[k]) - 1], f"{float(found.scores[k]):.1%}", *sides)
    if not len(found.scores):
        yield (file, "-", "", "", "", "", "")


# ---- segmenters


def run_segmenter(args: argparse.Namespace, judge: Judge, files: Sequence[Path]) -> int:
    folder, answers = folder_of(args), []
    if folder is not None:
        (folder / "maps").mkdir(exist_ok=True)
    names, fit = unique(files), FitPicture.of(judge.preprocessing)
    for indices, given in prepared(
        files, fit, batch=1, workers=args.workers, on_error=args.on_error, title="predict"
    ):  # fmt: skip
        for i, one in zip(indices, given, strict=True):
            with torch.inference_mode():
                logits = judge.model(one.image[None].to(judge.device)).float()
                found = F.interpolate(logits, one.size, mode="bilinear", align_corners=False)[0].argmax(0).cpu()
            counts = torch.bincount(found.flatten(), minlength=len(judge.classes)) / found.numel()
            shares = {name: round(float(c), 6) for name, c in zip(judge.classes, counts, strict=True) if c > 0}
            answers.append({"file": str(files[i]), "classes": shares})
            if folder is not None:
                with_classes(np.asarray(read_image(files[i])), found).save(folder / f"{names[i]}.png")
                Image.fromarray((found + 1).to(torch.uint8).numpy()).save(folder / "maps" / f"{names[i]}.png")
    if folder is not None:
        print(f"{len(answers)} images: {folder}, maps of classes (from 1) in {folder / 'maps'}", file=sys.stderr)
    elif args.out:
        print(f"{len(answers)} images: {write_whole(args.out, json.dumps(answers, indent=1))}", file=sys.stderr)
    elif args.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
    else:
        rows = [
            (a["file"] if k == 0 else "", name, f"{share:.1%}")
            for a in answers
            for k, (name, share) in enumerate(sorted(a["classes"].items(), key=lambda c: -c[1])[: args.top])
        ]
        print(table(("file", "class", "share of pixels"), rows, right=("share of pixels",)))
    return 0


# ---- both


def folder_of(args: argparse.Namespace) -> Path | None:
    """The folder for pictures; None where --out names a file, or nothing."""
    if not args.out or Path(args.out).suffix == ".json":
        return None
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unique(files: Sequence[Path]) -> list[str]:
    """A name for each file's picture: its own, with its place behind it where another is called so too."""
    counts = Counter(file.stem for file in files)
    return [file.stem if counts[file.stem] == 1 else f"{file.stem}_{i}" for i, file in enumerate(files, 1)]
