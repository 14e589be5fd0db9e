"""patchloom tokens MODEL --target 0.6x|30ms --data DIR: the setting of a token plugin that meets a budget of time."""

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..saved.judge import Judge, add_judging, find_images, load, positive
from ..tables import table, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..tradeoff import Pictures, Point

EPILOG = """\
Each method is tried at a few strengths. The model without a plugin and all these settings run in alternating rounds in
one process; the time of a setting is the median over the rounds of its time over the plain model's. Of those that meet
the target the one is chosen whose answers on the images of DIR differ least from the plain model's (mean KL divergence
of the probabilities); or, where DIR has class folders whose names are the model's classes, the one with the best Acc@1.
Beside each stands random pruning that leaves as many tokens behind each block.

examples:
  patchloom tokens deit_small_patch16_224 --target 0.6x --data photos/
  patchloom tokens runs/shapes/vit/2026-01-31_12-00 --method tome evit --target 2ms --data photos/ --out budget"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="MODEL", help="a model's name, NAME=FILE, a checkpoint or a run folder")
    parser.add_argument(
        "--target", type=target, required=True, metavar="0.6x|30ms", help="of the plain model's time, or of an image"
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="images, or class folders of them (val/ of DIR)")
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="M",
        help="only these, e.g. tome evit (all that the model takes and that need no training)",
    )
    parser.add_argument("--points", type=positive, default=6, metavar="N", help="settings of each method (6)")
    parser.add_argument("--images", type=positive, default=100, metavar="N", help="images to compare answers on (100)")
    parser.add_argument("--out", metavar="DIR", help="write tokens.png, tokens.json and tokens.yaml there")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="measure for at least S seconds (10)")
    parser.add_argument("--repeats", type=positive, metavar="N", help="exactly N rounds, instead of --seconds")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (torch's default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_judging(parser, batch=8, tokens=False)


def target(text: str) -> str:
    """0.6x or 30ms, as it is."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(x|ms)", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no target; write 0.6x (of the plain time) or 30ms (an image)")
    if found[2] == "x" and float(found[1]) >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no target: a share of the plain time is below 1")
    return text


def run(args: argparse.Namespace) -> int:
    import torch

    from ...data.folders import existing
    from ..measure import Case
    from ..tradeoff import check_method, measure
    from ..tradeoff_curve import picture

    if args.threads:
        torch.set_num_threads(args.threads)
    for name in args.method or ():  # what is wrong is said before weights are fetched
        check_method(name)
    existing(args.data)
    judge = load(args.model, random_weights=args.random_weights, size=args.size, device=args.device)
    pictures, note = gather(judge, Path(args.data), args)
    size = tuple(judge.preprocessing["input_size"][1:])
    case = Case(args.batch, size, device=str(judge.device), threads=args.threads)
    plain, points, left_out = measure(
        judge.model, pictures, args.method, args.points, case, seconds=args.seconds, repeats=args.repeats
    )
    chosen = choose(points, args.target)
    result = {
        "model": args.model,
        "data": args.data,
        "images": sum(map(len, pictures.batches)),
        "note": note,
        "target": args.target,
        "chosen": None if chosen is None else chosen.tokens,
        "verdict": verdict(points, chosen, args.target),
        "plain": plain,
        "points": [asdict(p) for p in points],
        "left_out": left_out,
        "batch": args.batch,
        "size": list(size),
    }
    keep = "" if chosen is None else snippet(args.model, chosen.tokens)
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "tokens.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        write_whole(folder / "tokens.png", picture(plain, points, chosen, args.target, title(result)))
        if keep:
            write_whole(folder / "tokens.yaml", keep)
        print(f"{folder}: tokens.png, tokens.json{', tokens.yaml' * bool(keep)}", file=sys.stderr)
    print(json.dumps(result, ensure_ascii=False) if args.json else report(result, points, keep))
    return 0


# ---- images


