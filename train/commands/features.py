"""patchloom features: embeddings of a folder's images to a file; k-nearest-neighbour and linear accuracy."""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..saved.judge import Judge, add_judging, find_images, load, positive
from ..tables import table, write_whole

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """examples:
  patchloom features timm:vit_small_patch14_dinov2 photos/ --out photos.safetensors
  patchloom features swin_tiny flowers/ --labels folder     (train/ against test/ or val/, else four fifths against one)
  patchloom features swin_tiny train/ --labels folder --against val/"""
TEMPERATURE = 0.07  # of the neighbours' weights, as in DINO
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the logistic regression: 1 over the weight of its penalty


@dataclass(frozen=True)
class Bank:
    """Embeddings (N C) of `names`, files relative to their folder, with the label of each where they are known."""

    names: list[str]
    embeddings: "Tensor"
    labels: list[str] | None = None

    def pick(self, indices: Sequence[int]) -> "Bank":
        labels = None if self.labels is None else [self.labels[i] for i in indices]
        return Bank([self.names[i] for i in indices], self.embeddings[list(indices)], labels)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument(
        "model", metavar="MODEL", help="a model's name, timm:…, NAME=FILE, a checkpoint or a run folder"
    )
    parser.add_argument("folder", metavar="DIR", help="the images, searched to the bottom")
    parser.add_argument(
        "--out", default="features.safetensors", metavar="FILE", help="the embeddings (features.safetensors)"
    )
    parser.add_argument(
        "--labels",
        metavar="folder|FILE.csv",
        help="the folder that an image lies in, or a table with columns file and label",
    )
    parser.add_argument("--against", metavar="DIR2", help="test images; those of DIR are then all for training")
    parser.add_argument("--k", type=positive, default=20, metavar="N", help="neighbours that vote (20)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_judging(parser, batch=64)


def run(args: argparse.Namespace) -> int:
    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: the embeddings are written as .safetensors")
    if args.against and not args.labels:
        raise ValueError(f"--against {args.against}: accuracy needs labels; add --labels folder or --labels FILE.csv")
    parts = (
        {"train": Path(args.folder), "test": Path(args.against)}
        if args.against
        else standard_parts(Path(args.folder), args.labels)
    )
    files = {part: find_images(folder) for part, folder in parts.items()}
    labels = {part: labels_of(files[part], folder, args.labels) for part, folder in parts.items()}
    judge = load(
        args.model, random_weights=args.random_weights, size=args.size, device=args.device, tokens=args.tokens,
        adapter=args.adapter,
    )  # fmt: skip
    banks = {part: extract(judge, parts[part], files[part], labels[part], args) for part in parts}
    save(out, banks, judge)
    result: dict[str, Any] = {
        "model": args.model,
        "out": str(out),
        "images": sum(len(b.names) for b in banks.values()),
        "width": int(next(iter(banks.values())).embeddings.shape[1]),
    }
    if args.labels:
        train, test = (banks["train"], banks["test"]) if "test" in banks else hold_out(banks["all"])
        result |= verdict(train, test, args.k)
    print(json.dumps(result, indent=1) if args.json else report(result))
    return 0


# ---- images and labels


def standard_parts(folder: Path, labels: str | None) -> dict[str, Path]:
    """{train, test} where labels are asked for and `folder` holds a train/ and a test/ or val/; else {all: folder}."""
    from ...data.folders import existing
    from ...data.splits import split_folders

    there = split_folders(existing(folder)) if labels else {}
    if "train" in there and len(there) > 1:
        return {"train": there["train"], "test": there.get("test", there.get("val", folder))}
    return {"all": folder}


def labels_of(files: Sequence[Path], root: Path, source: str | None) -> list[str] | None:
    """A label for each file. Raises for the first that has none."""
    if source is None:
        return None
    if source == "folder":
        loose = next((f for f in files if f.parent == root), None)
        if loose is not None:
            raise ValueError(f"{loose} lies in {root} itself, not in a class folder; use --labels FILE.csv")
        return [f.relative_to(root).parts[0] for f in files]
    table_of = read_labels(Path(source))
    found = [table_of.get(f.relative_to(root).as_posix(), table_of.get(f.name)) for f in files]
    if None in found:
        raise ValueError(
            f"{source} has no label for {files[found.index(None)].relative_to(root)} "
            f"({found.count(None)} of {len(files)} images)"
        )
    return [label for label in found if label is not None]


def read_labels(path: Path) -> dict[str, str]:
    """file -> label of a CSV table with (at least) these two columns."""
    if path.suffix != ".csv" or not path.is_file():
        raise FileNotFoundError(f"--labels {path}: it is the word folder, or a .csv file that is there")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path} needs the columns file and label; it has {', '.join(reader.fieldnames or ()) or 'none'}"
            )
        return {row["file"]: row["label"] for row in reader}


def extract(
    judge: Judge, root: Path, files: Sequence[Path], labels: Sequence[str] | None, args: argparse.Namespace
) -> Bank:
    import torch

    kept, parts = [], []
    for indices, embeddings in judge.outputs(
        files, batch=args.batch, workers=args.workers, on_error=args.on_error, pre_logits=True, title="features"
    ):
        kept += indices
        parts.append(embeddings)
    return Bank(
        [files[i].relative_to(root).as_posix() for i in kept],
        torch.cat(parts),
        None if labels is None else [labels[i] for i in kept],
    )


