"""patchloom predict: the likeliest classes of image files and folders, as a table, JSON or CSV; with detectors and
segmenters what is where in them (see predict_dense.py)."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cli import near, options
from ..saved.judge import Judge, add_judging, find_images, load, positive
from ..tables import table, write_whole

PASS_ON = True  # see `what`
EXAMPLES = """examples:
  patchloom predict runs/cifar10-cct/2026-01-31_12-00 photo.jpg
  patchloom predict swin_tiny photos/ --top 3 --json
  patchloom predict -c cifar10/cct --ckpt_path last.ckpt photo.jpg
  patchloom predict RUN photo.jpg --named "a red circle" "a blue star"      a contrastive run
  patchloom predict runs/bccd/fcos photos/ --out found/        a detector: boxes drawn, and COCO's results.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL PATH",
        help="a model's name, timm:…, checkpoint or run folder; then image files and folders",
    )
    parser.add_argument(
        "-c", "--config", metavar="RECIPE", help="with --ckpt_path and no PATH: the images of this recipe's data"
    )
    parser.add_argument("--ckpt_path", metavar="FILE", help="the checkpoint, instead of MODEL")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="classes for each image (5)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help='print [{"file", "top": [{"class", "index", "probability"}]}]'
    )
    form.add_argument("--csv", metavar="FILE", help="write file,rank,class,index,probability (-: print)")
    form.add_argument(
        "--out", metavar="FILE|DIR",
        help="write to FILE.json or FILE.csv; of a detector or segmenter: DIR for pictures and results, or FILE.json",
    )  # fmt: skip
    parser.add_argument(
        "--named", nargs="+", metavar="TEXT", help="of a contrastive run: texts, of which the likeliest is found"
    )
    dense = parser.add_argument_group("detectors")
    dense.add_argument("--score", type=chance, metavar="P", help="what is less likely is not drawn or listed (0.3)")
    dense.add_argument(
        "--annotations", metavar="FILE", help="COCO's file whose ids of images and categories the results take"
    )
    add_judging(parser, batch=32)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    spec, files = what(args)
    if args.out and Path(args.out).suffix:  # a folder is for what a detector finds: known once it is loaded
        check_destination(args)
    judge = named(args, spec) if args.named else load(
        spec, random_weights=args.random_weights, size=args.size, device=args.device, tokens=args.tokens,
        adapter=args.adapter,
    )  # fmt: skip
    from .predict_dense import is_dense, refuse
    from .predict_dense import run as run_dense

    if is_dense(judge.model):
        return run_dense(args, judge, files)
    refuse(args, ("score", "annotations"), f"{judge.spec} finds no objects")
    destination = check_destination(args)
    answers = []
    for indices, logits in judge.outputs(
        files, batch=args.batch, workers=args.workers, on_error=args.on_error, title="predict"
    ):
        probability, index = logits.softmax(1).topk(min(args.top, logits.shape[1]))
        for i, p, k in zip(indices, probability.tolist(), index.tolist(), strict=True):
            top = [
                {"class": judge.classes[b], "index": b, "probability": round(a, 6)} for a, b in zip(p, k, strict=True)
            ]
            answers.append({"file": str(files[i]), "top": top})
    if destination is not None:
        write_whole(destination, as_csv(answers) if args.csv or destination.suffix == ".csv" else as_json(answers))
        print(f"{len(answers)} images: {destination}", file=sys.stderr)
    else:
        form = as_csv if args.csv else as_json if args.json else as_table
        print(form(answers), end="")
    return 0


def named(args: argparse.Namespace, spec: str) -> Judge:
    """A contrastive run that tells classes apart which are only named."""
    from ..saved.matcher import load_named

    if args.random_weights or args.size or args.tokens or args.adapter:
        args.parser.error("--named goes without --random-weights, --size, --tokens and --adapter")
    return load_named(spec, args.named, args.device)


def what(args: argparse.Namespace) -> tuple[str, list[Path]]:
    """The model that is meant and the images, from the two spellings of the line."""
    words = [*args.words, *args.rest]  # argparse ends a list of words at the first option: `MODEL --top 3 photo.jpg`
    for word in args.rest:
        if word.startswith("-"):
            args.parser.error(f"unrecognized argument {word!r}{near(word, options(args.parser))}")
    if args.config and not args.ckpt_path:
        args.parser.error("-c says which data, not which weights: add --ckpt_path FILE")
    if not args.ckpt_path and not words:
        args.parser.error(
            "name a MODEL (a run folder, a checkpoint or one of patchloom models) and image files or folders"
        )
    spec = args.ckpt_path or words.pop(0)
    if words:
        return spec, find_images(*words)
    if not args.config:
        args.parser.error(f"no images for {spec}: name files or folders after it")
    return spec, find_images(recipe_images(args.config))


def recipe_images(recipe: str) -> Path:
    """The folder of test images (else validation images) under the `root` of the data that `recipe` names."""
    import yaml

    from ...data.folders import existing
    from ...data.splits import split_folders
    from ..running.recipes import find_recipe

    path = find_recipe(recipe)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {error}") from error
    data = (content if isinstance(content, dict) else {}).get("data") or {}
    root = (data.get("init_args") or data).get("root")
    if not root:
        raise ValueError(
            f"{recipe} names no folder of images (data.root): name files or folders after --ckpt_path FILE"
        )
    there = split_folders(existing(root))
    return there.get("test", there.get("val", Path(root)))


def chance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no probability, from 0 to 1")
    return value


def check_destination(args: argparse.Namespace) -> Path | None:
    """The file to write, judged before any work is done; None for standard output."""
    if not args.out:
        return Path(args.csv) if args.csv not in (None, "-") else None
    if Path(args.out).suffix not in (".json", ".csv"):
        raise ValueError(f"--out {args.out}: the name ends in .json or .csv")
    return Path(args.out)


def as_json(answers: Sequence[dict[str, Any]]) -> str:
    return json.dumps(answers, indent=1, ensure_ascii=False) + "\n"


def as_table(answers: Sequence[dict[str, Any]]) -> str:
    rows = [
        (a["file"] if rank == 1 else "", rank, brief(t["class"]), t["index"], f"{t['probability']:.1%}")
        for a in answers
        for rank, t in enumerate(a["top"], 1)
    ]
    header = ("file", "rank", "class", "index", "probability")
    return table(header, rows, right=("rank", "index", "probability")) + "\n"


def brief(name: str, most: int = 40) -> str:
    """ImageNet's classes carry all their synonyms."""
    return name if len(name) <= most else name[: most - 1] + "…"


def as_csv(answers: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "rank", "class", "index", "probability"))
    writer.writerows((a["file"], rank, *t.values()) for a in answers for rank, t in enumerate(a["top"], 1))
    return text.getvalue()
