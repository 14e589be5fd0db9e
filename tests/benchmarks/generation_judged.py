"""Do generated pictures show what was asked for? One command each: it trains a judge (or takes --judge RUN), trains the
denoiser for --minutes, makes 200 pictures and lets the judge, which has never seen them, say what is in them.

    python tests/benchmarks/generation_judged.py shapes --out runs/judged
    python tests/benchmarks/generation_judged.py photographs --data ../shared/data/cifar10_mini --out runs/judged
    python tests/benchmarks/generation_judged.py captions --out runs/judged

shapes: the share of pictures in which the judge sees the asked class, and the same on real pictures, its upper bound.
photographs: the same, and the Fréchet distance on the judge's features while the denoiser learns.
captions: how often the asked objects (kind and colour) are found, and how often in pictures that were asked for others,
which is chance; the ratio of both. The judge says for every kind in every colour whether it is there.
Writes DIR/WHAT.json, the sheet DIR/WHAT.png and the pictures; progress goes to stderr. --recipe names another denoiser.
"""

import argparse
import json
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch import Tensor

from patchloom.data.captioned import CaptionedShapes
from patchloom.data.pictures import Captioned
from patchloom.data.sample import COLOURS, KINDS
from patchloom.train.classify import Classify
from patchloom.train.ema import Ema
from patchloom.train.objectives.losses import Binary
from patchloom.train.optim import Cosine
from patchloom.train.running import checkpoint
from patchloom.train.running.runs import read_metrics
from patchloom.train.saved.judge import Judge, find_images, load
from patchloom.vision.backbone import Backbone, Stage
from patchloom.vision.block import StreamNorm
from patchloom.vision.heads.classification import Head
from patchloom.vision.mixers.attention import Global
from patchloom.vision.model import Classifier
from patchloom.vision.position import Position
from patchloom.vision.stem import ConvTokenizer

RECIPES = {"shapes": "shapes/dit", "photographs": "cifar10/dit", "captions": "shapes/dit_captions"}
JUDGES = {"shapes": ["shapes/cct_32"], "photographs": ["cifar10/cct"]}
PAIRS = [f"{colour} {kind}" for kind in KINDS for colour in COLOURS]
HOW = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0, "interpolation": "bicubic"}


def patchloom(*line: object) -> dict[str, Any]:
    """One command with --json; its progress is seen."""
    words = [sys.executable, "-m", "patchloom", *map(str, line), "--json"]
    print("$", " ".join(words[2:]), file=sys.stderr, flush=True)
    result = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout)


def data_options(args: argparse.Namespace) -> list[str]:
    return ["--data.root", args.data] if args.data else []


def trained_judge(args: argparse.Namespace) -> str:
    if args.judge:
        return args.judge
    if args.what == "captions":
        return str(finder(args.out / "finder.ckpt", args.finder_steps))
    line = ["fit", "-c", *JUDGES[args.what], *data_options(args), "--trainer.default_root_dir", args.out / "judge"]
    return patchloom(*line)["run"]


def trained_denoiser(args: argparse.Namespace, judge: str) -> Path:
    """The run of the denoiser; its metrics hold what the judge says of it on the way."""
    if args.denoiser:
        return Path(args.denoiser)
    watched = args.out / "watched.yaml"
    options = {"judge": judge, "every_n_steps": args.every, "count": 200, "steps": 10, "guidance": args.guidance}
    watch = {"class_path": "patchloom.train.callbacks.frechet.FrechetWatch", "init_args": options}
    watched.write_text(yaml.safe_dump({"trainer": {"callbacks": [watch]}}))
    seconds = round(args.minutes * 60)
    line = [
        "fit", "-c", args.recipe or RECIPES[args.what], "-c", watched, *data_options(args), "--test", "false",
        "--trainer.max_time", f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        "--trainer.default_root_dir", args.out / "denoiser", *(args.more or ()),
    ]  # fmt: skip
    return Path(patchloom(*line)["run"])