def save(out: Path, banks: dict[str, Bank], judge: Judge) -> None:
    """Tensors `embeddings` (N C) and, where known, `label` (N); as metadata files, classes, parts, preprocessing."""
    import torch
    from safetensors.torch import save as to_bytes

    tensors = {"embeddings": torch.cat([b.embeddings for b in banks.values()]).contiguous()}
    notes: dict[str, Any] = {
        "files": [f for b in banks.values() for f in b.names],
        "parts": {name: len(b.names) for name, b in banks.items()},
        "model": judge.spec,
        "preprocessing": judge.preprocessing,
    }
    labels = [label for b in banks.values() for label in b.labels or ()]
    if labels:
        notes["classes"] = sorted(set(labels))
        tensors["label"] = torch.tensor([notes["classes"].index(label) for label in labels])
    write_whole(out, to_bytes(tensors, {key: json.dumps(value) for key, value in notes.items()}))


def hold_out(bank: Bank) -> tuple[Bank, Bank]:
    """(train, test): of each class a fifth is for the test, chosen by the files' names alone."""
    rest, held = parts_of(bank)
    if not held:
        raise ValueError("every class has a single image, so none is left for a test; give test images with --against")
    return bank.pick(rest), bank.pick(held)


def parts_of(bank: Bank) -> tuple[list[int], list[int]]:
    """(indices of four fifths of each class, of the other fifth)."""
    from ...data.splits import portion

    assert bank.labels is not None
    index = {label: i for i, label in enumerate(sorted(set(bank.labels)))}
    held, rest = portion(bank.names, [index[label] for label in bank.labels], 1 / 5)
    return rest, held


# ---- verdicts


def verdict(train: Bank, test: Bank, k: int) -> dict[str, Any]:
    """Accuracy in percent of weighted nearest neighbours and of a linear classifier."""
    import torch

    assert train.labels is not None
    assert test.labels is not None
    classes = sorted(set(train.labels))
    strangers = sorted(set(test.labels) - set(classes))
    if strangers:
        raise ValueError(
            f"test classes that training lacks: {', '.join(strangers[:5])}; training has {', '.join(classes[:5])}"
        )
    if len(classes) < 2:
        raise ValueError(f"all images are of one class ({classes[0]}); accuracy needs two or more")
    index = {label: i for i, label in enumerate(classes)}
    y, target = (torch.tensor([index[label] for label in labels]) for labels in (train.labels, test.labels))
    votes = nearest(train.embeddings, y, test.embeddings, k, len(classes))
    strength = choose_strength(train)
    return {
        "classes": len(classes), "train": len(y), "test": len(target), "k": min(k, len(y)),
        "knn_acc1": 100 * (votes.argmax(1) == target).double().mean().item(),
        "linear_acc1": 100 * linear_accuracy(train, test, strength), "linear_strength": strength,
    }  # fmt: skip


def nearest(bank: "Tensor", labels: "Tensor", query: "Tensor", k: int, classes: int) -> "Tensor":
    """votes (Q classes): sum over the k nearest n of exp(cos(query, n) / 0.07), each for its label (as in DINO)."""
    import torch
    from torch.nn.functional import normalize

    bank, votes = normalize(bank), torch.zeros(len(query), classes)
    for rows in torch.arange(len(query)).split(1024):
        cosine, index = (normalize(query[rows]) @ bank.T).topk(min(k, len(bank)))
        weights = ((cosine - 1) / TEMPERATURE).exp()  # -1: the same verdict, and no overflow
        votes[rows] = votes[rows].scatter_add(1, labels[index], weights)
    return votes


def choose_strength(train: Bank) -> float:
    """The C of STRENGTHS that is best on a fifth of the training images; the middle one where they are too few."""
    fit, held = parts_of(train)
    if not held or len({(train.labels or [])[i] for i in fit}) < 2:
        return STRENGTHS[len(STRENGTHS) // 2]
    return max(STRENGTHS, key=lambda strength: linear_accuracy(train.pick(fit), train.pick(held), strength))


def linear_accuracy(train: Bank, test: Bank, strength: float) -> float:
    """Accuracy in 0…1 of a logistic regression on standardised embeddings; C = `strength`."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties need more steps; C is chosen by outcome
        probe.fit(train.embeddings.numpy(), train.labels)
    return float(probe.score(test.embeddings.numpy(), test.labels))


def report(result: dict[str, Any]) -> str:
    head = f"{result['images']:,} images, {result['width']} numbers each: {result['out']}"
    if "knn_acc1" not in result:
        return head
    rows = [
        (f"{result['k']} nearest neighbours", f"{result['knn_acc1']:.2f}"),
        (f"linear (C {result['linear_strength']:g})", f"{result['linear_acc1']:.2f}"),
    ]
    return (
        f"{head}\n{result['train']:,} to learn from, {result['test']:,} to test, {result['classes']} classes\n\n"
        + table(("method", "Acc@1"), rows, right=("Acc@1",))
    )
