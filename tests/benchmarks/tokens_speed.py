"""What token plugins gain of what they promise: measured speed-up / (MACs before / MACs after), against the same
backbone without them. And what they cost where they change nothing. In Markdown; progress goes to stderr.

`python tests/benchmarks/tokens_speed.py --rows tome_base_8 clustering --seconds 30`. Rounds alternate in one process;
the goal is 0.9 in every row, and 1 where the setting is neutral. All networks have random weights, in which token
plugins drop and merge as many tokens as in trained ones.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace

import torch
from torch import nn

from patchloom.train.commands.bench import cost
from patchloom.train.measure import Case, Spread, alternate, circumstances, inference, warm
from patchloom.train.saved.judge import positive
from patchloom.vision.plugins import attach, plugin
from patchloom.vision.zoo import create_model

GOAL = 0.9


@dataclass(frozen=True)
class Row:
    """A backbone, a plugin, and the setting of it that does nothing."""

    name: str
    setting: str
    neutral: str
    size: int = 224
    maps: bool = False  # for dense heads: features_only
    target: float | None = None  # `{}` in the setting is what leaves this part of the MACs


ROWS = {
    "tome_base_8": Row("vit_base_patch16_224", "tome:r=8", "tome:r=0"),
    "tome_base_16": Row("vit_base_patch16_224", "tome:r=16", "tome:r=0"),
    "tome_large_8": Row("vit_large_patch16_224", "tome:r=8", "tome:r=0"),
    "zero_tprune": Row("deit_small_patch16_224", "zero_tprune:keep={}", "zero_tprune:keep=1", target=1 - 0.347),
    "clustering": Row("vit_large_patch16_224", "clustering:at=10,scale=0.7", "clustering:at=10,scale=1", 512, True),
    "scan_pruning": Row("vim_small", "scan_pruning:keep=0.7", "scan_pruning:keep=1"),
}


def built(row: Row, setting: str | None = None, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    model = create_model(row.name, img_size=row.size, features_only=row.maps, device=device).eval()
    if setting is not None:
        attach(model, plugin(setting))
    return model


def macs(row: Row, case: Case, setting: str | None = None) -> int:
    return cost(built(row, setting, "meta"), case)["macs"]


def solved(row: Row, case: Case) -> str:
    """The setting; where it is open, the mildest between 0 and 1 that leaves no more MACs than the target."""
    if row.target is None:
        return row.setting
    wanted, low, high = row.target * macs(row, case), 0.0, 1.0
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (low, middle) if macs(row, case, row.setting.format(middle)) > wanted else (middle, high)
    return row.setting.format(low)


def measure(row: Row, case: Case, seconds: float) -> dict[str, object]:
    """Plain, with the plugin, and with it set to do nothing, in alternating rounds."""
    setting = solved(row, case)
    before, after = macs(row, case), macs(row, case, setting)
    x = torch.randn(case.batch, 3, row.size, row.size, generator=torch.Generator().manual_seed(0))
    steps = [inference(built(row, s), x) for s in (None, setting, row.neutral)]
    for step in steps:
        warm(step, case.device)
    times = alternate(steps, seconds=seconds)
    gain = before / after
    return {
        "model": row.name, "size": row.size, "dense": row.maps, "setting": setting, "neutral": row.neutral,
        "macs_before": before, "macs_after": after, "rounds": len(times),
        "images_per_second": [case.batch / Spread.of(c).median for c in zip(*times, strict=True)],
        "speed_up": vars(Spread.of([plain / reduced for plain, reduced, _ in times])),
        "efficiency": vars(Spread.of([plain / reduced / gain for plain, reduced, _ in times])),
        "neutral_speed": vars(Spread.of([plain / idle for plain, _, idle in times])),
    }  # fmt: skip


def spread(s: dict[str, float]) -> str:
    return f"{s['median']:.3f} ({s['low']:.3f} … {s['high']:.3f})"


def line(r: dict) -> str:
    what = f"{r['model']}, {r['size']} px{', maps' if r['dense'] else ''}"
    speeds = " / ".join(f"{s:.2f}" for s in r["images_per_second"][:2])
    costs = f"{r['macs_before'] / 1e9:.2f} / {r['macs_after'] / 1e9:.2f} = {r['macs_before'] / r['macs_after']:.3f}"
    verdict = spread(r["efficiency"]) + ("" if r["efficiency"]["median"] >= GOAL else f", below {GOAL}")
    return " | ".join([f"| {what} | `{r['setting']}`", costs, speeds, spread(r["speed_up"]), verdict,
                       spread(r["neutral_speed"]) + " |"])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="at least, and at least five rounds, for each row")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--out", type=argparse.FileType("a"), help="append one JSON object a row to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    case = Case(args.batch, threads=args.threads)
    lines = []
    for name in args.rows:
        row = ROWS[name]
        r = measure(row, replace(case, size=(row.size, row.size)), args.seconds)
        lines.append(line(r))
        print(lines[-1], file=sys.stderr, flush=True)
        if args.out:
            print(json.dumps(r), file=args.out, flush=True)
    heads = ("model", "plugin", "GMACs, before / after", "images/s, before / after", "speed-up", "of what MACs promise",
             "speed with the neutral setting")  # fmt: skip
    print("\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines]))
    how = {"batch": args.batch, "dtype": "float32", **circumstances(case)}
    print("\nmedians over rounds (quartiles); " + ", ".join(f"{k} {v}" for k, v in how.items()))


if __name__ == "__main__":
    main()
