"""patchloom eval coco: the twelve official numbers for boxes and masks, of a results file or of a detector."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import UsageError
from ..saved.judge import natural, positive
from ..tables import table, write_whole

if TYPE_CHECKING:  # pycocotools and the engine come in with `run`
    from .coco_score import Scores
    from .coco_truth import Results, Truth

HELP = "COCO's twelve numbers for boxes and masks, of a results file or a trained detector"
EXAMPLES = """examples:
  patchloom eval coco --annotations instances_val2017.json --results detections.json
  patchloom eval coco --annotations coco/annotations/instances_val2017.json --images coco/val2017 --checkpoint RUN
  patchloom eval coco --annotations a.json --results detections.json --out numbers.json --json"""
DEFAULTS = {
    "images": None, "write_results": None, "shortest": None, "longest": None, "batch": 4, "workers": 2,
    "device": "auto", "on_error": "stop",
}  # fmt: skip
NOTHING = "n/a"  # printed where pycocotools prints -1.000: there is nothing to find


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--annotations", required=True, metavar="FILE", help="COCO's instances_*.json")
    add_source(parser, "--results", "FILE", "detections in COCO's result format")
    parser.add_argument("--kind", choices=("box", "mask"), help="only these (both, where the results hold both)")
    parser.add_argument(
        "--mask-areas", action="store_true",
        help="small, medium and large detections by the area of their masks, as detectron2 and mmdetection have it; "
        "pycocotools goes by the boxes where the results hold boxes too",
    )  # fmt: skip
    parser.add_argument("--per-category", action="store_true", help="print AP of each category too")
    add_output(parser)
    only = parser.add_argument_group("with --checkpoint")
    only.add_argument("--images", metavar="DIR", help="the images (where COCO's layout doesn't tell)")
    only.add_argument("--write-results", metavar="FILE", help="keep the detections in COCO's result format")
    only.add_argument(
        "--shortest", type=positive, metavar="N", help="the shorter side of an image (the checkpoint's own)"
    )
    only.add_argument("--longest", type=positive, metavar="N", help="which the longer one may not exceed (its own)")
    only.add_argument("--batch", type=positive, metavar="N", help="images at a time (4)")
    only.add_argument("--workers", type=natural, metavar="N", help="processes that read images (2)")
    only.add_argument("--device", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    only.add_argument("--on-error", choices=("stop", "skip"), help="what to do at a missing or unreadable image (stop)")


def add_source(parser: argparse.ArgumentParser, option: str, metavar: str, text: str) -> None:
    """Answers that are there already, or what gives them."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(option, metavar=metavar, help=text)
    source.add_argument("--checkpoint", metavar="RUN", help="a checkpoint or run folder")


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", metavar="FILE", help="write the JSON object to FILE")


def settle(args: argparse.Namespace, defaults: dict[str, Any]) -> None:
    """Puts in the defaults of what goes with --checkpoint only (argparse has none for it); raises where such an option
    was given without it."""
    given = [name for name in defaults if getattr(args, name) is not None]
    if args.checkpoint is None and given:
        raise UsageError(f"--{given[0].replace('_', '-')} goes with --checkpoint: there is no network to run")
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def run(args: argparse.Namespace) -> int:
    from .coco_score import KINDS, score
    from .coco_truth import read_results, read_truth, uncollected

    settle(args, DEFAULTS)
    with uncollected():
        truth = read_truth(args.annotations)
        if args.checkpoint is None:
            results, notes = read_results(args.results, truth), []
        else:
            truth, results, notes = ask(args, truth)
        kinds = [args.kind] if args.kind else kinds_of(truth, results)
        notes = [*truth.notes, *notes, *results.notes]
        if "mask" in kinds and results.boxes is not None and not args.mask_areas:
            notes.append(
                "small, medium and large detections go by the area of their boxes for masks too, as pycocotools has it "
                "where the results hold both (--mask-areas: by that of the masks)"
            )
        scores = [score(truth, results, kind, mask_areas=args.mask_areas) for kind in kinds]
    content = as_json(args.checkpoint or args.results, truth, results, scores, notes)
    deliver(args, content, report(content, [KINDS[s.kind] for s in scores], args.per_category))
    return 0