def latest(run: Path) -> Path:
    """The checkpoint that was written last."""
    return max(
        (run / name for name in ("last.ckpt", "best.ckpt") if (run / name).is_file()), key=lambda f: f.stat().st_mtime
    )


def made(args: argparse.Namespace, run: Path, *asked: object) -> Path:
    """The folder of 200 pictures; those that were made with these settings before are taken again."""
    how = f"g{args.guidance:g}_{args.sampler or 'own'}_{args.steps}_s{args.seed}"
    folder = args.out / f"{args.what}_{run.name}_{how}"
    if not folder.is_dir() or not any(folder.iterdir()):
        line = ["generate", "--checkpoint", latest(run), *asked, "--guidance", args.guidance, "--seed", args.seed]
        sampler = [*(["--sampler", args.sampler] if args.sampler else []), "--steps", args.steps]
        patchloom(*line, *sampler, "--out", folder, "--grid", args.out / f"{args.what}.png")
    return folder


def answers(judge: Judge, folder: Path) -> Tensor:
    """Logits (N, K) of the pictures in order."""
    return torch.cat([y for _, y in judge.outputs(find_images(folder), batch=64)])


def curve(run: Path) -> list[dict[str, float]]:
    rows = [r for r in read_metrics(run / "metrics.csv") if r.get("val/frechet") is not None]
    return [{k: float(r[k]) for k in ("step", "val/frechet", "val/asked") if r.get(k) is not None} for r in rows]


# ---------------------------------------------------------------------------------------------------------- classes


