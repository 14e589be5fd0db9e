"""What MicroDiT gains of what masking promises: a training step with a share of the patches dropped behind the patch
mixer, against the step with all of them, in alternating rounds of one process; the measured speed-up over the ratio of
the multiply-adds. In Markdown; progress goes to stderr.

`python tests/benchmarks/masking_speed.py [--models microdit_tiny_2] [--ratios 0.5 0.75] [--batch 8] [--seconds 60]`.
The goal is 0.9 for MicroDiT-Tiny/2 at 0.75. On a GPU: `--device cuda --dtype bfloat16 --batch 64`.
"""

import argparse
import json
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from patchloom.train.measure import Case, Spread, Step, alternate, circumstances, warm
from patchloom.train.saved.judge import choose_device, positive
from patchloom.vision.generation.edm import Edm
from patchloom.vision.generation.micro_dit import MicroDiT
from patchloom.vision.generation.process import training_call
from patchloom.vision.zoo import create_model

GOAL = 0.9
PROCESS = Edm(0.9, -0.6, 1.2)


def made(name: str, device: str) -> MicroDiT:
    torch.manual_seed(0)
    model = create_model(name, device=device)
    assert isinstance(model, MicroDiT)
    return model


def batch(model: MicroDiT, count: int, device: str) -> tuple[Tensor, Tensor]:
    assert model.text is not None
    g = torch.Generator().manual_seed(0)
    shapes = (model.in_channels, *model.size), model.text
    x, y = (torch.randn(count, *shape, generator=g).to(device) for shape in shapes)
    return x, y


def backward(model: MicroDiT, ratio: float, x: Tensor, y: Tensor, dtype: str) -> None:
    with torch.autocast(x.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
        loss = PROCESS.loss(training_call(model, ratio), x, y).loss.mean()
    loss.backward()  # type: ignore[no-untyped-call]


def training(model: MicroDiT, ratio: float, x: Tensor, y: Tensor, dtype: str) -> Step:
    """Forward, loss and backward; gradients go, so that both ratios pay for new ones. No optimiser: its cost does not
    depend on how many patches there were."""

    def step() -> None:
        backward(model, ratio, x, y, dtype)
        model.zero_grad()

    return step


def macs(name: str, ratio: float, count: int) -> int:
    """Of a forward and backward pass, counted without computing."""
    model = made(name, "meta").train()
    x, y = (v.to("meta") for v in batch(model, count, "cpu"))
    t = torch.zeros(count, device="meta")
    with FlopCounterMode(display=False) as counter:
        out = model.masked(x, t, y, ratio)[0] if ratio else model(x, t, y)
        out.sum().backward()
    return int(counter.get_total_flops() // 2)


def measure(name: str, ratio: float, case: Case, seconds: float) -> dict[str, Any]:
    model = made(name, case.device).train()
    x, y = batch(model, case.batch, case.device)
    steps = [training(model, r, x, y, case.dtype) for r in (0.0, ratio)]
    for step in steps:
        warm(step, case.device)
    times = alternate(steps, seconds=seconds, device=case.device)
    before, after = (macs(name, r, case.batch) for r in (0.0, ratio))
    gain = before / after
    return {
        "model": name, "ratio": ratio, "macs_before": before, "macs_after": after, "rounds": len(times),
        "seconds": [Spread.of(column).median for column in zip(*times, strict=True)],
        "speed_up": vars(Spread.of([whole / some for whole, some in times])),
        "efficiency": vars(Spread.of([whole / some / gain for whole, some in times])),
    }  # fmt: skip


def spread(s: dict[str, float]) -> str:
    return f"{s['median']:.3f} ({s['low']:.3f} … {s['high']:.3f})"


def line(r: dict[str, Any]) -> str:
    costs = f"{r['macs_before'] / 1e9:.1f} / {r['macs_after'] / 1e9:.1f} = {r['macs_before'] / r['macs_after']:.3f}"
    times = " / ".join(f"{s:.3f}" for s in r["seconds"])
    verdict = spread(r["efficiency"]) + ("" if r["efficiency"]["median"] >= GOAL else f", below {GOAL}")
    return f"| {r['model']} | {r['ratio']:g} | {costs} | {times} | {spread(r['speed_up'])} | {verdict} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["microdit_tiny_2"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.75])
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="at least, and at least five rounds, for each row")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=argparse.FileType("a"), help="append one JSON object a row to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    case = Case(args.batch, dtype=args.dtype, train=True, device=str(choose_device(args.device)), threads=args.threads)
    lines = []
    for name in args.models:
        for ratio in args.ratios:
            r = measure(name, ratio, case, args.seconds)
            lines.append(line(r))
            print(lines[-1], file=sys.stderr, flush=True)
            if args.out:
                print(json.dumps(r), file=args.out, flush=True)
    heads = ("model", "masked", "GMACs of a step, before / after", "seconds, before / after", "speed-up",
             "of what MACs promise")  # fmt: skip
    print("\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines]))
    how = {"batch": args.batch, "dtype": args.dtype, **circumstances(case)}
    print("\nmedians over rounds (quartiles); " + ", ".join(f"{k} {v}" for k, v in how.items()))


if __name__ == "__main__":
    main()