def deliver(args: argparse.Namespace, content: dict[str, Any], text: str) -> None:
    """To the file of --out, and to standard output in the form that was asked for."""
    whole = json.dumps(content, indent=1, ensure_ascii=False)
    if args.out:
        print(f"numbers: {write_whole(args.out, whole + chr(10))}", file=sys.stderr)
    print(whole if args.json else text)


def ask(args: argparse.Namespace, truth: "Truth") -> tuple["Truth", "Results", list[str]]:
    """(the annotations of the images that were judged, what the detector found, notes)."""
    from .coco_truth import read_results, restricted
    from .detector import detect, load_detector

    folder = image_folder(Path(args.annotations)) if args.images is None else Path(args.images)
    detector = load_detector(args.checkpoint, device=args.device, shortest=args.shortest, longest=args.longest)
    rows, judged, notes = detect(
        detector, truth, folder, batch=args.batch, workers=args.workers, on_error=args.on_error
    )
    if args.write_results:
        print(f"{len(rows)} detections: {write_whole(args.write_results, json.dumps(rows))}", file=sys.stderr)
    truth = restricted(truth, judged)
    return truth, read_results(rows, truth, f"what {args.checkpoint} found"), notes


def image_folder(annotations: Path) -> Path:
    """The split's folder beside annotations/ or in images/ beside it, by the name of the file."""
    split = annotations.stem.rpartition("_")[2]
    root = annotations.parent.parent
    tried = [root / split, root / "images" / split, root / "images"]
    if found := next((folder for folder in tried if folder.is_dir()), None):
        return found
    raise FileNotFoundError(
        f"no images of {annotations} in {', '.join(map(str, tried))}: name their folder with --images"
    )


def kinds_of(truth: "Truth", results: "Results") -> list[str]:
    """What the results can be judged by; for results without a detection what the annotations can."""
    if not results.rows:
        return ["box", "mask"] if truth.has_masks else ["box"]
    kinds = ["box"] * (results.boxes is not None) + ["mask"] * results.has_masks
    if not kinds:
        raise ValueError(f"{results.source}: no detection has a bbox or a segmentation")
    return kinds


def as_json(
    source: str, truth: "Truth", results: "Results", scores: Sequence["Scores"], notes: Sequence[str]
) -> dict[str, Any]:
    from .coco_score import KINDS

    return {
        "annotations": truth.source,
        "source": source,
        "images": len(truth.images),
        "images_with_detections": len(set(results.image.tolist())),
        "objects": int((~truth.crowd).sum()),
        "crowds": int(truth.crowd.sum()),
        "detections": len(results.rows),
        **{KINDS[s.kind]: s.numbers for s in scores},
        "per_category": {KINDS[s.kind]: s.categories for s in scores},
        "notes": list(notes),
    }


def report(content: dict[str, Any], kinds: Sequence[str], per_category: bool = False) -> str:
    """How the numbers came about, then the official lines of each kind."""
    found, images = content["images_with_detections"], content["images"]
    lines = [
        f"annotations  {content['annotations']}: {images:,} images, {content['objects']:,} objects, "
        f"{content['crowds']:,} crowd regions",
        f"detections   {content['source']}: {content['detections']:,} on {found:,} of the images",
        *(f"note         {note}" for note in content["notes"]),
    ]
    for kind in kinds:
        lines += ["", f"type={kind}", *official_lines(content[kind])]
    if any(content[kind][name] is None for kind in kinds for name in content[kind]):
        lines.append(f"\n{NOTHING}: the annotations hold nothing of that kind to find (pycocotools prints -1.000)")
    if per_category:
        each = content["per_category"]
        rows = [(name, *(fraction(each[k][name]) for k in kinds)) for name in each[kinds[0]]]
        header = ("category", *(f"AP {kind}" for kind in kinds))
        lines += ["", table(header, rows, right=header[1:])]
    return "\n".join(lines)


def official_lines(numbers: dict[str, float | None]) -> list[str]:
    """As COCO's published tables have them."""
    from .coco_score import LINES

    out = []
    for name, (is_precision, level, area, most) in LINES.items():
        title = "Average Precision (AP)" if is_precision else "Average Recall    (AR)"
        overlap = "0.50:0.95" if level is None else f"{level:.2f}"
        out.append(f" {title} @[ IoU={overlap:<9} | area={area:>6} | maxDets={most:>3} ] = {fraction(numbers[name])}")
    return out


def fraction(value: float | None) -> str:
    return NOTHING if value is None else f"{value:0.3f}"
