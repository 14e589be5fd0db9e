"""Speed of the families that timm lacks against the same networks written plainly in torch (tests/plain), which
compute the same numbers (tests/vision/families). In Markdown.

`python tests/benchmarks/against_plain.py --models cvt favit --seconds 10`. Progress goes to stderr.
"""

import argparse
import importlib
import json
import sys
from math import exp, log
from pathlib import Path

import torch
from torch import nn

from patchloom.train.measure import Case, Spread, alternate, best_layout, circumstances
from patchloom.train.saved.judge import positive
from patchloom.vision.zoo import create_model

TESTS = Path(__file__).parents[1]
SMALLEST = {path.stem: path for path in sorted((TESTS / "plain").glob("[!_]*.py"))}


def plain(family: str) -> tuple[str, nn.Module]:
    """The variant that a family's plain form stands for by default, and that form."""
    sys.path.insert(0, str(TESTS))
    module = importlib.import_module(f"plain.{family}")
    return module.VARIANT, module.build(module.VARIANT)


def measure(family: str, case: Case, seconds: float) -> dict[str, object]:
    torch.manual_seed(0)
    name, theirs = plain(family)
    ours = create_model(name)
    theirs.default_cfg, theirs.num_classes = ours.default_cfg, ours.num_classes
    steps, layouts = [], []
    for model in (ours, theirs):
        model.train() if case.train else model.eval()
        step, layout = best_layout(model, case)
        steps.append(step)
        layouts.append(layout)
    times = alternate(steps, seconds=seconds)
    ratio = Spread.of([b / a for a, b in times])
    return {
        "model": name, "ratio": ratio.median, "ratio_spread": [ratio.low, ratio.high], "layouts": layouts,
        "images_per_second": case.batch / Spread.of([a for a, _ in times]).median,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SMALLEST, default=list(SMALLEST))
    parser.add_argument("--modes", nargs="+", choices=("inference", "train"), default=["inference", "train"])
    parser.add_argument("--batch", nargs="+", type=positive, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=5.0, help="at least, for each cell")
    parser.add_argument("--out", type=argparse.FileType("a"), help="append one JSON object a cell to this file")
    args = parser.parse_args()
    cases = [Case(batch, train=mode == "train") for mode in args.modes for batch in args.batch]
    titles = [f"{'training step' if c.train else 'inference'}, {c.batch}" for c in cases]
    rows, ratios = [], []
    for family in args.models:
        row = []
        for case, title in zip(cases, titles, strict=True):
            r = measure(family, case, args.seconds)
            low, high = r["ratio_spread"]
            row.append(f"{r['ratio']:.3f} ({low:.3f} … {high:.3f})")
            ratios.append(r["ratio"])
            print(f"{r['model']}, {title}: {row[-1]}, {' against '.join(r['layouts'])}", file=sys.stderr, flush=True)
            if args.out:
                print(json.dumps({**r, "mode": title}), file=args.out, flush=True)
        rows.append(f"| {r['model']} | " + " | ".join(row) + " |")
    print(
        "\n".join(
            ["| ratio of images/s (quartiles) | " + " | ".join(titles) + " |", "|---" * (len(cases) + 1) + "|", *rows]
        )
    )
    mean = exp(sum(map(log, ratios)) / len(ratios))
    print(f"\ngeometric mean {mean:.3f}, lowest {min(ratios):.3f}, of {len(ratios)} cells")
    print("float32; " + ", ".join(f"{k} {v}" for k, v in circumstances(cases[0]).items()))


if __name__ == "__main__":
    main()
