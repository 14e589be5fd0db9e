"""patchloom eval imagenet|folder: accuracy of a classifier on class folders, with the weights' own preprocessing."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..saved.judge import Judge, add_judging, load, positive
from ..tables import table

SPLITS = {"imagenet": ("val", "test"), "folder": ("test", "val")}  # the first that there is
SUBSETS = {
    1000: "imagenet-1k",
    11221: "imagenet-21k-miil",
    11821: "imagenet-12k",
    21841: "imagenet-22k",
    21843: "imagenet-21k-goog",
}


@dataclass(frozen=True)
class Accuracy:
    """Percentages over `images` pictures, and how they came about."""

    model: str
    data: str
    images: int
    classes: int  # class folders that the pictures come from
    acc1: float
    acc5: float
    preprocessing: dict[str, Any]
    outputs: int  # classes that the model chose among
    note: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a model's name, timm:…, NAME=FILE, a checkpoint or a run folder"
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="holds one folder a class, or a split folder that does"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="the split folder under DIR, where the usual names don't find it"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="only N pictures, evenly spaced over the sorted list"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_judging(parser, batch=64)


def run(args: argparse.Namespace) -> int:
    folder = split_folder(Path(args.data), args.split, SPLITS[args.task])
    files, names = labelled_files(folder)
    judge = load(
        args.model, random_weights=args.random_weights, size=args.size, device=args.device, tokens=args.tokens,
        adapter=args.adapter,
    )  # fmt: skip
    known = output_names(judge.classes, folder)
    if args.limit and args.limit < len(files):
        chosen = [i * len(files) // args.limit for i in range(args.limit)]
        files, names = [files[i] for i in chosen], [names[i] for i in chosen]
    result = accuracy(
        judge, folder, files, names, known, batch=args.batch, workers=args.workers, on_error=args.on_error
    )
    print(json.dumps(asdict(result), indent=1) if args.json else report(result))
    return 0


def accuracy(
    judge: Judge, folder: Path, files: Sequence[Path], names: Sequence[str], known: Sequence[str], *,
    batch: int, workers: int = 0, on_error: str = "stop",
) -> Accuracy:  # fmt: skip
    """Acc@k = 100 · (pictures whose class is among the k largest logits) / pictures.

    Where the outputs are a superset of ImageNet-1k and the folders are of ImageNet-1k, only its 1,000 columns compete.
    """
    import torch

    from ...vision.plugins import plugins_of
    from ...vision.plugins.words import in_words

    targets, columns, note = class_indices(names, known, judge.spec)
    note = "; ".join(filter(None, [note, *(f"tokens {in_words(p)}" for p in plugins_of(judge.model))]))
    hits1 = hits5 = seen = 0
    for indices, logits in judge.outputs(files, batch=batch, workers=workers, on_error=on_error, title="eval"):
        if logits.shape[1] != len(known):
            raise ValueError(
                f"{judge.spec} gives {logits.shape[1]} outputs for {len(known)} class names: another file is needed"
            )
        if columns is not None:
            logits = logits[:, columns]
        target = torch.tensor([targets[i] for i in indices])
        top = logits.topk(min(5, logits.shape[1])).indices == target[:, None]  # (B 5)
        hits1, hits5, seen = hits1 + int(top[:, 0].sum()), hits5 + int(top.sum()), seen + len(indices)
    return Accuracy(
        judge.spec,
        str(folder),
        seen,
        len(set(names)),
        100 * hits1 / seen,
        100 * hits5 / seen,
        {k: list(v) if isinstance(v, tuple) else v for k, v in judge.preprocessing.items()},
        len(known) if columns is None else len(columns),
        note,
    )


def split_folder(root: Path, split: str | None, usual: Sequence[str]) -> Path:
    """root/SPLIT where it was named; else the first of the usual ones that is there; else root itself."""
    from ...data.folders import existing
    from ...data.splits import split_folders

    if split is not None:
        return existing(root / split)
    there = split_folders(existing(root))
    return next((there[name] for name in usual if name in there), root)


def labelled_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The images below each class folder of `folder` in sorted order, and the name of that class folder for each."""
    from ...data.folders import Folder

    found = Folder(folder)
    return [Path(file) for file, _ in found.samples], [found.classes[target] for _, target in found.samples]


