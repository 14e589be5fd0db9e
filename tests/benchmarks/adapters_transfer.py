"""What adapters reach on real photographs: three small backbones learn CIFAR-10, then five kinds of flowers.

    python tests/benchmarks/adapters_transfer.py --cifar10 ../shared/data/cifar10_mini \\
        --flowers ../shared/data/flower_photos_mini --out runs/transfer

The same line goes on where it was stopped; `--part 1/2` beside `--part 2/2` shares the runs between two processes.
Backbones are the recipes transfer/{vit,windows,scan}. Each is adapted by training all of it, its head alone, and by
adapters (all of them on the first), on 5 and on all photographs a class, as transfer/flowers has it, with several seeds
of pictures and weights; the learning rate of each method is the best of four on a fifth of the training photographs
that are held out for that. Writes results.jsonl, table.md and picture.png into the folder.
"""

import argparse
import io
import json
import logging
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
import torch
from torch import nn

from patchloom.data.modules import FolderData, Jostle
from patchloom.train.catalogue.compat import spelling
from patchloom.train.classify import Classify
from patchloom.train.commands.sweep import COLOURS
from patchloom.train.objectives.losses import CrossEntropy
from patchloom.train.optim import Cosine
from patchloom.train.running.calm import calm
from patchloom.train.running.checkpoint import find, load_model
from patchloom.train.saved.judge import positive
from patchloom.train.tables import short, write_whole
from patchloom.vision.adapters import ADAPTERS, HEADS, AdapterError

BACKBONES = ("vit", "windows", "scan")
FULL, PROBE = "full", "probe"
OTHERS = ("lora:r=8", "parallel", "bias", "ssf")  # on the other backbones too
FORMS = ("vpt:deep=false", "hst:fixed=true")  # beside the defaults
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
EPOCHS = {"5": 60, "all": 20}  # by photographs of a class
SEARCH, SEARCH_EPOCHS = -1, 10  # the seed of the runs that choose a rate, and how long they are


@dataclass(frozen=True)
class Run:
    """One training: what is adapted how, to how many photographs a class (or `all`, or those of a `search`)."""

    backbone: str
    method: str
    shots: str
    rate: float
    seed: int

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.backbone, self.method, self.shots, self.rate, self.seed)


# --------------------------------------------------------------------------------------------------------- backbones


def learnt(name: str, args: argparse.Namespace) -> Path:
    """The folder of the backbone's run, trained if it is not there, or to its end if it was stopped."""
    root = args.out / name
    runs = sorted(path.parent for path in root.rglob("config.yaml"))
    done = [run for run in runs if (run / "finished").exists()]
    while not done and args.part[0] > 0:  # the first part trains it
        time.sleep(5)
        done = [path.parent for path in root.rglob("finished")]
    if not done:
        start = ["--resume", str(runs[-1])] if runs and (runs[-1] / "last.ckpt").exists() else [
            "-c", f"transfer/{name}", "--data.root", str(args.cifar10), "--trainer.default_root_dir", str(root),
            *(["--trainer.max_epochs", str(args.epochs)] if args.epochs else []),
        ]  # fmt: skip
        result = subprocess.run([sys.executable, "-m", "patchloom", "fit", "--json", *start], stdout=subprocess.PIPE)
        if result.returncode:
            raise ChildProcessError(f"training transfer/{name} failed; the same command goes on with it")
        report = json.loads(result.stdout)
        done = [Path(report["run"])]
        (done[0] / "finished").write_text(json.dumps(report["test"]))
    return done[0]


# -------------------------------------------------------------------------------------------------------------- data


def flowers(root: Path, out: Path, shots: str, seed: int) -> Path:
    """A folder of links: `shots` photographs of each class to learn from, and those to be judged on. For the search a
    fifth of the training photographs is judged on, and the others are learnt from."""
    place = out / "flowers" / f"{shots}-{seed}"
    if not place.exists():
        part = place.with_name(f".{place.name}.{time.time_ns()}")
        for folder in sorted((root / "train").iterdir()):
            files = sorted(folder.iterdir())
            random.Random(f"{seed} {folder.name}").shuffle(files)
            held = len(files) // 5 if seed == SEARCH else 0
            learn = files[held:] if shots == "all" else files[held : held + int(shots)]
            judge = files[:held] if seed == SEARCH else sorted((root / "val" / folder.name).iterdir())
            for split, chosen in (("train", learn), ("val", judge)):
                (part / split / folder.name).mkdir(parents=True)
                for file in chosen:
                    (part / split / folder.name / file.name).symlink_to(file.resolve())
        try:
            part.rename(place)
        except OSError:  # another process was quicker
            assert place.is_dir(), place
    return place


