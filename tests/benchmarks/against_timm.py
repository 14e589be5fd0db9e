"""The table of speed against timm: seven architectures, others by name; batch 1 and 8, inference and training step.

`make bench`, or `python tests/benchmarks/against_timm.py --models swin_tiny --modes train --seconds 30`.
Progress goes to stderr, the table to stdout, every figure with `--out FILE` as JSON lines.
"""

import argparse
import json
import sys
from math import exp, log
from typing import Any

from patchloom.train.commands.bench import compare
from patchloom.train.measure import Arm, Case, circumstances
from patchloom.train.saved.judge import choose_device, image_size, positive

PAIRS = {
    "vit_small_patch16_224": "vit_small_patch16_224",
    "vit_base_patch16_224": "vit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "poolformer_s12": "poolformer_s12",
    "convformer_s18": "convformer_s18",
    "caformer_s18": "caformer_s18",
    "convnext_tiny": "convnext_tiny",
    "tnt_s_patch16_224": "tnt_s_patch16_224",
    "tiny_vit_5m": "tiny_vit_5m_224",
    "tiny_vit_21m": "tiny_vit_21m_224",
    "efficientformer_l1": "efficientformer_l1",
    "efficientformerv2_s0": "efficientformerv2_s0",
}


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PAIRS, default=list(PAIRS)[:7])
    parser.add_argument("--modes", nargs="+", choices=("inference", "train"), default=["inference", "train"])
    parser.add_argument("--batch", nargs="+", type=positive, default=[1, 8])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", type=image_size, default=(224, 224))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--seconds", type=float, default=10.0, help="at least, for each cell")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", action="store_true", help="peak memory too, a child process an arm")
    parser.add_argument("--out", type=argparse.FileType("a"), help="append one JSON object a cell to this file")
    return parser.parse_args(argv)


def cells(args: argparse.Namespace) -> list[Case]:
    """The columns of the table."""
    where = str(choose_device(args.device))
    return [
        Case(batch, args.size, args.dtype, mode == "train", args.compile, where, args.threads)
        for mode in args.modes
        for batch in args.batch
    ]


def title(case: Case) -> str:
    return f"{'training step' if case.train else 'inference'}, {case.batch}"


def speed(result: dict[str, Any]) -> str:
    low, high = result["ratio_spread"]
    return f"{result['ratio']:.3f} ({low:.3f} … {high:.3f})"


def memory(result: dict[str, Any]) -> str:
    ours, theirs = result["peak_memory_mb"], result["against"]["peak_memory_mb"]
    return f"{ours:.0f} / {theirs:.0f} = {ours / theirs:.2f}"


def table(heading: str, rows: dict[str, list[str]], cases: list[Case]) -> str:
    lines = [f"| {heading} | " + " | ".join(map(title, cases)) + " |", "|---" * (len(cases) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | " + " | ".join(row) + " |" for name, row in rows.items())])


def main(argv: list[str] | None = None) -> None:
    import torch

    args = parsed(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    cases = cells(args)
    results: dict[str, list[dict[str, Any]]] = {}
    for name in args.models:
        results[name] = []
        for case in cases:
            arms = [Arm(name), Arm(f"timm:{PAIRS[name]}")]
            result = compare(arms, case, seconds=args.seconds, memory=args.memory)
            results[name].append(result)
            print(
                f"{name}, {title(case)}: {speed(result)}, {result['layout']} against {result['against']['layout']}",
                file=sys.stderr,
            )
            if args.out:
                print(json.dumps(result, ensure_ascii=False), file=args.out, flush=True)
    print(table("ratio of images/s (quartiles)", {n: [speed(r) for r in row] for n, row in results.items()}, cases))
    ratios = [result["ratio"] for row in results.values() for result in row]
    mean = exp(sum(map(log, ratios)) / len(ratios))
    print(f"\ngeometric mean {mean:.3f}, lowest {min(ratios):.3f}, of {len(ratios)} cells")
    if args.memory:
        print(
            "\n" + table("peak MiB, ours / timm's", {n: [memory(r) for r in row] for n, row in results.items()}, cases)
        )
    h, w = args.size
    where = circumstances(cases[0])
    how = f"{cases[0].dtype}, {h}x{w}{', compiled' if args.compile else ''}"
    print(f"\n{how}; " + ", ".join(f"{key} {value}" for key, value in where.items()))


if __name__ == "__main__":
    main()