def gather(judge: Judge, root: Path, args: argparse.Namespace) -> tuple["Pictures", str]:
    """Prepared images, evenly spaced over the sorted list, with their classes where the folders are named for the
    model's; and what is to be said of that."""
    import torch

    from ...data.folders import existing
    from ..evaluation.classes import class_indices, labelled_files, output_names, split_folder
    from ..tradeoff import Pictures

    folder = split_folder(existing(root), None, ("val", "test")) if root.is_dir() else existing(root)
    known = output_names(judge.classes, folder)
    folders = {p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."} if folder.is_dir() else set()
    targets = columns = None
    note = ""
    if folders and folders <= set(known):
        files, names = labelled_files(folder)
        targets, columns, note = class_indices(names, known, judge.spec)
    else:
        files = find_images(folder)
    count = min(args.images, len(files))
    chosen = [i * len(files) // count for i in range(count)]
    seen, batches = [], []
    for indices, x in judge.batches(
        [files[i] for i in chosen], batch=args.batch, workers=args.workers, on_error=args.on_error, title="images"
    ):
        seen += [chosen[i] for i in indices]
        batches.append(x)
    labels = None if targets is None else torch.tensor([targets[i] for i in seen])
    return Pictures(batches, labels, columns), note


# ---- the choice


def meets(point: "Point", wanted: str) -> bool:
    if wanted.endswith("ms"):
        return 1000 * point.seconds.median <= float(wanted[:-2])
    return point.ratio.median <= float(wanted[:-1])


def choose(points: "Sequence[Point]", wanted: str) -> "Point | None":
    """Of the settings that meet the target and are faster than the plain model the one that costs least: accuracy where
    it is known, then the change of the answers."""
    paying = [p for p in points if meets(p, wanted) and p.ratio.high < 1]
    return min(paying, key=lambda p: (-(p.answers.acc1 or 0), p.answers.kl), default=None)


def verdict(points: "Sequence[Point]", chosen: "Point | None", wanted: str) -> str:
    """One line: what is chosen and what it costs, or why nothing is."""
    if chosen is None:
        best = min(points, key=lambda p: p.ratio.median)
        ms = 1000 * best.seconds.median
        took = f"{best.tokens} takes {best.ratio.median:.2f} of the plain time, {ms:.2f} ms an image"
        if best.ratio.high >= 1:
            return f"no setting pays: none is faster than the plain model here; the fastest, {took}"
        return f"no setting meets {wanted}: the fastest, {took}"
    a, low, high = chosen.answers, chosen.ratio.low, chosen.ratio.high
    cost = f"KL {a.kl:.3g}, {a.agreement:.1f}% keep their class"
    if a.acc1 is not None:
        cost = f"Acc@1 {a.acc1:.2f}, {cost}"
    took = f"{chosen.ratio.median:.2f} of the plain time ({low:.2f} … {high:.2f})"
    text = f"{chosen.tokens} meets {wanted}: {took}, {cost}"
    r = chosen.random
    if r is not None and (r.acc1 or 0, -r.kl) >= (a.acc1 or 0, -a.kl):
        text += f"; to drop as many tokens at random is no worse: {at_random(chosen)}"
    return text


def snippet(model: str, tokens: str) -> str:
    """YAML that goes behind the model's recipe: `patchloom fit -c RECIPE -c tokens.yaml`."""
    return (
        f"# {model}, chosen by patchloom tokens\nmodel:\n  init_args:\n    model:\n      init_args:\n"
        f"        tokens: {tokens}\n"
    )


# ---- what is shown


def title(result: dict[str, Any]) -> str:
    h, (height, width) = result["plain"]["circumstances"], result["size"]
    return f"{result['model']}, {height}x{width}, batch {result['batch']}, {h['processor']}, {h['threads']} threads"


def report(result: dict[str, Any], points: "Sequence[Point]", keep: str) -> str:
    """The verdict, a row for each setting, and what to keep."""
    plain, labelled = result["plain"], result["plain"]["acc1"] is not None
    header = ("setting", "tokens", "GMACs", "ms an image", "of plain", "KL", "same class", "Acc@1", "at random")
    first = ("none", plain["left"], f"{plain['macs'] / 1e9:.2f}", f"{1000 * plain['seconds']['median']:.2f}", "1",
             "0", "100.0%", plain["acc1"], "")  # fmt: skip
    rows = [first, *((*cells(p), p.answers.acc1, at_random(p)) for p in points)]
    shown = [(*r[:7], *(["-" if r[7] is None else f"{r[7]:.2f}"] if labelled else []), r[8]) for r in rows]
    names = header if labelled else (*header[:7], header[8])
    seen = f"{result['images']} images of {result['data']}"
    lines = [title(result), f"{seen}; {result['note']}" if result["note"] else seen]
    lines += ["", table(names, shown, right=names[1:]), ""]
    lines += [f"left out: {name}: {why}" for name, why in result["left_out"].items()]
    lines += [result["verdict"]]
    return "\n".join([*lines, "", keep.rstrip()] if keep else lines)


def cells(p: "Point") -> tuple[Any, ...]:
    a = p.answers
    return (
        p.tokens, p.left, f"{p.macs / 1e9:.2f}", f"{1000 * p.seconds.median:.2f}", f"{p.ratio.median:.2f}",
        f"{a.kl:.3g}", f"{a.agreement:.1f}%",
    )  # fmt: skip


def at_random(p: "Point") -> str:
    """What random pruning to as many tokens costs, in the measure by which settings are chosen."""
    if p.random is None:
        return "-"
    return f"KL {p.random.kl:.3g}" if p.random.acc1 is None else f"{p.random.acc1:.2f}"