def data(place: Path, preprocessing: dict[str, Any], seed: int) -> FolderData:
    vary = Jostle(padding=8, rotate=10, zoom=(0.9, 1.2), brightness=0.2, contrast=0.2, saturation=0.2)
    return FolderData(
        str(place), batch_size=25, workers=0, seed=max(0, seed), augment=vary, preprocessing=preprocessing
    )


# ------------------------------------------------------------------------------------------------------------ one run


def adapted(model: nn.Module, run: Run, images: FolderData, epochs: int) -> dict[str, Any]:
    """Trains a copy of the model, and what it then reaches."""
    L.seed_everything(max(0, run.seed), verbose=False)
    start = time.perf_counter()
    module = Classify(
        deepcopy(model).train(),
        CrossEntropy(smoothing=0.1),
        lambda groups: torch.optim.AdamW(groups, lr=run.rate, weight_decay=0.05, fused=True),
        Cosine(warmup_steps=10, min_lr=1e-6),
        adapter=None if run.method == FULL else run.method,
    )
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, gradient_clip_val=1.0, num_sanity_val_steps=0, check_val_every_n_epoch=epochs + 1,
    )  # fmt: skip
    trainer.fit(module, images)
    (result,) = trainer.validate(module, images.val_dataloader(), verbose=False)
    learning = {n: p.numel() for n, p in module.model.named_parameters() if p.requires_grad}
    heads = tuple(f"{h}." for h in HEADS)
    return {
        **vars(run), "top1": 100 * result["val/top1"], "loss": result["val/loss"], "epochs": epochs,
        "trainable": sum(learning.values()), "head": sum(v for n, v in learning.items() if n.startswith(heads)),
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


class Results:
    """The file of what was done."""

    def __init__(self, path: Path):
        self.path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def find(self, run: Run) -> dict[str, Any] | None:
        return next((r for r in self.rows if tuple(r.get(k) for k in vars(run)) == run.key), None)

    def refused(self, backbone: str, method: str) -> bool:
        return any(r["backbone"] == backbone and r["method"] == method and "refused" in r for r in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


@dataclass
class Bench:
    """A backbone as it was trained, and how it is adapted."""

    name: str
    model: nn.Module
    preprocessing: dict[str, Any]
    args: argparse.Namespace
    results: Results

    def done(self, run: Run) -> dict[str, Any]:
        """The row of this run, which is trained if it is not there."""
        if (there := self.results.find(run)) is None:
            place = flowers(self.args.flowers, self.args.out, run.shots, run.seed)
            epochs = self.args.adapt_epochs or (SEARCH_EPOCHS if run.seed == SEARCH else EPOCHS[run.shots])
            there = adapted(self.model, run, data(place, self.preprocessing, run.seed), epochs)
            self.results.add(there)
            said(f"{self.name}, {run.method}, {run.shots}, rate {run.rate:g}, seed {run.seed}: {there['top1']:.1f}, "
                 f"{there['seconds']:.0f} s")  # fmt: skip
        return there

    def rate(self, method: str) -> float:
        """The best of `RATES` on held-out training photographs, by top-1 and then by loss."""
        tried = [self.done(Run(self.name, method, "all", rate, SEARCH)) for rate in self.args.rates]
        return max(tried, key=lambda r: (r["top1"], -r["loss"]))["rate"]

    def measure(self, method: str) -> None:
        if self.results.refused(self.name, method):
            return
        try:
            rate = self.rate(method)
        except AdapterError as error:
            self.results.add({"backbone": self.name, "method": method, "refused": str(error)})
            said(f"{self.name}, {method}: {error}")
            return
        for shots in EPOCHS:
            for seed in range(self.args.seeds):
                self.done(Run(self.name, method, shots, rate, seed))


# ------------------------------------------------------------------------------------------------------ what is shown


@dataclass(frozen=True)
class Score:
    """What a method reached on a backbone with so many photographs a class, over seeds."""

    backbone: str
    method: str
    shots: str
    values: tuple[float, ...]
    trainable: int  # without the head
    rate: float

    @property
    def words(self) -> str:
        spread = f" ± {stdev(self.values):.1f}" if len(self.values) > 1 else ""
        return f"{mean(self.values):.1f}{spread}"


def scores(rows: Sequence[dict[str, Any]]) -> Iterator[Score]:
    done = [r for r in rows if r.get("seed", SEARCH) != SEARCH]
    for key in dict.fromkeys((r["backbone"], r["method"], r["shots"]) for r in done):
        found = [r for r in done if (r["backbone"], r["method"], r["shots"]) == key]
        first = found[0]
        yield Score(*key, tuple(r["top1"] for r in found), first["trainable"] - first["head"], first["rate"])


def report(rows: Sequence[dict[str, Any]]) -> str:
    """A table a backbone, in Markdown; methods that the probe beats say so."""
    found = {(s.backbone, s.method, s.shots): s for s in scores(rows)}
    parts = []
    for backbone in dict.fromkeys(b for b, _, _ in found):
        heads = [
            backbone,
            "learns, without the head",
            "rate",
            *(f"{shots} a class" for shots in EPOCHS),
            "over the probe",
        ]
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for method in dict.fromkeys(m for b, m, _ in found if b == backbone):
            row = [found.get((backbone, method, shots)) for shots in EPOCHS]
            first = next(s for s in row if s is not None)
            over = [gain(s, found.get((backbone, PROBE, s.shots))) for s in row if s is not None]
            cells = [
                f"`{method}`",
                short(first.trainable),
                f"{first.rate:g}",
                *("" if s is None else s.words for s in row),
            ]
            lines.append("| " + " | ".join([*cells, ", ".join(over)]) + " |")
        refused = [f"`{r['method']}`: {r['refused']}" for r in rows if "refused" in r and r["backbone"] == backbone]
        parts.append("\n".join([*lines, *(["", *refused] if refused else [])]))
    return "\n\n".join(parts)


def gain(score: Score, probe: Score | None) -> str:
    return "" if probe is None else f"{mean(score.values) - mean(probe.values):+.1f}"


def picture(rows: Sequence[dict[str, Any]]) -> bytes:
    """Top-1 over the parameters that learn: a panel for each number of photographs, a colour a backbone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.6), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(EPOCHS))
    for axis, shots in zip(panels, EPOCHS, strict=True):
        for backbone, colour in zip(BACKBONES, COLOURS, strict=False):
            for s in (s for s in scores(rows) if (s.backbone, s.shots) == (backbone, shots)):
                bars = stdev(s.values) if len(s.values) > 1 else 0
                at = (max(s.trainable, 30), mean(s.values))
                axis.errorbar(*at, bars, fmt="o", markersize=4, color=colour, elinewidth=0.5, alpha=0.8)
                axis.annotate(s.method, at, (3, 2), textcoords="offset points", fontsize=5.5, color=colour)
                if s.method in (FULL, PROBE):
                    axis.axhline(at[1], color=colour, linewidth=0.5, linestyle="-" if s.method == FULL else ":")
        axis.set(xscale="log", xlabel="parameters that learn, without the head", ylabel="top-1, %")
        axis.set_title(f"{shots} photographs a class (— full, ··· probe)", loc="left", fontsize=9)
        axis.grid(alpha=0.25)
    marks = [panels[-1].plot([], [], "o", color=c, label=b)[0] for b, c in zip(BACKBONES, COLOURS, strict=False)]
    panels[-1].legend(handles=marks, frameon=False, fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def part(text: str) -> tuple[int, int]:
    """`1/2`"""
    first, _, of = text.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r}: write 1/2 for the first of two")
    return int(first) - 1, int(of)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, metavar="DIR")
    parser.add_argument("--flowers", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"), metavar="DIR")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--methods", nargs="+", metavar="SPEC", help="instead of all, and four on the others")
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--epochs", type=positive, help="of the backbones' training, instead of the recipe's")
    parser.add_argument("--adapt-epochs", type=positive, help="of each adaptation, instead of 60 and 20")
    parser.add_argument("--part", type=part, default=(0, 1), metavar="I/N", help="every N-th method, from the I-th")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--report", action="store_true", help="table and picture of what is there, nothing more")
    return parser.parse_args()


def methods(backbone: str, args: argparse.Namespace) -> list[str]:
    named = [*(spelling(a) for a in ADAPTERS if a != PROBE), *FORMS]
    every = named if backbone == BACKBONES[0] else list(OTHERS)
    return [FULL, PROBE, *every] if args.methods is None else args.methods


def main() -> None:
    args = parsed()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    results = Results(args.out / "results.jsonl")
    with calm():
        logging.getLogger("patchloom").setLevel(logging.ERROR)
        for name in [] if args.report else args.backbones:
            run = learnt(name, args)
            said(f"{name}: {find(run)}, {json.loads((run / 'finished').read_text())}")
            model, _, preprocessing = load_model(str(run))
            bench = Bench(name, model, preprocessing, args, results)
            first, of = args.part
            for method in methods(name, args)[first::of]:
                bench.measure(method)
    rows = Results(results.path).rows
    table = report(rows)
    write_whole(args.out / "table.md", table + "\n")
    write_whole(args.out / "picture.png", picture(rows))
    print(table)


if __name__ == "__main__":
    main()
