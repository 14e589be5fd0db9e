"""patchloom eval panoptic: panoptic quality of results in COCO's panoptic format, or of a trained network."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import UsageError
from ..saved.judge import natural, positive
from ..tables import table
from .coco import NOTHING, add_output, add_source, deliver, image_folder, settle

if TYPE_CHECKING:  # NumPy and the readers come in with `run`
    from ...data.coco import Annotations
    from .panoptic_quality import Panorama, Tally

Answer = tuple[int, str, "Panorama"]  # the image's id, the file that a fault is told of, its segments
HELP = "panoptic quality of results in COCO's panoptic format, or of a trained network"
EXAMPLES = """examples:
  patchloom eval panoptic --annotations panoptic_val2017.json --results panoptic.json
  patchloom eval panoptic --annotations coco/annotations/panoptic_val2017.json --images coco/val2017 --checkpoint RUN
  (the PNG files of segment ids, red + 256 green + 65536 blue, lie in folders named as the JSON files)"""
DEFAULTS = {
    "images": None, "shortest": None, "longest": None, "workers": 2, "device": "auto", "on_error": "stop",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("--annotations", required=True, metavar="FILE", help="COCO's panoptic_*.json")
    parser.add_argument("--segments", metavar="DIR", help="its PNG files (the folder named as it)")
    add_source(parser, "--results", "FILE", "segments in COCO's panoptic format")
    parser.add_argument("--result-segments", metavar="DIR", help="their PNG files (the folder named as the results)")
    parser.add_argument("--per-category", action="store_true", help="print the numbers of each category too")
    add_output(parser)
    only = parser.add_argument_group("with --checkpoint")
    only.add_argument("--images", metavar="DIR", help="the images (where COCO's layout doesn't tell)")
    only.add_argument(
        "--shortest", type=positive, metavar="N", help="the shorter side of an image (the checkpoint's own)"
    )
    only.add_argument("--longest", type=positive, metavar="N", help="which the longer one may not exceed (its own)")
    only.add_argument("--workers", type=natural, metavar="N", help="processes that read images (2)")
    only.add_argument("--device", help="auto, cpu, cuda or cuda:N (auto: a GPU where there is one)")
    only.add_argument("--on-error", choices=("stop", "skip"), help="what to do at a missing or unreadable image (stop)")


def run(args: argparse.Namespace) -> int:
    from ...data.coco import Annotations
    from ...data.findings import Kind
    from .dense_input import unread
    from .panoptic_quality import mean, qualities

    settle(args, DEFAULTS)
    if args.checkpoint is not None and args.result_segments is not None:
        raise UsageError("--result-segments goes with --results: a network draws its segments itself")
    truth = Annotations(args.annotations)
    if not truth.panoptic:
        raise ValueError(f"{args.annotations}: no segments_info: these are not panoptic annotations")
    if faults := [
        line for kind, line in zip(truth.findings.places, truth.findings.lines(), strict=True) if kind is not Kind.IMAGE
    ]:
        raise ValueError(f"{args.annotations}: {'. '.join(faults)}; mend the file")
    notes = [f"{line}; left out" for line in truth.findings.lines()]
    if lacking := [image["file_name"] for i, image in truth.images.items() if not truth.by_image[i]]:
        notes.append(f"{len(lacking)} of {len(truth.images)} images have no annotation and are not judged")
    if args.checkpoint is None:
        found = read_results(args.results, truth, notes)
        answers = drawn_results(found, Path(args.result_segments or Path(args.results).with_suffix("")), truth)
    else:
        found, answers = asked(args, truth, notes)
    segments = Path(args.segments or Path(args.annotations).with_suffix(""))
    total, judged = tally(truth, answers, segments, args.checkpoint or args.results, notes)
    notes += unread(len(found) - judged)
    each = qualities(total)
    groups = {
        "all": mean(each),
        "things": mean([q for q, c in zip(each, truth.categories, strict=True) if c.thing]),
        "stuff": mean([q for q, c in zip(each, truth.categories, strict=True) if not c.thing]),
    }
    content = {
        "annotations": args.annotations,
        "source": args.checkpoint or args.results,
        "images": judged,
        **{name: None if q is None else asdict(q) for name, q in groups.items()},
        "per_category": {
            c.name: None if q is None else {"pq": q.pq, "sq": q.sq, "rq": q.rq}
            for c, q in zip(truth.categories, each, strict=True)
        },
        "notes": notes,
    }
    deliver(args, content, report(content, args.per_category))
    return 0


def read_results(file: str, truth: "Annotations", notes: list[str]) -> dict[int, dict[str, Any]]:
    """The results of each annotated image by its id; raises for images without results and unknown categories."""
    from ...data.coco import read_json
    from ...data.folders import quoted

    document = read_json(file)
    rows = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"{file}: no list 'annotations'; COCO's panoptic format is needed")
    for i, row in enumerate(rows):
        parts = row.get("segments_info") if isinstance(row, dict) else None
        if not isinstance(parts, list) or not {"image_id", "file_name"} <= row.keys():
            raise ValueError(f"{file}: annotations[{i}] lacks image_id, file_name or segments_info")
        if bad := [p for p in parts if not isinstance(p, dict) or not {"id", "category_id"} <= p.keys()]:
            raise ValueError(f"{file}: image {row['image_id']}: a segment lacks id or category_id: {bad[0]!r}")
    found = {row["image_id"]: row for row in rows}
    if len(found) < len(rows):
        raise ValueError(f"{file}: {len(rows) - len(found)} image ids stand there more than once")
    annotated = [i for i, own in truth.by_image.items() if own]
    if lacking := [truth.images[i]["file_name"] for i in annotated if i not in found]:
        raise ValueError(
            f"{file}: no segments for {len(lacking)} of {len(annotated)} images ({quoted(lacking, 3)}); one without "
            "any segment has an empty segments_info and a black PNG"
        )
    strange = {p["category_id"] for row in rows for p in row["segments_info"]} - truth.label.keys()
    if strange:
        count = sum(p["category_id"] in strange for row in rows for p in row["segments_info"])
        raise ValueError(
            f"{file}: {count} segments are of categories that {truth.path} lacks (category_id "
            f"{quoted(sorted(map(str, strange)))})"
        )
    if others := found.keys() - set(annotated):
        notes.append(f"{len(others)} images of the results are not annotated; left out")
    return {i: found[i] for i in annotated}


def drawn_results(found: dict[int, dict[str, Any]], folder: Path, truth: "Annotations") -> Iterator[Answer]:
    """Each image's segments, from its row and its PNG file."""
    from tqdm import tqdm

    from ...data.folders import existing

    existing(folder)
    for i, row in tqdm(found.items(), unit="img", desc="panoptic", disable=None, file=sys.stderr):
        file = folder / row["file_name"]
        yield i, str(file), panorama(file, row["segments_info"], truth)


