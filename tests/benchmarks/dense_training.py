"""The real trainings of detectors and segmenters from random weights, one after another: each recipe is fitted for at
most so many minutes, then judged on the split that nothing was chosen by. In Markdown: steps, minutes, the numbers, and
whether the bound was reached; twenty held-out pictures of each, truth beside prediction, and all numbers as JSON in
`--out`. Ends with status 1 where a bound was missed.

`python tests/benchmarks/dense_training.py --data ../shared/data --out runs/dense [--minutes 30] [--only bccd/fcos]`
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TRAININGS = {  # recipe -> its data below --data; the number that is judged, its bound
    "bccd/fcos": ("bccd", "map50", 0.70),
    "penn_fudan/mask_rcnn": ("penn_fudan", "mask_map50", 0.40),
    "camvid/semantic_fpn": ("camvid_mini", "miou", 0.40),
}
OTHERS = {"camvid/upernet": ("camvid_mini", "miou", 0.40)}  # by name only


def train(recipe: str, data: Path, minutes: float, out: Path, more: list[str]) -> dict[str, Any]:
    """The report of the run, with its `minutes` and `steps`."""
    seconds = round(minutes * 60)
    line = [
        sys.executable, "-m", "patchloom", "fit", "-c", recipe, "--json", "--data.root", str(data),
        "--trainer.default_root_dir", str(out), "--trainer.max_time",
        f"{seconds // 86400:02}:{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}", *more,
    ]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ChildProcessError(f"{recipe}: patchloom fit ended with status {done.returncode}; {' '.join(line)}")
    report = json.loads(done.stdout)
    with (Path(report["run"]) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    trained = [float(row["seconds"]) for row in rows if row.get("train/loss")]
    return report | {
        "steps": max(int(row["step"]) for row in rows),
        "minutes": round((trained[-1] if trained else time.monotonic() - start) / 60, 1),
    }


def judged(report: dict[str, Any], number: str) -> float:
    """The test's number, as a fraction of 1."""
    if "test" not in report:
        raise LookupError(f"{report['run']} was not tested: no epoch was validated before the time was over")
    found = {name.rpartition("/")[2]: value for name, value in report["test"].items()}
    if number not in found:
        raise LookupError(f"the test of {report['run']} has no {number}; it has {', '.join(found)}")
    return float(found[number])


def main() -> int:
    known = TRAININGS | OTHERS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder in which the sets lie")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, for each")
    parser.add_argument("--only", nargs="+", choices=known, metavar="RECIPE", default=list(TRAININGS))
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="further options of `patchloom fit`")
    given = parser.parse_args()
    rows, missed = [], []
    for recipe in given.only:
        folder, number, bound = known[recipe]
        report = train(recipe, given.data / folder, given.minutes, given.out, given.more)
        value, name = judged(report, number), recipe.replace("/", "_")
        shutil.copy(Path(report["run"]) / "predictions.png", given.out / f"{name}.png")
        (given.out / f"{name}.json").write_text(json.dumps(report, indent=1))
        missed += [recipe] if value < bound else []
        others = ", ".join(f"{n.rpartition('/')[2]} {v:.3f}" for n, v in report["test"].items())
        rows.append(
            f"| {recipe} | {report['minutes']} | {report['steps']} | {number} {value:.3f} | {bound} | {others} |"
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(["| recipe | minutes | steps | judged | bound | all |", "|---|---|---|---|---|---|", *rows]))
    if missed:
        print(f"\nnot reached: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