def output_names(classes: list[str], root: Path) -> list[str]:
    """Names of class folders for a model's outputs: its classes; synsets where those are ImageNet's in plain words."""
    from timm.data import ImageNetInfo

    from ...data.synsets import human_names, imagenet_synsets
    from ..running.checkpoint import published_classes

    subset = SUBSETS.get(len(classes))
    if subset is not None and classes == published_classes(len(classes)):
        return list(ImageNetInfo(subset).label_names())
    if len(classes) == 1000 and classes in (
        human_names(root, imagenet_synsets()),
        human_names(root.parent, imagenet_synsets()),
    ):
        return imagenet_synsets()
    return classes


def class_indices(names: Sequence[str], known: Sequence[str], spec: str) -> tuple[list[int], list[int] | None, str]:
    """(an index for each name, the columns that compete or None for all, a note about them).

    A folder with only some of the classes maps by name, never by position. Of a head for more than ImageNet-1k (12k,
    22k) the columns of ImageNet-1k compete if all folders are of it; a class that the head lacks cannot be hit (-1).
    """
    from ...data.folders import near, quoted
    from ...data.synsets import imagenet_synsets

    column = {name: i for i, name in enumerate(known)}
    one_k = imagenet_synsets()
    within = [name for name in one_k if name in column]
    if len(known) > len(one_k) and len(within) > 0.99 * len(one_k) and set(names) <= set(one_k):
        place = {name: i for i, name in enumerate(within)}
        lacking = sorted(set(names) - set(within))
        note = f"the {len(within):,} of {len(known):,} outputs that are of ImageNet-1k compete"
        if lacking:
            note += f"; {quoted(lacking)} have no output and count as wrong"
        return [place.get(n, -1) for n in names], [column[n] for n in within], note
    strangers = sorted(set(names) - column.keys())
    if strangers:
        hint = near(strangers[0], known) if len(strangers) == 1 else f": there is {quoted(known)}"
        raise ValueError(
            f"{len(strangers)} of {len(set(names))} class folders are no classes of {spec} ({quoted(strangers)}){hint}"
        )
    return [column[n] for n in names], None, ""


def report(result: Accuracy) -> str:
    """Three lines about how, and the table."""
    how = result.preprocessing
    lines = [
        f"data           {result.data}: {result.images:,} images of {result.classes:,} classes",
        f"preprocessing  {describe_preprocessing(how)}",
        f"normalise      mean {numbers(how['mean'])}, std {numbers(how['std'])}",
    ]
    if result.note:
        lines.append(f"note           {result.note}")
    row = (result.model, f"{result.acc1:.3f}", f"{result.acc5:.3f}", f"{result.images:,}")
    return "\n".join(
        [*lines, "", table(("model", "Acc@1", "Acc@5", "images"), [row], right=("Acc@1", "Acc@5", "images"))]
    )


def describe_preprocessing(cfg: dict[str, Any]) -> str:
    """What timm's transform does: the crop is `crop_pct` of what the image is resized to."""
    from ...data.transforms import Preprocessing

    p = Preprocessing.of(cfg)
    height, width = (int(side / p.crop_pct) for side in (p.height, p.width))
    to = f"{height}x{width}"
    if p.crop_mode == "center":
        to = f"shorter side {height}" if height == width else f"cover {to}"
    how = {"center": "resize to", "squash": "squash to", "border": "fit into, with borders,"}.get(
        p.crop_mode, p.crop_mode
    )
    return f"{how} {to}, crop {p.height}x{p.width} (crop_pct {p.crop_pct:g}), {p.interpolation}"


def numbers(values: Sequence[float]) -> str:
    return " ".join(f"{v:.4g}" for v in values)