def asked(args: argparse.Namespace, truth: "Annotations", notes: list[str]) -> tuple[list[int], Iterator[Answer]]:
    """(ids of the images that are there, what the network makes of them); classes are matched by name."""
    from ...data.folders import existing
    from . import segmenter
    from .dense_input import FitPicture, present
    from .names import matched, unknown

    folder = existing(Path(args.images) if args.images else image_folder(Path(args.annotations)))
    judge = segmenter.load_segmenter(args.checkpoint, device=args.device)
    names = [c.name for c in truth.categories]
    places, strange = matched(judge.classes, names, judge.spec, str(truth.path))
    counts = [0] * len(names)
    for rows in truth.by_image.values():
        for part in (p for row in rows for p in row["segments_info"]):
            counts[truth.label[part["category_id"]] - 1] += 1
    annotated = [i for i, rows in truth.by_image.items() if rows]
    files = [truth.images[i]["file_name"] for i in annotated]
    there, missing = present(files, folder, str(truth.path), args.on_error)
    notes += [*strange, *unknown(judge.classes, names, judge.spec, counts, "segments"), *missing]
    ids, paths = [annotated[k] for k in there], [folder / files[k] for k in there]
    fit = FitPicture.of(judge.preprocessing, args.shortest, args.longest)
    cut = segmenter.segments(judge, paths, fit, workers=args.workers, on_error=args.on_error, title="panoptic")
    return ids, ((ids[k], str(paths[k]), segmenter.panorama(found, places)) for k, found in cut)


def tally(
    truth: "Annotations", answers: Iterator[Answer], segments: Path, source: str, notes: list[str]
) -> "tuple[Tally, int]":
    """(the counts over all images, how many they are); raises at the end, with their number, where segments and PNG
    files don't fit."""
    from ...data.folders import existing
    from .panoptic_quality import compare, nothing

    existing(segments)
    total, faults, other_area, judged = nothing(len(truth.categories)), [], 0, 0
    for i, name, answer in answers:
        own = truth.by_image[i][0]
        file = segments / own["file_name"]
        true = panorama(file, own["segments_info"], truth)
        size = (truth.images[i]["height"], truth.images[i]["width"])
        problems = [f"{f}: {fault}" for f, p in ((file, true), (name, answer)) if (fault := misfit(p, size))]
        faults += problems
        judged += 1
        if not problems:
            total += compare(true, answer, len(truth.categories))
            other_area += differing_areas(true, own["segments_info"])
    if faults:
        raise ValueError(f"{source}: {len(faults)} PNG files don't fit their lists, the first: {'; '.join(faults[:3])}")
    if other_area:
        notes.append(
            f"{other_area} annotated segments have another area in the JSON file than in the PNG, which counts here"
        )
    return total, judged


def panorama(file: Path, parts: list[dict[str, Any]], truth: "Annotations") -> "Panorama":
    from ...data.coco_panoptic import read_segment_ids
    from .panoptic_quality import Panorama, Segment

    listed = {p["id"]: Segment(truth.label[p["category_id"]] - 1, bool(p.get("iscrowd", 0))) for p in parts}
    return Panorama(read_segment_ids(file), listed)


def misfit(picture: "Panorama", size: tuple[int, int]) -> str | None:
    if picture.ids.shape != size:
        return f"{picture.ids.shape[0]}x{picture.ids.shape[1]} pixels, the image has {size[0]}x{size[1]}"
    return picture.fault()


def differing_areas(picture: "Panorama", parts: list[dict[str, Any]]) -> int:
    import numpy as np

    area = dict(zip(*(v.tolist() for v in np.unique(picture.ids, return_counts=True)), strict=True))
    return sum(p.get("area", area[p["id"]]) != area[p["id"]] for p in parts)


def report(content: dict[str, Any], per_category: bool) -> str:
    lines = [
        f"annotations  {content['annotations']}: {content['images']:,} images",
        f"segments     {content['source']}",
        *(f"note         {note}" for note in content["notes"]),
        "",
    ]
    header = ("", "PQ", "SQ", "RQ", "categories")
    rows = [
        (name, *percent(content[name]), (content[name] or {"categories": 0})["categories"])
        for name in ("all", "things", "stuff")
    ]
    lines.append(table(header, rows, right=header[1:]))
    if per_category:
        each = [(name, *percent(q)) for name, q in content["per_category"].items()]
        lines += ["", table(("category", *header[1:4]), each, right=header[1:4])]
    return "\n".join(lines)


def percent(quality: dict[str, Any] | None) -> list[str]:
    return [NOTHING] * 3 if quality is None else [f"{100 * quality[name]:.1f}" for name in ("pq", "sq", "rq")]
