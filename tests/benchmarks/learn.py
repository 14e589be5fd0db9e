"""Does it learn? Each family's smallest variant from random weights on 5,000 CIFAR-10 images at 64 pixels, for a few
minutes each: the loss at the beginning and the end, and top-1 on 1,000 test images (chance: 10). In Markdown.

`python tests/benchmarks/learn.py --data ../shared/data/cifar10_mini --minutes 10 --models cvt_13 tnt_s_patch16_224`
`--steps 400` stops after so many steps of 32 images, which does not depend on what else the machine does.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def smallest() -> list[str]:
    """The variant of each family with the fewest multiply-accumulates of those that are made for 64 pixels or more."""
    from patchloom.train.catalogue.models import names, row

    best: dict[str, dict] = {}
    for name in names():
        r = row(name)
        if r["input"][-1] >= 64 and r["macs"] < best.get(r["family"], {"macs": float("inf")})["macs"]:
            best[r["family"]] = r
    return [r["name"] for r in best.values()]


def learn(name: str, data: str, minutes: float, steps: int, root: Path) -> tuple[int, float, float, float]:
    """(steps, loss over the first and over the last hundred steps, top-1 in percent)."""
    seconds = round(minutes * 60)
    line = [
        sys.executable, "-m", "patchloom", "fit", "-c", "cifar10/scratch", "--json", "--data.root", data,
        "--model.model.name", name, "--trainer.default_root_dir", str(root / name),
        "--trainer.max_time", f"00:{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        "--trainer.log_every_n_steps", "1", "--trainer.max_steps", str(steps),
    ]  # fmt: skip
    result = subprocess.run(line, capture_output=True, text=True)
    if result.returncode:
        raise ChildProcessError(f"{name}: {result.stderr.strip().splitlines()[-1]}")
    report = json.loads(result.stdout)
    with (Path(report["run"]) / "metrics.csv").open() as file:
        losses = [float(r["train/loss"]) for r in csv.DictReader(file) if r.get("train/loss")]
    n = min(100, len(losses) // 4 or 1)
    top1 = 100 * next(v for k, v in report["test"].items() if k.endswith("top1"))
    return len(losses), sum(losses[:n]) / n, sum(losses[-n:]) / n, top1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=-1, help="at most so many")
    parser.add_argument("--models", nargs="+", help="all families' smallest by default")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models or smallest():
            steps, first, last, top1 = learn(name, args.data, args.minutes, args.steps, Path(folder))
            rows.append(f"| {name} | {steps} | {first:.3f} | {last:.3f} | {top1:.1f} |")
            print(rows[-1], file=sys.stderr, flush=True)
    print("| variant | steps | loss at first | at last | top-1 on 1,000 |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
