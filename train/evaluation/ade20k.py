"""patchloom eval ade20k: mIoU at one scale and at many, mAcc, aAcc and the numbers of each class."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..saved.judge import Judge, load, positive
from ..tables import table
from .coco import NOTHING, add_output, add_source, deliver, settle

if TYPE_CHECKING:  # torch and the readers come in with `run`
    import numpy as np
    from torch import Tensor

    from ...data.label_maps import LabelMaps
    from .dense_input import FitPicture
    from .dense_metrics import SemanticNumbers, SemanticScores

HELP = "mIoU, mAcc and aAcc of a trained segmenter, or of predicted masks, on ADE20K's layout"
EXAMPLES = """examples:
  patchloom eval ade20k --data ADEChallengeData2016 --checkpoint RUN --multi-scale
  patchloom eval ade20k --data ADEChallengeData2016 --predictions masks/
  (masks as ADE20K has them: class 0 is written as 1; 0 is nothing, not judged in the data and wrong in a prediction)"""
SIDES = {"shortest": 512, "longest": 2048}  # of an image, where the checkpoint says nothing else
DEFAULTS = {"shortest": None, "longest": None, "device": "auto", "multi_scale": False, "on_error": "stop"}
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # each also mirrored: the usual protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="holds images/, annotations/ (or masks/) and names"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="(val)")
    add_source(parser, "--predictions", "DIR", "predicted masks (.png), named as the data's")
    parser.add_argument("--per-class", action="store_true", help="print IoU and accuracy of each class too")
    add_output(parser)
    only = parser.add_argument_group("with --checkpoint")
    only.add_argument("--multi-scale", action="store_true", default=None, help="too: scales 0.5 to 1.75, mirrored")
    only.add_argument(
        "--shortest", type=positive, metavar="N", help="the shorter side at scale 1 (the checkpoint's, or 512)"
    )
    only.add_argument(
        "--longest", type=positive, metavar="N", help="which the longer one may not exceed (its, or 2048)"
    )
    only.add_argument("--device", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    only.add_argument("--on-error", choices=("stop", "skip"), help="what to do at an unreadable image or mask (stop)")


def run(args: argparse.Namespace) -> int:
    from ...data.label_maps import Values, classes_of, folder_maps

    settle(args, DEFAULTS)
    classes, _ = classes_of(args.data)
    maps = folder_maps(args.data, args.split, Values.of(classes, [0], 1), args.on_error)
    if maps is None:
        raise FileNotFoundError(f"{args.data}: no {args.split} split in images/ and annotations/ (or masks/)")
    notes: list[str] = []
    if args.checkpoint is None:
        scores = {"single_scale": predicted(maps, Path(args.predictions), notes)}
    else:
        scores = segmented(maps, load(args.checkpoint, device=args.device), args, notes)
    content = as_json(args, maps, {name: s.numbers() for name, s in scores.items()}, notes)
    deliver(args, content, report(content, args.per_class))
    return 0


def predicted(maps: "LabelMaps", folder: Path, notes: list[str]) -> "SemanticScores":
    """Predicted masks against the data's; raises, with their number, where one is missing or of another size."""
    import torch

    from ...data.folders import existing, quoted
    from ...data.label_maps import Values, stems
    from .dense_metrics import SemanticScores

    found = stems(existing(folder))
    wanted = {Path(file).stem: file for _, file in maps.pairs}
    if lacking := sorted(wanted.keys() - found.keys()):
        raise ValueError(f"{folder}: no prediction for {len(lacking)} of {len(wanted)} images ({quoted(lacking, 3)})")
    if others := found.keys() - wanted.keys():
        notes.append(f"{len(others)} predictions are of no image of the data ({quoted(sorted(others), 3)}); left out")
    scores, values, faults = SemanticScores(len(maps.classes)), Values.of(maps.classes, [0], 1), []
    for name, file in progress(wanted.items()):
        target, answer = maps.values.read(file), values.read(found[name])
        if target.shape != answer.shape:
            faults.append(
                f"{found[name]} ({answer.shape[0]}x{answer.shape[1]}, not {target.shape[0]}x{target.shape[1]})"
            )
        else:
            scores.update(torch.from_numpy(answer), torch.from_numpy(target))
    if nowhere := int(scores.counts[:, -1].sum()):
        notes.append(
            f"{nowhere:,} judged pixels are 0 in the predictions, which is no class: they count as wrong (are the "
            "classes counted from 0 there?)"
        )
    if faults:
        raise ValueError(
            f"{len(faults)} of {len(wanted)} predictions have another size than their mask: {quoted(faults, 3)}"
        )
    return scores