def by_class(args: argparse.Namespace) -> dict[str, Any]:
    name = trained_judge(args)
    run = trained_denoiser(args, name)
    judge = load(name)
    classes = checkpoint.read(latest(run))["patchloom"]["classes"]
    folder = made(args, run, "--classes", "all", "--count", 200 // len(classes))
    wanted = torch.tensor([judge.classes.index(c) for c in classes]).repeat_interleave(200 // len(classes))
    right = answers(judge, folder).argmax(1) == wanted
    each = {c: float(right[wanted == judge.classes.index(c)].double().mean()) for c in classes}
    found = {"seen": float(right.double().mean()), "each": each, "curve": curve(run), "run": str(run), "judge": name}
    test = patchloom("test", name)["test"] if Path(name).is_dir() else {}
    return found | {"judge_on_real": test}


# --------------------------------------------------------------------------------------------------------- captions


def pair_numbers(caption: str) -> list[int]:
    """Which of PAIRS a caption names."""
    words = caption.split()
    return [PAIRS.index(f"{a} {b}") for a, b in pairwise(words) if a in COLOURS and b in KINDS]


class Pairs(Captioned):
    """Targets (B, 100): which kinds in which colours a picture shows."""

    def _targets(self, found: Any) -> Tensor:
        target = torch.zeros(len(found), len(PAIRS))
        for row, caption in zip(target, found, strict=True):
            row[pair_numbers(caption)] = 1
        return target


class PairShapes(CaptionedShapes):
    classes = PAIRS  # type: ignore[assignment]

    def _read_by(self, split: str, source: Any, train: bool) -> Pairs:
        there = super()._read_by(split, source, train)
        return Pairs(source, there.pipeline, self.seed, self.on_error, train)  # type: ignore[attr-defined]


def finder(path: Path, steps: int) -> Path:
    """A classifier that says of every kind in every colour whether it is there, trained on real drawings."""
    L.seed_everything(1)
    stem = ConvTokenizer(Position((8, 8), std=0.2, resize="bilinear"), kernel=3, layers=2)
    stage = Stage(Global(4, bias=False), 128, 3, 2.0, block=StreamNorm())
    model = Classifier(Backbone([stage], stem), len(PAIRS), Head(pool="attention"), img_size=32)
    made = Classify(
        model, Binary(), lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
        Cosine(warmup_steps=200, min_lr=1e-5), ema=Ema(0.998),
    )  # fmt: skip
    data = PairShapes(train_length=64 * steps, val_length=1000, batch_size=64, workers=1, preprocessing=HOW)
    trainer = L.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False, gradient_clip_val=1.0,
        accelerator="auto", num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(made, data)
    print({k: float(v) for k, v in trainer.callback_metrics.items()}, file=sys.stderr)
    head = checkpoint.header(made.ema.module, PAIRS, HOW)
    state = {f"model.{name}": value.cpu() for name, value in made.ema.module.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save({"patchloom": head, "state_dict": state}, path)
    return path


def rates(logits: Tensor, captions: list[str]) -> dict[str, Any]:
    """How often asked objects are found, and how often in pictures of other captions (chance), of pairs and of kinds.

    Found: among the two likeliest of the 100 pairs; of kinds and colours alone likewise.
    """
    n = len(captions)
    top = logits.topk(2, 1).indices  # (N, 2)
    parts = {"objects": lambda p: p, "kinds": lambda p: p // len(COLOURS), "colours": lambda p: p % len(COLOURS)}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        asked = [[int(part(p)) for p in pair_numbers(c)] for c in captions]
        seen = [{int(part(p)) for p in row} for row in top.tolist()]
        hit = sum(a in seen[i] for i in range(n) for a in asked[i]) / (2 * n)
        others = [(i, j) for i in range(n) for j in range(n) if i != j]
        chance = sum(a in seen[i] for i, j in others for a in asked[j]) / (2 * len(others))
        found[name] = {"found": hit, "chance": chance, "times": hit / chance if chance else None}
    both = [set(pair_numbers(c)) == set(row) for c, row in zip(captions, top.tolist(), strict=True)]
    return found | {"both_objects": sum(both) / n}


def by_caption(args: argparse.Namespace) -> dict[str, Any]:
    name = trained_judge(args)
    run = trained_denoiser(args, name)
    data = CaptionedShapes(test_length=1000, batch_size=100, workers=0, seed=args.seed + 1, preprocessing=HOW)
    data.setup("test")
    real = list(islice(data.test_dataloader(), 10))
    captions = [c for _, group in real for c in group]
    judge = load(name)
    with torch.inference_mode():
        upper = rates(torch.cat([judge.model(x.to(judge.device)).float().cpu() for x, _ in real[:2]]), captions[:200])
    (args.out / "captions.txt").write_text("\n".join(captions[:200]) + "\n")
    folder = made(args, run, "--captions", args.out / "captions.txt", "--count", 1)
    found = rates(answers(judge, folder), captions[:200])
    return found | {"real_pictures": upper, "curve": curve(run), "run": str(run), "judge": name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(RECIPES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="class folders, for photographs")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--recipe")
    parser.add_argument("--judge", help="the run or checkpoint of a judge that was trained before")
    parser.add_argument("--denoiser", help="the run of a denoiser that was trained before")
    parser.add_argument("--every", type=int, default=1000, help="steps between looks at what it makes")
    parser.add_argument("--finder-steps", type=int, default=3000, help="of the judge of captions, 64 drawings each")
    parser.add_argument("--sampler", help="the process's own, unless it is named")
    parser.add_argument("--steps", default="50")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", nargs=argparse.REMAINDER, help="options of patchloom fit for the denoiser; last")
    args = parser.parse_args()
    if args.what == "photographs" and not args.data:
        parser.error("photographs needs --data DIR, class folders")
    args.out.mkdir(parents=True, exist_ok=True)
    found = by_caption(args) if args.what == "captions" else by_class(args)
    told = {"guidance": args.guidance, "steps": args.steps, "sampler": args.sampler, "minutes": args.minutes}
    text = json.dumps(found | told, indent=1)
    (args.out / f"{args.what}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
