"""patchloom predict with a network that cuts pictures into segments: drawn, and in COCO's panoptic format."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.coco import Annotations
from ...data.folders import quoted
from ...data.read import read_image
from ...vision.heads.segments import Panoptic
from ..drawing import with_segments
from ..evaluation.dense_input import FitPicture
from ..evaluation.segmenter import segments
from ..saved.judge import Judge
from ..tables import table, write_whole

RESULTS = "panoptic"  # in the folder of --out: the list, and the folder of its PNG files


def run_panoptic(
    args: argparse.Namespace, judge: Judge, files: Sequence[Path], names: Sequence[str], folder: Path | None
) -> int:
    """`names`: what is written is called for each file; `folder`: where to, None for what is printed."""
    if args.out and folder is None:
        raise ValueError(f"--out {args.out}: segments are pictures of numbers, which need a folder: --out DIR")
    ids, fit = identities(args, judge, files), FitPicture.of(judge.preprocessing)
    rows, lines, answers = [], [], []
    if folder is not None:
        (folder / RESULTS).mkdir(exist_ok=True)
    for i, found in segments(judge, files, fit, workers=args.workers, on_error=args.on_error, title="predict"):
        numbers = found.numbers.cpu().numpy()
        parts = listed(found, numbers, judge.classes)
        answers.append({"file": str(files[i]), "segments": parts})
        lines += [(str(files[i]) if k == 0 else "", p["class"], f"{p['score']:.1%}", f"{p['share']:.1%}")
                  for k, p in enumerate(parts)] or [(str(files[i]), "-", "", "")]  # fmt: skip
        if folder is not None:
            image, categories = ids(i)
            own = [{"id": s.number, "category_id": categories[s.label]} for s in found.segments]
            rows.append({"image_id": image, "file_name": f"{names[i]}.png", "segments_info": own})
            Image.fromarray(coloured(numbers)).save(folder / RESULTS / f"{names[i]}.png")
            drawn = with_segments(np.asarray(read_image(files[i])), numbers,
                                  {s.number: s.label for s in found.segments})  # fmt: skip
            drawn.save(folder / f"{names[i]}.png")
    if folder is not None:
        path = write_whole(folder / f"{RESULTS}.json", json.dumps({"annotations": rows}))
        print(f"{len(rows)} images: {folder}, segments in {path} and {folder / RESULTS}", file=sys.stderr)
    elif args.json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
    else:
        print(table(("file", "class", "score", "share of pixels"), lines, right=("score", "share of pixels")))
    return 0


def listed(found: Panoptic, numbers: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The segments, the largest first."""
    area = dict(zip(*(v.tolist() for v in np.unique(numbers, return_counts=True)), strict=True))
    parts = [
        {"class": classes[s.label], "score": round(s.score, 6), "share": round(area[s.number] / numbers.size, 6)}
        for s in found.segments
        if s.number in area
    ]
    return sorted(parts, key=lambda p: -p["share"])


def coloured(numbers: np.ndarray) -> np.ndarray:
    """(H, W) -> (H, W, 3) uint8: red + 256 green + 65536 blue is the number."""
    return np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)


def identities(
    args: argparse.Namespace, judge: Judge, files: Sequence[Path]
) -> Callable[[int], tuple[Any, Sequence[Any]]]:
    """i -> (image_id, id of each class): those of --annotations, by names; else the place of the file, and classes
    counted from 1."""
    if args.annotations is None:
        own = list(range(1, len(judge.classes) + 1))
        return lambda i: (i + 1, own)
    truth = Annotations(args.annotations)
    categories = {c.name: c.id for c in truth.categories}
    if lacking := [name for name in judge.classes if name not in categories]:
        raise ValueError(f"{args.annotations}: no category {quoted(lacking, 3)}, which {judge.spec} finds")
    known = {Path(image["file_name"]).name: i for i, image in truth.images.items()}
    if strange := [f.name for f in files if f.name not in known]:
        raise ValueError(f"{len(strange)} of {len(files)} images are not in {args.annotations}, as {strange[0]}")
    ids = [categories[name] for name in judge.classes]
    return lambda i: (known[files[i].name], ids)