def segmented(
    maps: "LabelMaps", judge: Judge, args: argparse.Namespace, notes: list[str]
) -> "dict[str, SemanticScores]":
    """The network's answers against the masks, at one scale, and at many where that is asked for."""
    import torch

    from ...data.read import UnreadableImage
    from .dense_input import FitPicture
    from .dense_metrics import SemanticScores

    columns = class_columns(judge.classes, maps.classes, judge.spec)
    names = ["single_scale", "multi_scale"] if args.multi_scale else ["single_scale"]
    scores = {name: SemanticScores(len(maps.classes)) for name in names}
    fit = FitPicture.of({**SIDES, **judge.preprocessing}, args.shortest, args.longest)
    unreadable = []
    for i in progress(range(len(maps))):
        try:
            scene = maps.load(i)
        except UnreadableImage as error:
            if args.on_error == "stop":
                raise UnreadableImage(error.file, f"{error.reason} (--on-error skip leaves such files out)") from error
            unreadable.append(error.file)
            continue
        target = torch.from_numpy(scene.semantic)[None]
        answers = probabilities(judge, scene.image, fit, SCALES if args.multi_scale else (1.0,))
        for name, answer in zip(names, answers, strict=True):
            scores[name].update(answer[None, columns], target)
    if unreadable:
        notes.append(
            f"{len(unreadable)} of {len(maps)} images could not be read ({unreadable[0]}); left out: not the official "
            "number"
        )
    return scores


def probabilities(judge: Judge, image: "np.ndarray", fit: "FitPicture", scales: Sequence[float]) -> "Iterator[Tensor]":
    """image (H, W, 3) uint8 -> class probabilities (K, H, W) on the CPU: at scale 1, and where there are several scales
    the mean over them and their mirror images."""
    import torch

    total, single = None, None
    with torch.inference_mode():
        for scale in scales:
            x = fit(image, scale).image[None].to(judge.device)
            one = answer(judge, x, image.shape[:2])
            if scale == 1:
                single = one
            if len(scales) > 1:
                both = one + answer(judge, x.flip(-1), image.shape[:2]).flip(-1)
                total = both if total is None else total + both
    assert single is not None, f"scales {scales} lack 1"
    yield single.cpu()
    if total is not None:
        yield (total / (2 * len(scales))).cpu()


def answer(judge: Judge, x: "Tensor", size: tuple[int, int]) -> "Tensor":
    """(1, 3, h, w) -> probabilities (K, H, W) at `size`: logits are resized bilinearly, then softmax."""
    from torch.nn import functional as F

    logits = judge.model(x)
    if not hasattr(logits, "ndim") or logits.ndim != 4 or logits.shape[1] != len(judge.classes):
        what = f"gives {tuple(logits.shape)}" if hasattr(logits, "shape") else f"gives a {type(logits).__name__}"
        raise ValueError(
            f"{judge.spec} {what} for one image; a segmenter gives (1, {len(judge.classes)}, H, W): name the run of one"
        )
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)[0].softmax(0)


def class_columns(known: Sequence[str], classes: Sequence[str], spec: str) -> list[int]:
    """Where the data's classes are among the model's, by name; one whose classes are mere numbers has their order."""
    from ...data.folders import quoted

    if list(known) == [str(i) for i in range(len(classes))]:
        return list(range(len(classes)))
    place = {name: i for i, name in enumerate(known)}
    if lacking := [name for name in classes if name not in place]:
        raise ValueError(
            f"{spec} does not know {len(lacking)} of the data's {len(classes)} classes ({quoted(lacking)}); it has "
            f"{quoted(list(known))}"
        )
    return [place[name] for name in classes]


def progress(items: Any) -> Any:
    from tqdm import tqdm

    return tqdm(items, unit="img", desc="eval", disable=None, file=sys.stderr)


def as_json(
    args: argparse.Namespace, maps: "LabelMaps", numbers: "dict[str, SemanticNumbers]", notes: list[str]
) -> dict[str, Any]:
    return {
        "data": args.data,
        "source": args.checkpoint or args.predictions,
        "images": len(maps),
        "classes": len(maps.classes),
        **{
            scale: {
                "miou": plain(n.miou), "macc": plain(n.macc), "aacc": plain(n.aacc),
                "per_class": {
                    c: {"iou": plain(iou), "accuracy": plain(a)}
                    for c, iou, a in zip(maps.classes, n.iou.tolist(), n.accuracy.tolist(), strict=True)
                },
            }
            for scale, n in numbers.items()
        },
        "notes": notes,
    }  # fmt: skip


def plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def report(content: dict[str, Any], per_class: bool) -> str:
    lines = [
        f"data       {content['data']}: {content['images']:,} images, {content['classes']} classes",
        f"source     {content['source']}",
        *(f"note       {note}" for note in content["notes"]),
        "",
    ]
    scales = [name for name in ("single_scale", "multi_scale") if name in content]
    header = ("", "mIoU", "mAcc", "aAcc")
    rows = [(s.replace("_", " "), *(percent(content[s][n]) for n in ("miou", "macc", "aacc"))) for s in scales]
    lines.append(table(header, rows, right=header[1:]))
    judged = sum(one["iou"] is not None for one in content[scales[0]]["per_class"].values())
    if judged < content["classes"]:
        lines.append(
            f"\n{content['classes'] - judged} of {content['classes']} classes neither occur nor are predicted: they "
            "are no part of mIoU"
        )
    if per_class:
        each = content[scales[-1]]["per_class"]
        rows = [(c, percent(n["iou"]), percent(n["accuracy"])) for c, n in each.items()]
        lines += ["", table(("class", "IoU", "accuracy"), rows, right=("IoU", "accuracy"))]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.2f}"
