"""COCO evaluation against pycocotools: time from the files to the twelve numbers, and whether these are identical.

`python tests/benchmarks/coco_eval_speed.py ../shared/data/coco_eval_reference --images 5000 --repeats 3` replicates the
100 reference images (new ids, the same annotations and detections) and measures both in alternation, each in a process
of its own, by the clock; the best of the repeats counts. In Markdown.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KINDS = {"box": "bbox", "mask": "segm"}
OURS = """
import json, sys, time
start = time.perf_counter()
from patchloom.train.evaluation.coco_score import KINDS, score
from patchloom.train.evaluation.coco_truth import read_results, read_truth
loaded = time.perf_counter()
annotations, results, kind = sys.argv[1:]
truth = read_truth(annotations)
numbers = score(truth, read_results(results, truth), kind).numbers
print(json.dumps({"time": time.perf_counter() - loaded, "numbers": list(numbers.values())}))
"""
THEIRS = """
import contextlib, io, json, sys, time
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
loaded = time.perf_counter()
annotations, results, kind = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(annotations)
    judged = COCOeval(truth, truth.loadRes(results), {"box": "bbox", "mask": "segm"}[kind])
    judged.evaluate(), judged.accumulate(), judged.summarize()
print(json.dumps({"time": time.perf_counter() - loaded, "numbers": judged.stats.tolist()}))
"""


def replicate(folder: Path, images: int, target: Path) -> dict[str, Path]:
    """annotations.json, and box.json and mask.json with the detections, of as many copies as `images` takes."""
    truth = json.loads((folder / "instances_val2014_100.json").read_text())
    copies = -(-images // len(truth["images"]))
    step = 1 + max(image["id"] for image in truth["images"])
    number = 1 + max(row["id"] for row in truth["annotations"])
    content: dict[str, Any] = {
        "annotations": {
            **truth,
            "images": [{**i, "id": i["id"] + c * step} for c in range(copies) for i in truth["images"]],
            "annotations": [
                {**a, "id": a["id"] + c * number, "image_id": a["image_id"] + c * step}
                for c in range(copies)
                for a in truth["annotations"]
            ],
        }
    }
    for kind, official in KINDS.items():
        rows = json.loads((folder / f"instances_val2014_fake{official}100_results.json").read_text())
        content[kind] = [{**row, "image_id": row["image_id"] + c * step} for c in range(copies) for row in rows]
    files = {name: target / f"{name}.json" for name in content}
    for name, file in files.items():
        file.write_text(json.dumps(content[name]))
    return files


def run(code: str, *words: object) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="coco_eval_reference")
    parser.add_argument("--images", type=int, default=5000, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files = replicate(args.folder, args.images, Path(name))
        print("| numbers of | images | detections | pycocotools s | ours s | times as fast | identical |")
        print("|---|---|---|---|---|---|---|")
        for kind in KINDS:
            detections = len(json.loads(files[kind].read_text()))
            pairs = [
                [run(c, files["annotations"], files[kind], kind) for c in (THEIRS, OURS)] for _ in range(args.repeats)
            ]
            theirs, ours = (min(pair[i]["time"] for pair in pairs) for i in (0, 1))
            same = all(a["numbers"] == b["numbers"] for a, b in pairs)
            row = (f"{args.images:,}", f"{detections:,}", f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.1f}", same)
            print(f"| {kind} | {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
